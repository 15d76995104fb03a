"""The measurement of forgetting: what a tuned model lost on data that it was not tuned on, against the untouched one.

`forgetting` measures a model; `forgetting_of_run` is what `tune` calls at its end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

import keepsight
from keepsight.adapters.kept import kept_adapters
from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.backbones.text import load_text_tower
from keepsight.core import Backbone, Dataset, Readout, TextTower, UserError, processes
from keepsight.core.files import atomic_directory, is_sound, seal
from keepsight.core.progress import log
from keepsight.data.options import DataConfig
from keepsight.evaluate.weight_distance import weight_distance
from keepsight.export.model import TunedModel
from keepsight.recipes.forgetting_attention import attention_galleries
from keepsight.recipes.forgetting_findings import records_of_findings
from keepsight.recipes.forgetting_measure import Pair, Picture, measure, points_of, switch_adapter
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.forgetting_sharpness import measure_sharpness, own_images
from keepsight.recipes.origin import Origin, read_origin, untouched_backbone
from keepsight.recipes.suite import load_suite
from keepsight.report.forgetting_page import forgetting_page
from keepsight.report.forgetting_records import (
    FINDINGS,
    POINTS,
    UNTOUCHED,
    ForgettingFindings,
    ForgettingPoints,
    SharpnessFindings,
    WeightFindings,
    read_findings,
)
from keepsight.report.galleries import EXAMPLES, Gallery, write_galleries
from keepsight.report.page import JSON
from keepsight.report.write import write_page

RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What was found, and where it lies.

    Attributes:
        findings: None where no weight of the backbone was changed, so that there is nothing to measure.
        folder: report.html, the records it is made of, and the same in report.json and report.md; None where nothing was measured.
        sentence: The outcome in words.
    """

    findings: ForgettingFindings | None
    folder: Path | None
    sentence: str


@dataclass(frozen=True, slots=True)
class _Task:
    """A tuned model, what it is compared with, and what is known of the images that it was tuned on."""

    model: TunedModel
    before: Backbone
    against: str
    origin: Origin | None
    trained_on: tuple[str, ...]
    own: Callable[[], tuple[Dataset, Sequence[int]]]


def forgetting(
    model: TunedModel | str | Path,
    out: str | Path | None = None,
    *,
    against: TunedModel | Backbone | str | Path | None = None,
    config: ForgettingConfig | None = None,
    overwrite: bool = False,
) -> Forgetting:
    """Measure what a tuned model lost on data that it was not tuned on.

    Args:
        model: A tuned model, or the folder of one or of its run.
        out: Folder to write; 'forgetting' in the model's own by default (for a run: forgetting/METHOD).
        against: What it is compared with: another model, or a backbone. By default the untouched backbone, which is loaded again
            and must have the weights that the model records.
        config: The suite and all other settings.
        overwrite: Replace what is in `out`.

    Raises:
        UserError: No such model, the untouched weights cannot be had or are others, or nothing is left of the suite.

    Example::

        found = keepsight.forgetting("runs/leaves", config=ForgettingConfig(suite=("bundled", "flowers/")))
        print(found.findings.mean["probe_accuracy"].change)
    """
    config = config or ForgettingConfig()
    loaded = model if isinstance(model, TunedModel) else TunedModel.load(model)
    path = None if isinstance(model, TunedModel) else Path(model)
    folder = _folder(out, path, loaded)
    origin = None if path is None else read_origin(path)
    before, name = _compared_with(against, loaded, origin)
    trained_on = origin.images if origin is not None else ()
    if origin is None:
        log.warning("What the model was tuned on is not known: no set of the suite is left out for it.")
    task = _Task(loaded, before, name, origin, trained_on, lambda: own_images(path))
    return _measured(task, folder, config, overwrite)


def forgetting_of_run(
    run: Path,
    before: Backbone,
    origin: Origin,
    methods: Sequence[tuple[str, Path]],
    config: ForgettingConfig,
    own: tuple[Dataset, Sequence[int]],
) -> dict[str, str]:
    """Measure each tuned method of a run into forgetting/METHOD of its folder; what is there already is not measured again.

    Under several processes all must call it.

    Args:
        run: The run's folder.
        before: The untouched backbone.
        origin: As written by `write_origin`.
        methods: Name and model folder of each method that trained the backbone's weights.
        config: The settings; nothing is done if `measure` is off.
        own: The run's data set, and the images of it whose labels the first seed's models learnt from.

    Returns:
        A sentence a method; for a method that could not be measured, why.
    """
    found: dict[str, str] = {}
    for name, path in methods if config.measure else ():
        try:
            model = TunedModel.load(path)
            if model.backbone.spec() != before.spec():
                found[name] = (
                    "It is another network than the backbone, so that there is nothing it could have forgotten."
                )
                continue
            task = _Task(model, before, UNTOUCHED, origin, origin.images, lambda: own)
            found[name] = _measured(task, run / "forgetting" / name, config, overwrite=True, again=False).sentence
        except processes.SharedError:
            found[name] = "Not measured: see the log of the first process."
        except UserError as error:
            log.warning("What %s forgot is not measured: %s", name, error)
            found[name] = f"Not measured: {error}"
    return found


def forgetting_note(found: Mapping[str, str], frozen: Sequence[str]) -> str:
    """What a run's report says: a line a method, and one for the frozen ones."""
    lines = [f"{method}: {sentence}" for method, sentence in found.items()]
    if frozen:
        lines.append(f"{', '.join(frozen)}: the backbone is frozen, so nothing was forgotten and nothing is measured.")
    return "\n".join(lines)


def _folder(out: str | Path | None, path: Path | None, model: TunedModel) -> Path:
    if out is not None:
        return Path(out)
    if path is None:
        raise UserError("A model that was not loaded from a folder has no place of its own: give out=FOLDER.")
    return path / "forgetting" if (path / "model.json").is_file() else path / "forgetting" / model.method


def _compared_with(
    against: TunedModel | Backbone | str | Path | None, model: TunedModel, origin: Origin | None
) -> tuple[Backbone, str]:
    if against is None:
        return untouched_backbone(model, origin), UNTOUCHED
    if isinstance(against, Backbone):
        return against, UNTOUCHED if against.spec() == model.backbone.spec() else against.name
    other = against if isinstance(against, TunedModel) else TunedModel.load(against)
    return other.backbone, other.method


def _measured(task: _Task, folder: Path, config: ForgettingConfig, overwrite: bool, again: bool = True) -> Forgetting:
    """`again`: whether `overwrite` measures again what is there with the same settings."""
    hashes = task.before.weights_hash(), task.model.backbone.weights_hash()
    if hashes[0] == hashes[1] and task.before.preprocessing == task.model.backbone.preprocessing:
        sentence = (
            f"{task.model.method} changed no weight of the backbone: it forgot nothing, every difference is exactly zero, and "
            f"nothing is measured."
        )
        return Forgetting(None, None, sentence)
    there = processes.from_main(lambda: _there(folder))
    wanted = (*hashes, task.against, config)
    if there is not None and not (overwrite and again) and wanted == _identity(there):
        log.info("%s was measured already (--overwrite measures it again)", folder)
        with processes.main_writes():
            if processes.is_main() and not (folder / JSON).is_file():  # of a version that wrote another page
                write_page(folder, forgetting_page(folder))
        return Forgetting(there, folder, there.summary())
    if not overwrite and processes.from_main(lambda: folder.exists() and any(folder.iterdir())):
        raise UserError(
            f"There is a measurement with other settings, or something else, in {folder}: choose another --out, or replace it with "
            f"--overwrite."
        )
    findings = _measure_and_write(task, folder, config, hashes)
    return Forgetting(findings, folder, findings.summary())


def _identity(found: ForgettingFindings) -> tuple[str, str, str, ForgettingConfig]:
    config = ForgettingConfig.model_validate(found.config)
    return found.weights_before, found.weights_after, found.against, config


def _there(folder: Path) -> ForgettingFindings | None:
    if not is_sound(folder):
        return None
    try:
        found = read_findings(folder)
        ForgettingConfig.model_validate(found.config)
    except (UserError, ValidationError):
        return None
    return found


def _measure_and_write(
    task: _Task, folder: Path, config: ForgettingConfig, hashes: tuple[str, str]
) -> ForgettingFindings:
    start, model = time.monotonic(), task.model
    readout = model.readout if config.readout is None else Readout.parse(config.readout)
    for backbone in (task.before, model.backbone):
        readout.resolved(backbone.depth)
    with processes.main_first():
        suite = load_suite(config, task.trained_on, DataConfig(pixels=model.pixels))
        text, notes = _text_tower(task)
    if not suite.sets:
        raise UserError(
            f"No data set of the suite is left to measure on: {' '.join(suite.notes)} Name others by --suite."
        )
    for note in (*suite.notes, *notes):
        log.info("%s", note)
    pair = Pair(task.before, model.backbone, *hashes, text)
    features = folder.with_name(f".{folder.name}-features.tmp")
    try:
        measured = measure(pair, suite.sets, readout, config, features)
    finally:
        processes.wait()
        if processes.is_main():
            shutil.rmtree(features, ignore_errors=True)
    with processes.main_writes():
        if processes.is_main():
            switch = None
            kept = kept_adapters(model.backbone) is not None
            if task.against == UNTOUCHED and (model.adapter is not None or kept):
                switch = switch_adapter(task.before, model.backbone, model.adapter, readout, suite.sets[0])
            sharp = _sharpness(task, config)
            findings = ForgettingFindings(
                method=model.method,
                against=task.against,
                backbone=model.backbone.name,
                readout=str(readout),
                weights_before=hashes[0],
                weights_after=hashes[1],
                config=config.model_dump(mode="json"),
                sets=measured.sets,
                mean=measured.mean,
                weights=_weights(task),
                adapter=switch,
                sharpness=sharp,
                notes=(*suite.notes, *notes),
                extracted=measured.extracted,
                seconds=time.monotonic() - start,
                version=keepsight.__version__,
            )
            _write(folder, findings, measured.pictures, _attention(task, suite.sets[0], config), config.seed)
            log.info("%s: %s (%.0f s)", model.method, findings.summary(), findings.seconds)
    found = processes.from_main(lambda: _there(folder))
    assert found is not None  # it has just been written
    return found


def _text_tower(task: _Task) -> tuple[TextTower | None, tuple[str, ...]]:
    """The text tower that belongs to both networks, or why there is none although the model has one."""
    both = (task.before, task.model.backbone)
    if not all(isinstance(backbone, OpenClipBackbone) for backbone in both) or both[0].name != both[1].name:
        return None, ()
    weights = "pretrained" if task.origin is None else task.origin.backbone.weights
    try:
        return load_text_tower(both[0].name, weights=weights), ()
    except UserError as error:
        return None, (f"Zero-shot accuracy is not measured: {error}",)


def _weights(task: _Task) -> WeightFindings | None:
    try:
        found = weight_distance(task.before, task.model.backbone)
    except ValueError:
        return None
    return WeightFindings(total=found.total, blocks=found.blocks)


def _sharpness(task: _Task, config: ForgettingConfig) -> SharpnessFindings | None:
    if not config.sharpness:
        return None
    dataset, labelled = task.own()
    with torch.random.fork_rng(devices=[]):
        return measure_sharpness(task.model, dataset, labelled, config)


def _attention(task: _Task, first: Dataset, config: ForgettingConfig) -> list[Gallery]:
    """Of the images that the model was fitted on, where they can be had; of the suite's first set otherwise."""
    try:
        dataset, rows = task.own()
    except UserError:
        dataset, rows = first, range(len(first.images))
    return attention_galleries(task.before, task.model.backbone, dataset, rows, config.attention, config.seed)


def _write(
    folder: Path, findings: ForgettingFindings, pictures: Sequence[Picture], looks: Sequence[Gallery], seed: int
) -> None:
    """Records and page. The records alone are sealed: the page can be made again of them."""
    records = "".join(record.model_dump_json() + "\n" for record in records_of_findings(findings))
    points = ForgettingPoints(sets=tuple(points_of(picture, seed) for picture in pictures))
    with atomic_directory(folder) as temporary:
        (temporary / FINDINGS).write_text(findings.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / RESULTS).write_text(records, encoding="utf-8")
        (temporary / POINTS).write_text(points.model_dump_json() + "\n", encoding="utf-8")
        write_galleries(temporary, looks)
        write_page(temporary, forgetting_page(temporary))
        seal(temporary, [FINDINGS, RESULTS, POINTS, EXAMPLES])
