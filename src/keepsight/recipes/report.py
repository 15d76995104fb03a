"""`keepsight report`: pages made again from the records of finished runs, and one page of several runs with paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import keepsight
from keepsight.core import UserError
from keepsight.core.files import make_directory
from keepsight.evaluate.paired import Wrong, all_error_changes, mcnemar
from keepsight.recipes.folder import PAGE, SEAL, check_writable, reseal
from keepsight.report.forgetting_page import forgetting_page
from keepsight.report.page import JSON, Page, read_page
from keepsight.report.probe_page import probe_page
from keepsight.report.retention_page import retention_page
from keepsight.report.run_records import RunRecords, read_run
from keepsight.report.runs_page import Listed, Pair, runs_page
from keepsight.report.sweep_page import sweep_page
from keepsight.report.tested_records import read_tested
from keepsight.report.tune_page import head_of, page_of
from keepsight.report.visft_page import visft_page
from keepsight.report.write import write_page

BUILDERS: dict[str, Callable[[Path], Page]] = {
    "visft.json": visft_page,
    "sweep.json": sweep_page,
    "compare.json": retention_page,
    "probe.json": probe_page,
    "forgetting.json": forgetting_page,
}
"""By the file that tells what a folder holds; runs of `tune` and `compare` are known by recommendation.json."""


@dataclass(frozen=True, slots=True)
class Report:
    """A page, and where it lies (report.html, report.json, report.md)."""

    page: Page
    folder: Path


def report(runs: Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Make the page of a finished run again from its records, or one page of several runs.

    Args:
        runs: Folders of runs; a report.json is rendered again as it is.
        out: Where to; by default one run's own folder, and the folder 'report' for several runs.

    Raises:
        UserError: A folder holds no finished run, a record is damaged, or the place cannot be written.

    Example::

        found = keepsight.recipes.report.report(["runs/leaves"])
        print(found.page.answer, found.folder / "report.html")
    """
    if not runs:
        raise UserError("Name at least one run: keepsight report RUN...")
    paths = [Path(run) for run in runs]
    if len(paths) == 1:
        page, home = _page(paths[0], whole=True).page, paths[0] if paths[0].is_dir() else paths[0].parent
        folder = home if out is None else _place(Path(out))
    else:
        folder = _place(Path("report") if out is None else Path(out))
        listed = [_page(path, whole=False) for path in paths]
        page = runs_page(listed, pairs_of(listed), keepsight.__version__)
    check_writable(folder)
    write_page(make_directory(folder), page)
    reseal(folder)
    return Report(page, folder)


def _place(out: Path) -> Path:
    """A new or empty folder, or one that holds a page and no run; UserError for any other."""
    if out.exists() and not out.is_dir():
        raise UserError(f"The output {out} is a file: give a folder.")
    there = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if there - set(PAGE):
        raise UserError(f"The output folder {out} holds something else than a report: choose another --out.")
    return out


def _page(path: Path, *, whole: bool) -> Listed:
    """The page of one run (of a run of `tune`, without its sections unless `whole`); of a report.json, the page in it."""
    name = path.resolve().name if path.is_dir() else path.resolve().parent.name
    if path.is_file():
        return Listed(name, read_page(path))
    if not path.is_dir():
        raise UserError(f"There is no folder {path}: give a run's folder, or the report.json in it.")
    if (path / "recommendation.json").is_file():
        if not (path / SEAL).is_file():
            raise UserError(f"The run in {path} is not finished: resume it with its command.")
        records = read_run(path)
        return Listed(name, page_of(records) if whole else head_of(records), records)
    for file, builder in BUILDERS.items():
        if (path / file).is_file():
            return Listed(name, builder(path))
    if (path / JSON).is_file():  # a page of several runs
        return Listed(name, read_page(path / JSON))
    raise UserError(f"{path} is the folder of no finished run: give one, or a report.json.")


def pairs_of(runs: Sequence[Listed]) -> list[Pair]:
    """Differences of the recommended methods of every two runs of the same data: paired where the test images are the same."""
    known = [(i, run.records) for i, run in enumerate(runs) if run.records is not None]
    groups: dict[object, list[tuple[int, dict[int, Wrong]]]] = defaultdict(list)
    for i, records in known:
        tested = read_tested(records.folder)
        answers = tested.of(records.method) if tested is not None else None
        if tested is None or answers is None:
            continue
        order = sorted(range(len(tested.keys)), key=lambda row: (tested.keys[row], tested.labels[row]))
        images = tuple((tested.keys[row], tested.labels[row]) for row in order)
        place = np.argsort(np.array(order))
        groups[images].append((i, {seed: _wrong(place, rows) for seed, rows in answers.wrong.items()}))
    found: dict[tuple[int, int], Pair] = {}
    for group in groups.values():
        found |= _paired(group)
    for position, (i, first) in enumerate(known):
        for j, second in known[position + 1 :]:
            pair = found.get((i, j)) or _bounds(i, j, first, second)
            if pair is not None:
                found[i, j] = pair
    return [found[key] for key in sorted(found)]


def _wrong(place: np.ndarray[tuple[int], np.dtype[np.int64]], rows: Sequence[int]) -> Wrong:
    wrong = np.zeros(len(place), bool)
    wrong[place[list(rows)]] = True
    return wrong


def _paired(group: Sequence[tuple[int, dict[int, Wrong]]]) -> dict[tuple[int, int], Pair]:
    seeds = sorted(set.intersection(*(set(wrong) for _, wrong in group)))
    if len(group) < 2 or not seeds:
        return {}
    changes = all_error_changes([[wrong[seed] for seed in seeds] for _, wrong in group])
    made = {}
    for (a, b), found in changes.items():
        (i, first), (j, second) = group[a], group[b]
        p = mcnemar(first[seeds[0]], second[seeds[0]])
        n = len(first[seeds[0]])
        made[i, j] = Pair(i, j, found.value, found.low, found.high, n=n, seeds=len(seeds), p=p)
    return made


def _bounds(i: int, j: int, first: RunRecords, second: RunRecords) -> Pair | None:
    """Of runs on the same data that cannot be paired: what both intervals leave possible."""
    one, other = first.summary(first.method), second.summary(second.method)
    if one is None or other is None or (first.name, first.metric) != (second.name, second.metric):
        return None
    return Pair(i, j, one.value - other.value, one.ci_low - other.ci_high, one.ci_high - other.ci_low)
