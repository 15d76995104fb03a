"""Annotations as they are read: what is wrong with them is counted, what is right becomes `Objects`. Knows no file format.

Formats name their errors by a kind of `SAYS`; a kind of severity 'error' makes loading refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.core.scene import Objects, Rle
from keepsight.data.files import read_image
from keepsight.data.findings import Finding

_Severity = Literal["error", "warning", "note"]
_Topic = Literal["images", "duplicates", "labels"]

_TOLERANCE = 1.0  # px by which published boxes lead out of their images, from rounding

SAYS: dict[str, tuple[_Severity, _Topic, str, str, str]] = {
    "path": (
        "error",
        "images",
        "file name",
        "file names",
        "leading out of the data's folder: name files inside of it, without '..'.",
    ),
    "all missing": (
        "error",
        "images",
        "image file",
        "image files",
        "missing, which are all there are: put the images beside the annotations.",
    ),
    "unreadable": (
        "error",
        "images",
        "image",
        "images",
        "that cannot be read: replace the file, or take the image out of the annotations.",
    ),
    "size": (
        "error",
        "images",
        "image",
        "images",
        "of another size than the annotations say: boxes would lie elsewhere; write the sizes of the files as they are.",
    ),
    "image id": (
        "error",
        "duplicates",
        "image id",
        "image ids",
        "given to two different files of one part: number the images anew.",
    ),
    "category id": (
        "error",
        "duplicates",
        "category id",
        "category ids",
        "given to two different names: number the categories anew.",
    ),
    "category": (
        "error",
        "labels",
        "annotation",
        "annotations",
        "of an unknown category: add it to the list of categories, or correct the annotation.",
    ),
    "box": (
        "error",
        "labels",
        "annotation",
        "annotations",
        "without a valid box: expected four finite numbers, as the format writes them.",
    ),
    "image twice": (
        "warning",
        "duplicates",
        "image",
        "images",
        "listed twice in one part: the second entry is left out.",
    ),
    "annotation id": (
        "warning",
        "duplicates",
        "annotation id",
        "annotation ids",
        "used twice in one file: all of the annotations are read, but other tools keep only one.",
    ),
    "missing": ("warning", "images", "image file", "image files", "missing: left out, with all that is said of it."),
    "no image": ("warning", "labels", "annotation", "annotations", "of an image that is not there: left out."),
    "outside": ("warning", "labels", "box", "boxes", "wholly outside of the image: left out."),
    "partly outside": (
        "warning",
        "labels",
        "box",
        "boxes",
        "partly outside of the image by more than a pixel: cut off at its border.",
    ),
    "zero area": ("warning", "labels", "box", "boxes", "without an area: left out."),
    "mask size": ("warning", "labels", "mask", "masks", "of another size than its image: the box alone is used."),
    "mask": ("warning", "labels", "mask", "masks", "that cannot be read: the box alone is used."),
    "empty mask": ("warning", "labels", "mask", "masks", "without a pixel: the box alone is used."),
    "empty caption": ("warning", "labels", "caption", "captions", "without a word: left out."),
    "no caption": ("warning", "labels", "image", "images", "without a caption, in a part that has captions."),
    "unused category": (
        "warning",
        "labels",
        "category",
        "categories",
        "without any object: nothing can be learnt of it.",
    ),
    "no object": (
        "note",
        "labels",
        "image",
        "images",
        "without any object: right if nothing is to be found there, and a wrong negative if it was not looked at.",
    ),
    "crowd": (
        "note",
        "labels",
        "region",
        "regions",
        "marked as a crowd, or as difficult: they neither train nor count as a miss.",
    ),
}
"""What each kind of trouble is called: severity, topic, noun, plural, and the rest of the sentence. In the order of the report."""


class Problems:
    """What was met while annotations were read: how often, and where first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, where: str, number: int = 1) -> None:
        """Count a problem of a kind of `SAYS`."""
        if kind not in SAYS:
            raise KeyError(kind)
        self._counts[kind] += number
        self._first.setdefault(kind, where)

    def count(self, kind: str) -> int:
        """How often a kind was met."""
        return self._counts[kind]

    def findings(self) -> tuple[Finding, ...]:
        """One sentence a kind, errors first."""
        found = []
        for kind, (severity, topic, noun, plural, text) in SAYS.items():
            if number := self._counts[kind]:
                where = self._first[kind] if self._first[kind].isprintable() else repr(self._first[kind])
                first = f"first: {where}" if number > 1 else where
                sentence = f"{number:,} {noun if number == 1 else plural} ({first}) {text}"
                found.append(Finding(severity=severity, topic=topic, text=sentence))
        order = {"error": 0, "warning": 1, "note": 2}
        return tuple(sorted(found, key=lambda finding: order[finding.severity]))

    def refuse_or_log(self, source: str) -> None:
        """Raise UserError with the first error, else log the warnings, a line each."""
        for finding in self.findings():
            if finding.severity == "error":
                raise UserError(f"The scenes in {source} cannot be used: {finding.text}")
            if finding.severity == "warning":
                log.warning("%s: %s", source, finding.text)


class Marks:
    """The objects of one image, as they are read.

    Args:
        size: Height and width of the image, px.
        problems: Where trouble is counted.
    """

    def __init__(self, size: tuple[int, int], problems: Problems) -> None:
        self._size, self._problems = size, problems
        self._boxes: list[tuple[float, float, float, float]] = []
        self._classes: list[int] = []
        self._crowd: list[bool] = []
        self._masks: list[Rle | None] = []

    def add(self, box: Sequence[Any], label: int, where: str, *, crowd: bool = False, mask: Rle | None = None) -> None:
        """One object by left, top, right, bottom, px; cut off at the image's border, or left out if nothing is within."""
        height, width = self._size
        try:
            left, top, right, bottom = (float(value) for value in box)
        except (TypeError, ValueError):
            self._problems.add("box", where)
            return
        if not np.isfinite((left, top, right, bottom)).all():
            self._problems.add("box", where)
            return
        if right <= left or bottom <= top:
            self._problems.add("zero area", where)
            return
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            self._problems.add("outside", where)
            return
        if min(left, top, width - right, height - bottom) < -_TOLERANCE:
            self._problems.add("partly outside", where)
        if crowd:
            self._problems.add("crowd", where)
        self._boxes.append((max(left, 0), max(top, 0), min(right, width), min(bottom, height)))
        self._classes.append(label)
        self._crowd.append(crowd)
        self._masks.append(mask)

    def objects(self) -> Objects:
        """All that were added."""
        return Objects(
            boxes=np.array(self._boxes, dtype=np.float32).reshape(-1, 4),
            classes=np.array(self._classes, dtype=np.int64),
            crowd=np.array(self._crowd, dtype=np.bool_),
            masks=tuple(self._masks),
        )


def inside(name: str) -> str | None:
    """A relative file name in posix form, or None if it leads out of its folder, is absolute, or is none.

    Example:
        >>> inside("a/./b.jpg"), inside("a/../../b.jpg"), inside("/etc/passwd"), inside("C:/b.jpg")
        ('a/b.jpg', None, None, None)
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name or ":" in path.parts[0]:
        return None
    return path.as_posix()


def upright_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as it is loaded, px, from its header alone where that tells.

    Raises:
        UserError: as `files.read_image`.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # EXIF's orientation: lying on a side
            return (width, height) if turned else (height, width)
    except Exception:  # whatever a damaged header raises: decoding says it in one sentence
        width, height = read_image(path).size
        return height, width
