"""Images with captions, for alignment and retrieval, as published; and classes with prompts. Knows no tower and no head.

stamps                              Tux Paint's stamps on white with their English descriptions, split by motif
dataset_flickr30k.json              Karpathy's splits, also dataset_flickr8k.json and dataset_coco.json; the images lie beside
                                    the file, in images/ there, or where they are said to lie
FOLDER/test/0.tar 1.tar nshards.txt, FOLDER/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt
                                    CLIP-benchmark: .jpg, .png or .webp, with captions line by line (.txt) or a class (.cls)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import UNLABELLED, Dataset, ImageList, UserError
from keepsight.core.images import Part
from keepsight.data import stamps
from keepsight.data.files import FileImages
from keepsight.data.marks import inside
from keepsight.data.scene_stamps import Stamp, held_out, load_stamps
from keepsight.data.scenes import ScenesConfig
from keepsight.data.shards import read_shard_texts, read_shards, shard_files

STAMPS = "stamps"

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
"""CLIP-benchmark's files: one a line; a template has {c} where the class goes."""

MARGIN = 0.05
"""White around a stamp, in shares of its longer side."""

_PARTS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Pairs:
    """Images with one caption or several.

    Attributes:
        name: For tables.
        images: N images.
        captions: Of each image, at least one.
        parts: "train", "val" or "test" of each image.
        groups: [N] images of the same motif have the same number; no number is in two parts.
        labels: [N] a class of each image; empty where there are none.
        classes: Their names.
        stamps: Those that are held out, where the images are stamps (see `leakage`).
    """

    name: str
    images: ImageList
    captions: tuple[tuple[str, ...], ...]
    parts: tuple[str, ...]
    groups: NDArray[np.int64]
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    classes: tuple[str, ...] = ()
    stamps: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.captions) == len(self.parts) == len(self.groups) or not all(self.captions):
            raise ValueError("every image needs a caption, a part and a group")

    def rows(self, part: str) -> NDArray[np.int64]:
        """Rows of a part, ascending."""
        return np.flatnonzero(np.array(self.parts) == part)


@final
class StampPictures(ImageList):
    """Stamps in the middle of a white square, each as large as it is kept.

    Example:
        >>> red = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
        >>> picture = StampPictures([Stamp("red.png", "symbols", "a symbol", "red", red, 0)]).load(0)
        >>> picture.size, picture.getpixel((1, 1)), picture.getpixel((2, 1))
        ((4, 4), (255, 0, 0), (255, 255, 255))
    """

    def __init__(self, pool: Sequence[Stamp]) -> None:
        self._pool = tuple(pool)

    def __len__(self) -> int:
        return len(self._pool)

    def load(self, index: int) -> Image.Image:
        """The stamp composited on white."""
        stamp = Image.fromarray(self._pool[index].rgba)
        longer = max(stamp.size)
        side = longer + 2 * max(1, round(MARGIN * longer))
        white = Image.new("RGBA", (side, side), "white")
        white.alpha_composite(stamp, ((side - stamp.width) // 2, (side - stamp.height) // 2))
        return white.convert("RGB")

    def name(self, index: int) -> str:
        """Its path below the stamps' folder."""
        return self._pool[index].name

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the stamp and of how it is laid out."""
        return hashlib.sha256(f"on white, margin {MARGIN}: {self._pool[index].digest()}".encode()).digest()


def load_pairs(source: str, images: Path | None = None, part: str = "test", split: int = 0) -> Pairs:
    """Pairs by their name or place (see the head of this file): `part`, and 'train' where there is one.

    Args:
        source: "stamps", a .json file of Karpathy's, or a folder of CLIP-benchmark's.
        images: For a .json file: the folder that its images lie in.
        part: The part that is measured on.
        split: Of the stamps, see `stamp_pairs`.

    Raises:
        UserError: it is none of them, is damaged, has no such part, lacks images or leads out of its folder.
    """
    path = Path(source).expanduser()
    if source == STAMPS:
        return stamp_pairs(split)
    if path.is_file() and path.suffix.lower() == ".json":
        return read_karpathy(path, images, part)
    if path.is_dir():
        return read_captioned_shards(path, part)
    raise UserError(
        f"There are no image-caption pairs at {source!r}: give 'stamps', a file such as dataset_flickr30k.json or "
        f"dataset_coco.json, or a folder of CLIP-benchmark's with test/0.tar."
    )


def stamp_pairs(split: int = 0) -> Pairs:
    """Tux Paint's stamps with the English line of their text; whole motifs are held out as the part "test".

    Held out are stamps that composed scenes of the same split (`scenes.ScenesConfig`) do not train on: what a backbone was tuned
    on is then no test item. Stamps with equal captions are one motif, too, which is held out whole or not at all. The class is the
    category.

    Args:
        split: Which.

    Raises:
        UserError: The package that brings them is not installed.
    """
    _, pool = load_stamps("stamps")
    unseen = held_out(pool, ScenesConfig().held_out, split)
    captioned = [(stamp, caption) for stamp in pool if (caption := english(stamp.name)) is not None]
    groups = _joined([stamp.group for stamp, _ in captioned], [caption_key(caption) for _, caption in captioned])
    chosen = tuple(replace(stamp, group=group) for (stamp, _), group in zip(captioned, groups, strict=True))
    seen = {stamp.group for stamp in chosen if stamp.name not in unseen}
    classes = tuple(sorted({stamp.category for stamp in chosen}))
    return Pairs(
        name=STAMPS,
        images=StampPictures(chosen),
        captions=tuple((caption,) for _, caption in captioned),
        parts=tuple("train" if stamp.group in seen else "test" for stamp in chosen),
        stamps={stamp.digest(): stamp.name for stamp in chosen if stamp.group not in seen},
        groups=np.array(groups, dtype=np.int64),
        labels=np.array([classes.index(stamp.category) for stamp in chosen], dtype=np.int64),
        classes=classes,
    )


def english(name: str) -> str | None:
    """The first line of the text beside a stamp, which is the English one; None where there is none."""
    path = stamps.STAMPS_FOLDER / name
    for place in (path.with_suffix(".txt"), path.with_name(path.stem.removesuffix("_mirror") + ".txt")):
        if place.is_file():
            lines = place.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
            return " ".join(lines[0].split()) or None
    return None


def caption_key(caption: str) -> str:
    """What is the same for captions that say the same: lower case, without punctuation and articles.

    Example:
        >>> caption_key("A Snowman!"), caption_key("The snowman.")
        ('snowman', 'snowman')
    """
    words = re.sub(r"[^\w\s]|_", " ", caption.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or caption.casefold()


def _joined(groups: Sequence[int], keys: Sequence[str]) -> list[int]:
    """Groups that share a key become one, called by the smallest number."""
    parent = {group: group for group in groups}

    def root(group: int) -> int:
        while parent[group] != group:
            group = parent[group]
        return group

    first: dict[str, int] = {}
    for group, key in zip(groups, keys, strict=True):
        low, high = sorted((root(first.setdefault(key, group)), root(group)))
        parent[high] = low
    return [root(group) for group in groups]


def read_karpathy(file: Path, images: Path | None = None, part: str = "test") -> Pairs:
    """Karpathy's JSON: images[] with filename, filepath (COCO), split and sentences[].raw; 'restval' counts as train.

    Args:
        file: Such as dataset_flickr30k.json.
        images: The folder that the images lie in; else they are looked for in images/ beside the file, and beside the file.
        part: The part that is measured on; the train part comes with it.

    Raises:
        UserError: the file is damaged or something else, a name leads out of the folder, or images are missing.
    """
    entries = _entries(file)
    wanted = [entry for entry in entries if _PARTS.get(str(entry.get("split")), "") in ("train", part)]
    if not any(_PARTS[str(entry["split"])] == part for entry in wanted):
        raise UserError(f"The pairs {file} have no image in the part {part!r}: choose one of train, val, test.")
    names, captions = [], []
    for entry in wanted:
        parts = [str(entry[key]) for key in ("filepath", "filename") if entry.get(key)]
        if not parts or (name := inside("/".join(parts))) is None:
            raise UserError(
                f"The pairs {file} name an image {'/'.join(parts)!r} that leads out of its folder or has no name: correct the file."
            )
        names.append(name)
        captions.append(_sentences(entry, name, file))
    root = _image_root(file, images, names)
    if missing := [name for name in names if not (root / name).is_file()]:
        raise UserError(
            f"{len(missing)} of {len(names)} images of {file} are not in {root} (such as {missing[0]}): say where they are."
        )
    return Pairs(
        name=file.stem.removeprefix("dataset_"),
        images=FileImages(root, names),
        captions=tuple(captions),
        parts=tuple(_PARTS[str(entry["split"])] for entry in wanted),
        groups=np.arange(len(names)),
    )


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"The pairs {file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The pairs {file} are not valid JSON ({str(error)[:80]}): was the file cut off while it was copied?"
        ) from error
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "sentences" in entry for entry in entries):
        raise UserError(
            f"The pairs {file} are not Karpathy's: expected 'images', each with 'filename', 'split' and 'sentences'."
        )
    return entries


def _sentences(entry: dict[str, Any], name: str, file: Path) -> tuple[str, ...]:
    sentences = entry["sentences"]
    if not isinstance(sentences, list) or not all(isinstance(each, dict) for each in sentences):
        raise UserError(f"The pairs {file} have no list of sentences for {name}: expected objects with 'raw'.")
    texts = tuple(text for each in sentences if (text := " ".join(str(each.get("raw") or "").split())))
    if not texts:
        raise UserError(f"The pairs {file} have no sentence for {name}: leave the image out, or give it one.")
    return texts


def _image_root(file: Path, images: Path | None, names: Sequence[str]) -> Path:
    if images is not None:
        return images
    usual = [
        file.parent / "images",
        *(file.parent / f"{file.stem.removeprefix('dataset_')}{end}" for end in ("-images", "_images")),
    ]
    return next((place for place in usual if (place / names[0]).is_file()), file.parent)


def read_captioned_shards(folder: Path, part: str = "test") -> Pairs:
    """CLIP-benchmark's retrieval data: the .txt beside an image holds its captions, one a line.

    Raises:
        UserError: no shards, fewer than nshards.txt says, an image without a caption, or see `shards.read_shards`.
    """
    images, texts = read_shard_texts(_shard_folder(folder, part))
    captions = tuple(
        tuple(" ".join(line.split()) for line in (text or "").splitlines() if line.strip()) for text in texts
    )
    if bare := [images.name(i) for i, each in enumerate(captions) if not each]:
        raise UserError(
            f"{len(bare)} images in {folder / part} have no caption (such as {bare[0]}): expected KEY.jpg and KEY.txt."
        )
    return Pairs(
        name=folder.resolve().name,
        images=images,
        captions=captions,
        parts=(part,) * len(captions),
        groups=np.arange(len(captions)),
    )


def is_clip_benchmark(folder: Path) -> bool:
    """Whether a folder holds CLIP-benchmark's data for classification.

    Example:
        >>> is_clip_benchmark(Path("/nowhere"))
        False
    """
    return (folder / CLASSNAMES).is_file() and any(shard_files(each) for each in folder.glob("*/") if each.is_dir())


def read_clip_benchmark(folder: Path, part: str = "test") -> tuple[Dataset, tuple[str, ...]]:
    """CLIP-benchmark's data for classification: images with the classes of classnames.txt, and the templates (may be none).

    Raises:
        UserError: see `read_captioned_shards`; or a class that is no number of a line of classnames.txt.
    """
    classes = read_lines(folder / CLASSNAMES)
    found = read_shards(_shard_folder(folder, part))
    numbers = {name: int(name) if name.isascii() and name.isdigit() else len(classes) for name in found.classes}
    if bad := [name for name, number in numbers.items() if number >= len(classes)]:
        raise UserError(
            f"The shards in {folder / part} have the class {bad[0]!r}, but {folder / CLASSNAMES} has {len(classes)} lines: a "
            f"number from 0 to {len(classes) - 1} was expected."
        )
    of_class = np.array([*(numbers[name] for name in found.classes), UNLABELLED])
    templates = read_lines(folder / TEMPLATES) if (folder / TEMPLATES).is_file() else ()
    anywhere: Part = ""
    parts = (anywhere,) * len(found.labels)
    data = Dataset(folder.resolve().name, found.images, of_class[found.labels], classes, parts)
    return data, templates


def read_lines(file: Path) -> tuple[str, ...]:
    """The lines of a small text file, without empty ones at its end."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {file} cannot be read as text ({error}): expected one name a line.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"The file {file} has an empty line: expected one name a line.")
    return tuple(line.strip() for line in lines)


def _shard_folder(folder: Path, part: str) -> Path:
    """The folder of a part's shards, which must be all there."""
    place = folder / part if (folder / part).is_dir() else folder
    shards, told = shard_files(place), place / "nshards.txt"
    if not shards:
        raise UserError(f"{folder} holds no shards: expected {part}/0.tar, as CLIP-benchmark writes them.")
    if told.is_file() and (count := told.read_text(encoding="utf-8").strip()) != str(len(shards)):
        raise UserError(f"{place} has {len(shards)} shards, but its nshards.txt says {count[:20]!r}: fetch the others.")
    return place
