"""Probes of frozen backbones as a run: what each finds before and after, the differences, and one page.

Every probe of every network is a part that is measured once; a killed run goes on.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import keepsight
from keepsight.core import Example, Probe, Result, UserError, processes
from keepsight.core.files import is_sound, said_if_full, seal, sweep, write_text
from keepsight.core.progress import log
from keepsight.core.result import read_results
from keepsight.features.device import start_processes
from keepsight.recipes.folder import SEAL, check_own_folder, environment, log_file, owned
from keepsight.recipes.probe_make import make_probe
from keepsight.recipes.probe_models import Asked
from keepsight.recipes.probe_names import PROBES
from keepsight.recipes.probe_open import open_both
from keepsight.recipes.probe_parts import Part, measured_part
from keepsight.recipes.probe_settings import ProbingConfig
from keepsight.recipes.probe_table import records_of_probe
from keepsight.report.galleries import write_galleries
from keepsight.report.probe_examples import Item, Looks, probe_galleries
from keepsight.report.probe_page import probe_page
from keepsight.report.probes import FACTS, RESULTS, ProbeFacts, read_probe_facts, write_probe_table
from keepsight.report.write import write_page

__all__ = ["ProbeRun", "make_probe", "probe"]


@dataclass(frozen=True, slots=True)
class ProbeRun:
    """A finished run: its folder, all records, and what was left out and why."""

    path: Path
    results: list[Result]
    notes: tuple[str, ...]


def probe(config: ProbingConfig, out: str | Path, *, command: str = "") -> ProbeRun:
    """Ask every probe of a network, and of what it is compared with; write records, tables and a page.

    Args:
        config: See `ProbingConfig`.
        out: The folder; a run of the same config on the same weights goes on there.
        command: What started it, for the page.

    Raises:
        UserError: A network, a setting or the folder is wrong; a probe that was named cannot be asked.

    Example::

        found = keepsight.recipes.probe.probe(ProbingConfig(model="runs/visft", probes=("ocr", "vqa")), "runs/probe")
        print([r for r in found.results if r.metric.endswith("_change")])
    """
    start_processes()
    if processes.count() > 1:
        raise UserError("Probes run in one process: start it without torchrun.")
    path = Path(out)
    model, other, against = open_both(config)
    facts = ProbeFacts(
        version=keepsight.__version__,
        command=command,
        config=config.model_dump(mode="json"),
        model=model.title,
        other=None if other is None else other.title,
        against=against,
        weights=tuple(each.own.weights_hash() for each in (model, other) if each is not None),
        notes=(),
    )
    check_own_folder(path, [], FACTS, "run of probes", lambda p: _same(read_probe_facts(p), config, facts.weights))
    if is_sound(path, SEAL):
        log.info("%s is finished already: these are its results", path)
        return ProbeRun(path, read_results(path / RESULTS), read_probe_facts(path).notes)
    with contextlib.ExitStack() as held:
        held.enter_context(owned(path))
        sweep(path)
        write_text(path / FACTS, facts.model_dump_json(indent=2) + "\n")  # first of all: it says whose folder this is
        held.enter_context(log_file(path / "log.txt"))
        held.enter_context(said_if_full(path))
        write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        return _run(config, path, model, other, facts)


def _same(there: ProbeFacts, config: ProbingConfig, weights: tuple[str, ...]) -> bool:
    return ProbingConfig.model_validate(there.config) == config and there.weights == weights


def _run(config: ProbingConfig, path: Path, model: Asked, other: Asked | None, facts: ProbeFacts) -> ProbeRun:
    results: list[Result] = []
    items: list[Item] = []
    looks: list[Looks] = []
    asked = [each for each in (other, model) if each is not None]
    texts = {each.title: each.text() for each in asked}
    notes = [note for _, note in texts.values() if note]
    for name in config.probes or PROBES:
        try:
            made = make_probe(name, config, asked)
            parts = {
                each.title: measured_part(
                    made,
                    each.at(made.size, made.squash),
                    texts[each.title][0],
                    path,
                    title=each.title,
                    shared=not each.tuned,
                    shuffled=config.shuffled,
                )
                for each in asked
            }
        except UserError as error:
            if config.probes is not None and not config.leave_out:
                raise
            log.warning("%s is left out: %s", name, error)
            notes.append(f"{name} is left out: {error}")
            continue
        before = None if other is None else (other.title, parts[other.title])
        results += records_of_probe(name, config.seed, (model.title, parts[model.title]), before, facts.against)
        earlier = None if before is None else before[1]
        items += _items(made, parts[model.title], earlier, config.examples)
        looks += _looks(made, parts[model.title], earlier)
    if not results and not items:
        raise UserError(f"No probe could be asked: {' '.join(notes)}")
    for note in notes:
        log.info("%s", note)
    facts = facts.model_copy(update={"notes": tuple(notes)})
    write_text(path / FACTS, facts.model_dump_json(indent=2) + "\n")
    write_text(path / RESULTS, "".join(r.model_dump_json() + "\n" for r in results))
    write_galleries(path, probe_galleries(items, looks))
    write_probe_table(path)
    write_page(path, probe_page(path))
    shutil.rmtree(path / "work", ignore_errors=True)
    seal(path, [FACTS, RESULTS], SEAL)
    return ProbeRun(path, results, facts.notes)


def _items(made: Probe, after: Part, before: Part | None, most: int) -> Iterator[Item]:
    """Test items with what is said of them; first those whose answer the tuning turned, then in the probe's order."""
    examples = after.findings.examples
    earlier: list[Example | None] = [None] * len(examples)
    if before is not None:
        pairs = zip(examples, before.findings.examples, strict=False)
        earlier[: len(before.findings.examples)] = [
            old if (old.row, old.truth) == (new.row, new.truth) else None for new, old in pairs
        ]
    turned = [was is not None and was.right != e.right for was, e in zip(earlier, examples, strict=True)]
    order = sorted(range(len(examples)), key=lambda place: not turned[place])
    for place in order[:most]:
        example, was = examples[place], earlier[place]
        yield Item(
            made.name,
            made.images.load(example.row),
            example.truth,
            example.said,
            example.right,
            None if was is None else was.said,
            None if was is None else was.right,
        )


def _looks(made: Probe, after: Part, before: Part | None) -> Iterator[Looks]:
    """Each kind of map; of both networks, where both have the same ones."""
    parts = (after,) if before is None else (before, after)
    of = [{(h.name, h.row): h.values for h in part.findings.heats} for part in parts]
    for name in dict.fromkeys(h.name for h in after.findings.heats):
        there = [i for i, found in enumerate(of) if any(key[0] == name for key in found)]
        rows = [row for kind, row in of[-1] if kind == name and all((name, row) in of[i] for i in there)]
        titles = ("attention",) if before is None else tuple(("before", "after")[i] for i in there)
        if rows:
            images = tuple(made.images.load(row) for row in rows)
            yield Looks(made.name, name, images, tuple(tuple(of[i][name, row] for row in rows) for i in there), titles)
