"""The records of a data report, and the sentences drawn from them. Knows no pixels: figures in, findings out."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from keepsight.core import Config
from keepsight.data.scan import BadImage

TINY = 8
"""An image is tiny if its shorter side is below this many px."""

IMBALANCE = 10.0
"""Ratio of the largest to the smallest class that is warned about."""

PAIRS_LISTED = 1000
"""Near duplicates named in the report, the most alike first; all are counted."""

_NO_CLASS = frozenset(
    {"nan", "none", "null", "nil", "na", "n/a", "<na>", "undefined", "unknown", "todo", "?", "-", "-1"}
)


class Finding(Config):
    """One sentence of the report: what was found and what to do.

    Attributes:
        severity: ``error`` stops `tune`; ``warning`` makes figures wrong or unsure; ``note`` is worth knowing.
        topic: ``images``, ``duplicates`` or ``labels``.
        text: The sentence.
    """

    severity: Literal["error", "warning", "note"]
    topic: Literal["images", "duplicates", "labels"]
    text: str


class ClassCount(Config):
    """Labelled images of one class, by part ('' where the data brings no split), in all parts and readable or not."""

    name: str
    parts: dict[str, int]

    @property
    def training(self) -> int:
        """Images that may be learnt from."""
        return self.parts.get("train", 0) + self.parts.get("", 0)


class Cardinality(Config):
    """How many classes the labelled images of multi-label data have.

    Attributes:
        classes: Mean number of classes an image.
        none: Images with none of the classes.
        always: Classes that every training image has.
    """

    classes: float
    none: int
    always: tuple[str, ...]


class Sizes(Config):
    """Smallest, median and largest side, px, and how many images are grey (equal channels) and coloured."""

    width: tuple[int, float, int]
    height: tuple[int, float, int]
    grey: int
    colour: int


class DuplicateGroup(Config):
    """Images with the same pixels.

    Attributes:
        names: Two or more.
        parts: The part of each.
        labels: The class of each, None for unlabelled.
        same_files: Whether the stored contents are equal too, not only the decoded pixels.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    labels: tuple[str | None, ...]
    same_files: bool

    @property
    def crosses(self) -> bool:
        """Whether it lies in more than one part."""
        return len(set(self.parts)) > 1

    @property
    def conflicts(self) -> bool:
        """Whether two of its labels differ."""
        return len({label for label in self.labels if label is not None}) > 1


class NearPair(Config):
    """Two images that look the same but are not, in different parts (or anywhere, where the data brings no split)."""

    names: tuple[str, str]
    parts: tuple[str, str]
    labels: tuple[str | None, str | None]
    correlation: float


class DataReport(Config):
    """What `check_data` found.

    Attributes:
        name: The data set's name.
        images: Number of images.
        labelled: Number of labelled images.
        parts: Number of images by part.
        classes: Counts by class, in the order of the classes.
        bad: Images that cannot be read.
        sizes: Sizes of the readable images; None if there is none.
        tiny: Names of images with a side below `TINY` px.
        constant: Names of images of one colour.
        duplicates: Groups of images with equal pixels.
        near: The most alike near duplicates, at most `PAIRS_LISTED`.
        near_pairs: Their number, None if they were not looked for.
        near_complete: Whether every candidate pair was looked at.
        findings: Sentences, errors first.
        multilabel: How many classes an image has, in multi-label data; None where each has one. Class counts then add up to more
            (or less) than the images.
    """

    name: str
    images: int
    labelled: int
    parts: dict[str, int]
    classes: tuple[ClassCount, ...]
    bad: tuple[BadImage, ...]
    sizes: Sizes | None
    tiny: tuple[str, ...]
    constant: tuple[str, ...]
    duplicates: tuple[DuplicateGroup, ...]
    near: tuple[NearPair, ...]
    near_pairs: int | None
    near_complete: bool
    findings: tuple[Finding, ...] = ()
    multilabel: Cardinality | None = None

    @property
    def split(self) -> bool:
        """Whether the data bring their own parts."""
        return any(part for part in self.parts)

    @property
    def imbalance(self) -> float | None:
        """Largest over smallest class among the training images; None with fewer than two classes there."""
        counts = [n for c in self.classes if (n := c.training)]
        return max(counts) / min(counts) if len(counts) > 1 else None


def find_problems(report: DataReport) -> tuple[Finding, ...]:
    """All sentences on a report, errors first."""
    findings = [*_on_images(report), *_on_duplicates(report), *_on_counts(report), *_on_names(report)]
    return tuple(sorted(findings, key=lambda finding: ("error", "warning", "note").index(finding.severity)))


def _on_images(report: DataReport) -> Iterator[Finding]:
    if report.bad:
        kinds: dict[str, list[str]] = defaultdict(list)
        for bad in report.bad:
            kinds[bad.kind].append(bad.name)
        each = "; ".join(f"{len(names)} {kind}, such as {names[0]!r}" for kind, names in kinds.items())
        text = (
            f"{_count(len(report.bad), 'image')} cannot be read ({each}): repair or remove them, or leave them out with "
            f"--skip-bad."
        )
        yield Finding(severity="error", topic="images", text=text)
    if report.constant:
        text = (
            f"{_count(len(report.constant), 'image')} of one colour only, such as {report.constant[0]!r}: look whether "
            f"something went wrong when they were made."
        )
        yield Finding(severity="warning", topic="images", text=text)
    if report.tiny:
        text = (
            f"{_count(len(report.tiny), 'image')} less than {TINY} px wide or high, such as {report.tiny[0]!r}: they hold "
            f"next to nothing to learn from; remove them if they are thumbnails or placeholders."
        )
        yield Finding(severity="warning", topic="images", text=text)


def _on_duplicates(report: DataReport) -> Iterator[Finding]:
    if conflicts := [group for group in report.duplicates if group.conflicts]:
        text = (
            f"{_count(len(conflicts), 'group')} of equal images with different labels, such as {_example(conflicts[0])}: "
            f"decide on one label."
        )
        yield Finding(severity="warning", topic="duplicates", text=text)
    crossing = [group for group in report.duplicates if group.crosses]
    if crossing:
        text = (
            f"{_count(len(crossing), 'group')} of equal images in more than one part, such as {_example(crossing[0])}: "
            f"figures measured on images that were learnt from are too good; keep each image in one part."
        )
        yield Finding(severity="warning", topic="duplicates", text=text)
    if inside := [group for group in report.duplicates if not group.crosses]:
        more = sum(len(group.names) - 1 for group in inside)
        text = (
            f"{_count(len(inside), 'group')} of equal images, {more} more than needed, such as {_example(inside[0])}: "
        )
        text += (
            "each copy counts again in training or in figures; keep one."
            if report.split
            else "a split drawn at random may learn from one copy and test on the other; keep one."
        )
        yield Finding(severity="note" if report.split else "warning", topic="duplicates", text=text)
    if report.near_pairs:
        pair = report.near[0]
        where = "in different parts" if report.split else "that a random split may separate"
        text = (
            f"{_count(report.near_pairs, 'pair')} of nearly equal images {where}, such as {_example(pair)}: if they show the "
            f"same thing (copies, neighbouring frames), put them into one part or keep one."
        )
        yield Finding(severity="warning", topic="duplicates", text=text)
    if not report.near_complete:
        text = (
            "The search for near duplicates was ended early, because too many images look alike: what it lists is only a "
            "part (frames of one film are best split by film)."
        )
        yield Finding(severity="warning", topic="duplicates", text=text)


def _on_counts(report: DataReport) -> Iterator[Finding]:
    def classes(
        severity: Literal["error", "warning", "note"], fits: Callable[[ClassCount], bool], text: str
    ) -> Iterator[Finding]:
        if names := [c.name for c in report.classes if fits(c)]:
            yield Finding(severity=severity, topic="labels", text=f"{_listed('class', names)} {text}")

    if report.multilabel is not None:
        yield from _on_several_classes(report, report.multilabel)
    if (learnt := sum(bool(c.training) for c in report.classes)) < 2 and (report.multilabel is None or not learnt):
        has = ("no training labels", "training labels of one class only")[learnt]
        text = f"The data have {has}: a classifier needs labelled images of at least two classes."
        yield Finding(severity="error", topic="labels", text=text)
    yield from classes(
        "error",
        lambda c: not c.training and bool(c.parts.get("test")),
        "in the test part but without a training image: add training images, or take the test images out.",
    )
    yield from classes(
        "error",
        lambda c: not c.training and not c.parts.get("test") and bool(c.parts.get("val")),
        "in the val part but without a training image: add training images, or take the val images out.",
    )
    yield from classes("warning", lambda c: not c.parts, "without any image: remove the class or label some images.")
    yield from classes(
        "warning",
        lambda c: c.training == 1,
        "with a single training label: two are needed to compare methods, and one more to test on; label some more.",
    )
    yield from classes(
        "note",
        lambda c: 2 <= c.training < 5,
        "with fewer than 5 training labels: cross-validation uses fewer folds, and figures on it are rough.",
    )
    if report.split and report.parts.get("test"):
        yield from classes(
            "warning",
            lambda c: bool(c.training) and not c.parts.get("test"),
            "without a test image: the test figures say nothing about it.",
        )
    if report.imbalance is not None and report.imbalance > IMBALANCE and report.multilabel is None:
        least = min((c for c in report.classes if c.training), key=lambda c: c.training)
        most = max(report.classes, key=lambda c: c.training)
        text = (
            f"The largest class, {most.name!r}, has {most.training} training labels and the smallest, {least.name!r}, has "
            f"{least.training}: read balanced accuracy and macro F1 rather than accuracy."
        )
        yield Finding(severity="warning", topic="labels", text=text)
    if report.labelled >= 20 and len(report.classes) > report.labelled / 2 and report.multilabel is None:
        text = (
            f"There are {len(report.classes)} classes for {report.labelled} labelled images: look whether the label is an "
            f"identifier rather than a class."
        )
        yield Finding(severity="warning", topic="labels", text=text)


def _on_several_classes(report: DataReport, found: Cardinality) -> Iterator[Finding]:
    text = (
        f"Multi-label data: an image has {found.classes:.1f} of {len(report.classes)} classes on average, and "
        f"{_count(found.none, 'labelled image')} none of them; read mean average precision rather than accuracy."
    )
    yield Finding(severity="note", topic="labels", text=text)
    if found.always:
        text = f"{_listed('class', found.always)} that every training image has: nothing can be learnt about it."
        yield Finding(severity="warning", topic="labels", text=text)


def _on_names(report: DataReport) -> Iterator[Finding]:
    alike: dict[str, list[str]] = defaultdict(list)
    for c in report.classes:
        alike[_plain(c.name)].append(c.name)
    for names in alike.values():
        if len(names) > 1:
            spelt = ", ".join(repr(name) for name in names)
            text = f"The classes {spelt} differ in case, blanks or punctuation only: give them one name if they are one class."
            yield Finding(severity="warning", topic="labels", text=text)
    names = [c.name for c in report.classes]
    if odd := [name for name in names if name.strip().casefold() in _NO_CLASS]:
        text = f"{_listed('class', odd)} named like a missing value: leave the label empty if the class is not known."
        yield Finding(severity="warning", topic="labels", text=text)
    numeric = [name for name in names if re.fullmatch(r"[+-]?\d+([.,]\d+)?", name.strip())]
    if numeric and any(re.search("[.,]", name) for name in numeric):
        text = (
            f"{_listed('class', numeric)} named like a measurement: keepsight learns classes, it does not fit numbers."
        )
        yield Finding(severity="warning", topic="labels", text=text)
    elif numeric and len(numeric) == len(names):
        text = f"All {len(names)} class names are numbers: fine for digits, but names are easier to read in tables."
        yield Finding(severity="note", topic="labels", text=text)
    elif numeric:
        text = f"{_listed('class', numeric)} named by a number among names in words: look whether the right column was read."
        yield Finding(severity="warning", topic="labels", text=text)


def _plain(name: str) -> str:
    """What is left of a name without case, width, blanks, hyphens and underscores."""
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", name).casefold())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _listed(noun: str, names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"1 {noun} ({shown})" if len(names) == 1 else f"{len(names):,} {noun}es ({shown})"


def _example(found: DuplicateGroup | NearPair) -> str:
    """Two images that show what the sentence means: with different labels or parts if there are such."""
    one = list(zip(found.names, found.parts, found.labels, strict=True))
    other = next((o for o in one if None not in (o[2], one[0][2]) and o[2] != one[0][2]), None)
    other = other or next((o for o in one if o[1] != one[0][1]), one[1])

    def named(image: tuple[str, str, str | None]) -> str:
        name, part, label = image
        notes = [part] * bool(part) + ([repr(label)] if label is not None else [])
        return repr(name) + (f" ({', '.join(notes)})" if notes else "")

    return f"{named(one[0])} and {named(other)}"
