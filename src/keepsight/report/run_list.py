"""Finished runs below some folders, as a page that lists them. Reads the heads of their records; knows no server.

Whatever lies in a folder may be damaged, or made to mislead: what cannot be read is listed with a sentence, nothing outside of the
folders is read, links are not followed, and the names of runs are texts and never addresses.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import textwrap
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import final

import numpy as np
from pydantic import ConfigDict, ValidationError

from keepsight.core import Config, Result
from keepsight.core.result import read_results
from keepsight.report.page import JSON, Listing, Page, Section, Table
from keepsight.report.probes import CHANGE
from keepsight.report.summary import main_metric, main_name
from keepsight.report.visft import SAID
from keepsight.report.visft import cell as visft_cell

KINDS = {
    "visft.json": "visft",
    "probe.json": "probe",
    "sweep.json": "sweep",
    "compare.json": "retention",
    "forgetting.json": "forgetting",
    "recommendation.json": "tune",
    "splits.json": "tune",
}
"""Files that tell what a folder without a report.json holds."""

DEPTH = 4
"""So many folders below a given one are looked through."""

LARGEST = 64 * 2**20
"""A record that is larger is not read, in bytes."""


ROOM = 200
"""Letters of an answer that are shown; the report has all."""


class _Head(Config):
    """What stands above the sections of a report.json."""

    model_config = ConfigDict(extra="ignore")

    kind: str
    title: str
    answer: str


class _Chosen(Config):
    """recommendation.json."""

    model_config = ConfigDict(extra="ignore")

    method: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A run.

    Attributes:
        key: Names it in addresses: letters, digits, dashes.
        folder: Resolved.
        root: The given folder that it lies in, resolved.
        name: For people: the path below the given folder.
        kind: As `Page.kind`.
        data: Names of data sets.
        when: Of its report, seconds since 1970.
        figure: The main one, as a text; "" where the sentence has all.
        answer: The page's first sentence, or what is wrong.
        sound: Whether it has a page.
    """

    key: str
    folder: Path
    root: Path
    name: str
    kind: str
    data: str
    when: float
    figure: str
    answer: str
    sound: bool


@final
class RunList:
    """The runs below some folders; what has not changed since it was last asked is not read again.

    Args:
        roots: Folders of runs, or runs.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._given = tuple(dict.fromkeys(roots))
        self._roots = tuple(root.resolve() for root in self._given)
        self._known: dict[Path, tuple[tuple[int, ...], Entry]] = {}
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """All runs: those with a report, the newest first, then the others."""
        found: dict[Path, Entry] = {}
        with self._lock:
            for root in self._roots:
                for folder in _folders(root):
                    if folder not in found:
                        found[folder] = self._entry(root, folder)
            self._known = {folder: known for folder, known in self._known.items() if folder in found}
        return sorted(found.values(), key=lambda entry: (not entry.sound, -entry.when, entry.name))

    def page(self, version: str) -> Page:
        """The list as a page, with links to run/KEY/report.html."""
        entries = self.entries()
        where = _readable(", ".join(str(given) for given in self._given))
        sound = [entry for entry in entries if entry.sound]
        rows = tuple((e.name, e.kind, e.data, _date(e.when), e.figure, _short(e.answer)) for e in entries)
        table = Table(
            caption="The newest first; below them what has no report. Type to filter by name, kind, data or any other word.",
            headings=("run", "kind", "data", "date", "main figure", "answer"),
            rows=rows,
            filtered=True,
            links=tuple(f"run/{entry.key}/report.html" if entry.sound else "" for entry in entries),
        )
        boards = "\n".join(f"tensorboard --logdir {shlex.quote(str(given))}" for given in self._given)
        board = Listing(title="Losses and learning rates", text=_readable(boards), shown=True)
        without = f", and {len(entries) - len(sound)} without a report" if len(sound) < len(entries) else ""
        return Page(
            version=version,
            kind="runs",
            title="Runs of keepsight",
            answer=f"{len(sound)} finished run{'' if len(sound) == 1 else 's'} below {where}{without}.",
            lead=(
                "Served to this computer alone, and nothing is written. Load the page again to see what has finished since.",
            ),
            sections=(
                *((Section(title="Runs", blocks=(table,)),) if rows else ()),
                Section(title="TensorBoard", blocks=(board,)),
            ),
        )

    def _entry(self, root: Path, folder: Path) -> Entry:
        stamp = tuple(_stamp(folder / name) for name in (JSON, "results.jsonl", "recommendation.json"))
        known = self._known.get(folder)
        if known is None or known[0] != stamp or known[1].root != root:
            known = self._known[folder] = (stamp, _read(root, folder, self._name(root, folder)))
        return known[1]

    def _name(self, root: Path, folder: Path) -> str:
        inside = folder.relative_to(root).as_posix()
        if inside == ".":
            return root.name or str(root)
        return inside if len(self._roots) == 1 else f"{root.name}/{inside}"


def inside(root: Path, file: Path) -> Path | None:
    """The regular file that a path stands for, if it lies below `root` when links are followed; else None."""
    try:
        found = file.resolve(strict=True)
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _folders(root: Path) -> Iterator[Path]:
    """Folders of runs; what lies in a run belongs to it. Links to folders are not followed."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        if JSON in files or any(marker in files for marker in KINDS):
            yield folder
            folders.clear()
        elif len(folder.relative_to(root).parts) >= DEPTH:
            folders.clear()
        else:
            folders[:] = sorted(each for each in folders if not each.startswith("."))


def _stamp(file: Path) -> int:
    """Changes when the file does; 0 where it is not there."""
    try:
        status = file.stat()
    except OSError:
        return 0
    return hash((status.st_mtime_ns, status.st_size, status.st_ino))


def _read(root: Path, folder: Path, name: str) -> Entry:
    marked = next((kind for marker, kind in KINDS.items() if (folder / marker).exists()), "-")
    file = inside(root, folder / JSON)
    key = (
        f"{re.sub(r'[^A-Za-z0-9]+', '-', name)[:40].strip('-')}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    )
    key = key.removeprefix("-")
    entry = Entry(key, folder, root, _readable(name), marked, "", _when(folder, file), "", "", False)
    again = "keepsight report writes one from the records"
    if file is None:
        return replace(entry, answer=f"No report.json: not finished, or of an older version; {again}.")
    try:
        if file.stat().st_size > LARGEST:
            return replace(entry, answer="report.json is too large to be one of keepsight.")
        head = _Head.model_validate_json(file.read_bytes())
    except (OSError, ValidationError, ValueError):
        return replace(entry, answer=f"report.json is damaged: {again}.")
    data, figure = _figures(root, folder, head.kind)
    return replace(entry, kind=head.kind, answer=head.answer, data=data, figure=figure, sound=True)


def _readable(name: str) -> str:
    """A path as a text that can be written: names of files need not be UTF-8."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _when(folder: Path, file: Path | None) -> float:
    try:
        return (file or folder).stat().st_mtime
    except OSError:
        return 0.0


def _short(answer: str) -> str:
    """The beginning of a long sentence: its first part, or as many words as there is room for."""
    return textwrap.shorten(answer if len(answer) <= ROOM else answer.partition("; ")[0], ROOM, placeholder=" ...")


def _date(when: float) -> str:
    return datetime.fromtimestamp(when).astimezone().strftime("%Y-%m-%d")


def _figures(root: Path, folder: Path, kind: str) -> tuple[str, str]:
    """Names of data sets, and the main figure; "" where the records do not say."""
    file = inside(root, folder / "results.jsonl")
    try:
        results = read_results(file) if file is not None and file.stat().st_size <= LARGEST else []
    except (OSError, ValidationError, ValueError):
        results = []
    names = list(dict.fromkeys(r.dataset for r in results))
    data = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return data, _main_figure(root, folder, kind, results)


def _main_figure(root: Path, folder: Path, kind: str, results: Sequence[Result]) -> str:
    if kind in ("tune", "compare"):
        file = inside(root, folder / "recommendation.json")
        if file is None:
            return ""
        try:
            method = _Chosen.model_validate_json(file.read_bytes()).method
        except (OSError, ValidationError, ValueError):
            return ""
        tests = [r for r in results if r.split == "test" and r.seed is None and r.metric == main_metric(results)]
        one = next((r for r in tests if r.method == method), None)
        if one is None:
            return ""
        value, low, high = (f"{100 * v:.1f}" for v in (one.value, one.ci_low, one.ci_high))
        return f"{method}: {main_name(results)} {value} [{low}, {high}] %"
    if kind == "visft":
        changes = [r for r in results if r.metric.endswith("ap50_change") and r.split.startswith("test")]
        if not changes:
            return ""
        return f"{SAID[changes[0].metric.removesuffix('_change')]}: {visft_cell(changes[0], signed=True)} points"
    if kind == "probe":
        found = [
            r
            for r in results
            if r.metric.endswith(CHANGE) and not r.detail and np.isfinite((r.ci_low, r.ci_high)).all()
        ]
        sign = [(-1 if r.better == "lower" else 1) * (1 if r.ci_low > 0 else -1 if r.ci_high < 0 else 0) for r in found]
        return f"{sign.count(1)} better, {sign.count(-1)} worse of {len(found)}" if found else ""
    return ""
