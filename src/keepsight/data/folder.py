"""Data sets as image folders. Knows nothing of tables and of splitting.

    root/CLASS/**/image                         a class per folder
    root/unlabelled/**/image, root/image        unlabelled (also spelt unlabeled)
    root/{train,val,test}/CLASS/**/image        the user's own split (val: also valid, validation), with
    root/unlabelled/**/image, root/train/image  unlabelled

Hidden files and folders are ignored. Linked folders are never followed and linked files only where they lead to a file
inside the root, so that neither a loop nor a stray link brings in what the user does not see; what is left out is
logged. Images that lie elsewhere are named by absolute path in a CSV file.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.files import EXTENSIONS, FileImages
from keepsight.data.labels import index_labels
from keepsight.data.pixels import AS_STORED, PixelConfig

_PARTS: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_UNLABELLED = frozenset({"unlabelled", "unlabeled"})


@dataclass(frozen=True, slots=True)
class _Found:
    """Images found so far: (relative posix path, class or None, part), and what was left out."""

    images: list[tuple[str, str | None, Part]] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)


def read_folder(path: Path, pixels: PixelConfig = AS_STORED) -> Dataset:
    """The image folder as a data set, in the order of the relative paths; classes in natural order.

    Raises:
        UserError: if there is no image, a split folder is without its classes, two classes are equal up to case, or a
            name is not valid Unicode.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give the folder that holds one subfolder per class.")
    found = _Found()
    folders = _folders(path)
    splits = [f for f in folders if f.name.lower() in _PARTS]
    _add(path, path, None, "", found, recursive=False)
    if splits and all(f.name.lower() in _PARTS or f.name.lower() in _UNLABELLED for f in folders):
        _read_split_folders(path, folders, found)
    else:
        for folder in folders:
            _add_class(path, folder, "", found)
    return _dataset(path, found, pixels)


def _read_split_folders(root: Path, folders: list[Path], found: _Found) -> None:
    by_part: dict[Part, Path] = {}
    for folder in folders:
        if folder.name.lower() in _UNLABELLED:
            _add(root, folder, None, "", found)
            continue
        part = _PARTS[folder.name.lower()]
        if part in by_part:
            raise UserError(f"{root} has two folders for one part, {by_part[part].name} and {folder.name}: keep one.")
        by_part[part] = folder
        before = len(found.images)
        _add(root, folder, None, part, found, recursive=False)
        for inner in _folders(folder):
            _add_class(root, inner, part, found)
        unlabelled = sum(name is None for _, name, _ in found.images[before:])
        if unlabelled == len(found.images) - before or (unlabelled and part != "train"):
            raise UserError(
                f"{folder} is taken as the {part} part of a split, but has {unlabelled} images outside of class "
                f"folders (and {len(found.images) - before - unlabelled} in them): sort its images into one folder "
                f"per class."
            )
    if "train" not in by_part:
        names = ", ".join(sorted(folder.name for folder in by_part.values()))
        raise UserError(
            f"{root} has split folders ({names}) but no train folder: add train/ with one folder per class."
        )


def _add_class(root: Path, folder: Path, part: Part, found: _Found) -> None:
    name = None if folder.name.lower() in _UNLABELLED else folder.name
    before = len(found.images)
    _add(root, folder, name, part, found)
    if len(found.images) == before:
        log.warning("%s holds no images and is ignored.", folder)


def _add(root: Path, folder: Path, name: str | None, part: Part, found: _Found, *, recursive: bool = True) -> None:
    """Add the images of a folder, and of the folders in it if recursive."""
    for entry in _entries(folder):
        if entry.is_symlink() and not _leads_to_file_inside(root, entry):
            found.links.append(entry.path)
        elif entry.is_file():
            suffix = Path(entry.name).suffix.lower()
            if suffix in EXTENSIONS:
                found.images.append((_relative(root, entry), name, part))
            else:
                found.other[suffix] += 1
    if recursive:
        for inner in _folders(folder):
            _add(root, inner, name, part, found)


def _leads_to_file_inside(root: Path, link: os.DirEntry[str]) -> bool:
    try:
        target = Path(link.path).resolve(strict=True)
    except (OSError, RuntimeError):  # broken, or a loop
        return False
    return target.is_file() and target.is_relative_to(root.resolve())


def _relative(root: Path, entry: os.DirEntry[str]) -> str:
    relative = Path(entry.path).relative_to(root).as_posix()
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise UserError(f"The file name {relative!a} in {root} is not valid UTF-8: rename the file.") from None
    return relative


def _folders(folder: Path) -> list[Path]:
    """The folders directly in a folder, without linked ones."""
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read ({error.strerror}): make it readable.") from error


def _dataset(root: Path, found: _Found, pixels: PixelConfig) -> Dataset:
    if found.links:
        log.warning(
            "%d links in %s were left out, because they are broken, link to a folder or lead out of it (first: %s).",
            len(found.links),
            root,
            found.links[0],
        )
    if found.other:
        kinds = ", ".join(f"{n} x {suffix or 'no extension'}" for suffix, n in found.other.most_common(5))
        log.warning("Files in %s that are not images by their extension were left out: %s.", root, kinds)
    if not found.images:
        hint = f" ({len(found.links)} links are not followed: name their targets in a CSV file)" if found.links else ""
        raise UserError(
            f"{root} holds no images{hint}: expected one subfolder per class with files such as "
            f"{', '.join(sorted(EXTENSIONS))}."
        )
    images = sorted(found.images, key=lambda image: image[0])
    labels, classes = index_labels([name for _, name, _ in images], f"The folder {root}")
    return Dataset(
        name=root.resolve().name or "data",
        images=FileImages(root, [name for name, _, _ in images], pixels),
        labels=labels,
        classes=classes,
        parts=tuple(part for _, _, part in images),
    )
