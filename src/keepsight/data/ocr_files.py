"""Images of words in the published formats of IIIT5K-Words, SVT, ICDAR (2013 and 2015, word recognition) and IAM words.

    IIIT5K/traindata.mat, testdata.mat, train/*.png, test/*.png
    svt1/train.xml, test.xml, img/*.jpg                               words are cut out by their rectangles
    ch4_training_word_images_gt/gt.txt, word_1.png, ...               and Challenge*_Test_Task3_GT.txt beside a folder of images
    words.txt (or ascii/words.txt), words/a01/a01-000u/a01-000u-00-00.png

ICDAR's coords.txt (where the word stands within its cut-out) is not used. Knows nothing of what reads the words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.data.cropped import Crop, CroppedImages
from keepsight.data.files import FileImages
from keepsight.data.marks import inside
from keepsight.data.word_set import WordPart, WordSet
from keepsight.data.xml_files import parse_xml

PARTS: tuple[WordPart, WordPart] = ("train", "test")

IAM_TEST_SHARE = 5
"""Without a published split one in so many of IAM's texts (a01, a02, ...) is measured, whole with all of its writers."""

_ICDAR_LINE = re.compile(r'(?P<name>[^,]+?)\s*,\s*"(?P<text>.*)"\s*')


def read_words(source: Path) -> WordSet:
    """The set in whichever of the four formats is there.

    Raises:
        UserError: if there is none of them, or the set is not as its format says; the line or entry is named.
    """
    for read in (read_iiit5k, read_svt, read_iam, read_icdar):
        found = read(source)
        if found is not None:
            if not found.texts:
                raise UserError(f"{source} lists no word: expected a published set with its annotations.")
            return found
    raise UserError(
        f"{source} holds no words in a format that is known: expected traindata.mat and testdata.mat (IIIT5K-Words), train.xml and "
        "test.xml (SVT), words.txt (IAM) or gt.txt (ICDAR word recognition)."
    )


def read_iiit5k(source: Path) -> WordSet | None:
    """IIIT5K-Words (Mishra et al. 2012): structs `traindata` and `testdata` with ImgName and GroundTruth; None if not here."""
    root = _root(source, ("", "IIIT5K"), ("traindata.mat", "testdata.mat"))
    if root is None:
        return None
    listed = _Listed(root)
    for part in PARTS:
        file = root / f"{part}data.mat"
        for number, (name, text) in enumerate(_structs(file) if file.is_file() else (), start=1):
            listed.add(name, text, part, f"Entry {number} of {file}")
    return listed.words("iiit5k")


def _structs(file: Path) -> list[tuple[str, str]]:
    """ImgName and GroundTruth of every struct."""
    try:
        entries = scipy.io.loadmat(file, variable_names=[file.stem])[file.stem]
        pairs = zip(np.ravel(entries["ImgName"]), np.ravel(entries["GroundTruth"]), strict=True)
        return [(_cell(name), _cell(text)) for name, text in pairs]
    except Exception as error:  # whatever a damaged MATLAB file makes scipy raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{file} cannot be read ({reason}): expected MATLAB structs '{file.stem}' with the fields ImgName and GroundTruth, as "
            "IIIT5K-Words is published."
        ) from error


def _cell(value: Any) -> str:
    """The text in a MATLAB cell."""
    (text,) = np.ravel(value)
    return str(text)


def read_svt(source: Path) -> WordSet | None:
    """Street View Text (Wang et al. 2011): rectangles with a tag each; None if not here."""
    root = _root(source, ("", "svt1"), ("train.xml", "test.xml"))
    if root is None:
        return None
    crops: list[Crop] = []
    texts: list[str] = []
    parts: list[WordPart] = []
    for part in PARTS:
        file = root / f"{part}.xml"
        for image in parse_xml(file).iter("image") if file.is_file() else ():
            name = _checked(root, (image.findtext("imageName") or "").strip(), f"An image of {file}")
            for number, each in enumerate(image.iter("taggedRectangle"), start=1):
                where = f"Rectangle {number} of {name} in {file}"
                crops.append(Crop(name, _rectangle(dict(each.attrib), where)))
                texts.append(_said((each.findtext("tag") or "").strip(), where))
                parts.append(part)
    return WordSet("svt", CroppedImages(root, crops), tuple(texts), tuple(parts))


def _rectangle(written: dict[str, str], where: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a rectangle by x, y, width and height; it may reach over the image's border."""
    try:
        x, y, width, height = (int(written[side]) for side in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        x, y, width, height = 0, 0, 0, 0
    if width < 1 or height < 1:
        raise UserError(f"{where} has no valid x, y, width and height: expected whole numbers, as SVT writes them.")
    return x, y, x + width, y + height


def read_icdar(source: Path) -> WordSet | None:
    """ICDAR 2013 and 2015, word recognition: lines `word_1.png, "Tiredness"`; None if not here.

    A list's part is what its own name says, test or train, else what the nearest folder around it says, else train. Images lie
    beside the list, or in a folder beside it of the same part. Double quotes and backslashes are escaped by a backslash.
    """
    files = sorted(
        path for depth in ("*.txt", "*/*.txt", "*/*/*.txt") for path in source.glob(depth) if _is_icdar(path)
    )
    if not files:
        return None
    listed = _Listed(source)
    for file in files:
        part = _part_by_name(file, source)
        folder: Path | None = None
        for number, line in _lines(file):
            where = f"Line {number} of {file}"
            match = _ICDAR_LINE.fullmatch(line)
            if match is None:
                raise UserError(
                    f'{where} is not understood: expected a file and its word, as in word_1.png, "Tiredness".'
                )
            folder = folder or _image_folder(file, match["name"], source)
            name = (folder.relative_to(source) / match["name"]).as_posix()
            listed.add(name, re.sub(r"\\(.)", r"\1", match["text"]), part, where)
    return listed.words("icdar")


def _is_icdar(path: Path) -> bool:
    return path.name.lower() == "gt.txt" or path.name.lower().endswith("task3_gt.txt")


def _part_by_name(path: Path, source: Path) -> WordPart:
    for name in (*reversed(path.relative_to(source).parts), source.resolve().name):
        if "train" in name.lower():
            return "train"
        if "test" in name.lower():
            return "test"
    return "train"


def _image_folder(file: Path, first: str, source: Path) -> Path:
    """Where the images of a list lie, by its first one: all parts number theirs from 1."""
    if (file.parent / first).is_file() or inside(first) is None:
        return file.parent
    part = _part_by_name(file, source)
    beside = [each for each in sorted(file.parent.iterdir()) if each.is_dir() and _part_by_name(each, source) == part]
    return next((each for each in beside if (each / first).is_file()), file.parent)


def read_iam(source: Path) -> WordSet | None:
    """IAM words (Marti and Bunke 2002): words.txt with `a01-000u-00-00 ok 154 408 768 27 51 AT A`; None if not here.

    Words whose segmentation is marked as wrong, and those whose image is missing or empty (two are as published), are left out. The
    published split is used if its lists of lines (trainset.txt, testset.txt) lie beside words.txt, with validation left out;
    without them, see `IAM_TEST_SHARE`.
    """
    root = _root(source, ("",), ("words.txt", "ascii/words.txt"))
    if root is None:
        return None
    file = next(path for path in (root / "words.txt", root / "ascii" / "words.txt") if path.is_file())
    split = _iam_split(file.parent)
    images = "words/" if (root / "words").is_dir() else ""
    listed, missing = _Listed(root), 0
    for number, line in _lines(file):
        if line.startswith("#"):
            continue
        where, fields = f"Line {number} of {file}", line.split(" ", 8)
        marks = fields[0].split("-")
        if len(fields) != 9 or len(marks) != 4 or fields[1] not in ("ok", "er", "err"):
            raise UserError(
                f"{where} is not understood: expected nine fields, as in a01-000u-00-00 ok 154 408 768 27 51 AT A."
            )
        part = _iam_part(marks, split)
        if fields[1] != "ok" or part is None:
            continue
        name = _inside(f"{images}{marks[0]}/{marks[0]}-{marks[1]}/{fields[0]}.png", where)
        path = root / name
        if not path.is_file() or not path.stat().st_size:
            missing += 1
            continue
        listed.add(name, fields[8], part, where)
    if missing:
        log.warning("%s: %d images are missing or empty and are left out", file, missing)
    return listed.words("iam")


def _iam_split(folder: Path) -> dict[str, WordPart]:
    """The part of each line (a01-000u-00) by the published lists; empty without them."""
    lists = {part: folder / f"{part}set.txt" for part in PARTS}
    if not all(file.is_file() for file in lists.values()):
        return {}
    return {line.strip(): part for part, file in lists.items() for _, line in _lines(file)}


def _iam_part(marks: Sequence[str], split: dict[str, WordPart]) -> WordPart | None:
    """The part of a word by the marks of its id: text, writer's copy, line, word; None for a line in neither list."""
    if split:
        return split.get("-".join(marks[:3]))
    drawn = int.from_bytes(hashlib.sha256(marks[0].encode()).digest()[:4], "big")
    return "test" if drawn % IAM_TEST_SHARE == 0 else "train"


class _Listed:
    """Whole image files with their words, as they are listed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: list[str] = []
        self._texts: list[str] = []
        self._parts: list[WordPart] = []

    def add(self, name: str, text: str, part: WordPart, where: str) -> None:
        """One image; UserError naming `where` if it is not there."""
        self._names.append(_checked(self._root, name, where))
        self._texts.append(_said(text, where))
        self._parts.append(part)

    def words(self, name: str) -> WordSet:
        """All that were added."""
        return WordSet(name, FileImages(self._root, self._names), tuple(self._texts), tuple(self._parts))


def _said(text: str, where: str) -> str:
    if not text:
        raise UserError(f"{where} has no word: write what the image says, or take it out.")
    return text


def _inside(name: str, where: str) -> str:
    found = inside(name) if name else None
    if found is None:
        raise UserError(f"{where} names the file {name!r}: expected one inside of the set's folder, without '..'.")
    return found


def _checked(root: Path, name: str, where: str) -> str:
    """The name of a file that is there."""
    found = _inside(name, where)
    if not (root / found).is_file():
        raise UserError(
            f"{where} names the image {found}, which is not in {root}: put it there, or take the entry out."
        )
    return found


def _root(source: Path, folders: Sequence[str], files: Sequence[str]) -> Path | None:
    """The first of the folders that holds one of the files."""
    roots = [source / folder for folder in folders]
    return next((root for root in roots if any((root / file).is_file() for file in files)), None)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not empty; UserError if the file cannot be read."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): make it readable.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8."
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip("\r\n")
