"""Scenes in COCO's format as published: annotation files in, a `SceneDataset` out. Knows nothing of training.

    root/annotations/instances_train2017.json, captions_train2017.json, ...     and the images in
    root/train2017/ (or images/train2017/, train/, images/train/, images/, root, or beside the annotations)
    root/train/_annotations.coco.json                                           and the images beside it

The part is the name without the year: train, val, test, test-unseen, ... (valid is val).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import UserError
from keepsight.core.scene import Objects, Rle, SceneDataset
from keepsight.data.files import FileImages
from keepsight.data.marks import Marks, Problems, inside, upright_size
from keepsight.data.masks import MaskError, coco_mask, mask_area

_NAMED = re.compile(r"(instances|captions)_(.+?)(?:20\d\d)?")
_PARTS = {"valid": "val", "validation": "val"}
_BESIDE = "_annotations.coco.json"


@dataclass(slots=True)
class _Part:
    """One part as it is collected: image entries by id, annotations by image id."""

    folder: Path
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    marks: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    captions: dict[int, list[str]] = field(default_factory=dict)
    has_marks: bool = False
    has_captions: bool = False


def coco_files(source: Path) -> list[Path]:
    """The annotation files of a folder (or the file itself), as published; none if it is not in COCO's format."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    found = [file for place in (source / "annotations", source) for file in place.glob("*.json")]
    named = [file for file in found if _NAMED.fullmatch(file.stem)]
    return sorted(named) or sorted([*source.glob(f"*/{_BESIDE}"), *source.glob(_BESIDE)])


def read_coco(source: Path, images: Path | None = None) -> SceneDataset:
    """COCO's annotations with their images.

    Args:
        source: The folder of the set, or one annotation file.
        images: The folder that file names start from, where it is not found by its usual name.

    Raises:
        UserError: if there is no such set, a file is damaged, or an annotation is wrong in a way that `marks.SAYS` calls an error.
    """
    dataset, problems = scan_coco(source, images)
    problems.refuse_or_log(str(source))
    return dataset


def scan_coco(source: Path, images: Path | None = None) -> tuple[SceneDataset, Problems]:
    """What can be read, and everything that is wrong with the rest; arguments as for `read_coco`."""
    files = coco_files(source)
    if not files:
        raise UserError(
            f"{source} holds no COCO annotations: expected annotations/instances_*.json or captions_*.json, or a .json file."
        )
    problems = Problems()
    parts: dict[str, _Part] = {}
    categories: dict[int, str] = {}
    for file in files:
        _collect(file, source, images, parts, categories, problems)
    return _dataset(source, parts, categories, problems), problems


def _collect(
    file: Path,
    source: Path,
    images: Path | None,
    parts: dict[str, _Part],
    categories: dict[int, str],
    problems: Problems,
) -> None:
    """Read one annotation file into its part."""
    content = _read_json(file)
    named = _NAMED.fullmatch(file.stem)
    entries, annotations = _records(content, "images", file), _records(content, "annotations", file)
    captions = named[1] == "captions" if named else any("caption" in each for each in annotations)
    raw = file.parent.name if file.name == _BESIDE else file.stem.split("_", 1)[1] if named else "train"
    name = named[2] if named else raw
    name = _PARTS.get(name, name)
    if name not in parts:
        parts[name] = _Part(images or _image_folder(file, source, raw, name, entries))
    part = parts[name]
    _add_images(part, entries, file, problems)
    if captions:
        part.has_captions = True
    else:
        part.has_marks = True
        for category in _records(content, "categories", file):
            _add_category(category, categories, file, problems)
    seen: set[Any] = set()
    for annotation in annotations:
        if "id" in annotation and isinstance(annotation["id"], int | str):
            if annotation["id"] in seen:
                problems.add("annotation id", f"{annotation['id']} in {file.name}")
            seen.add(annotation["id"])
        image_id = annotation.get("image_id")
        if not isinstance(image_id, int):
            problems.add("no image", f"image_id {image_id!r} in {file.name}")
        elif captions:
            part.captions.setdefault(image_id, []).append(str(annotation.get("caption") or ""))
        else:
            part.marks.setdefault(image_id, []).append(annotation)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"The annotations {file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The annotations {file} are not valid JSON ({str(error)[:80]}): was the file cut off while it was copied?"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"The annotations {file} are not COCO's: expected an object with 'images' and 'annotations'.")
    return content


def _records(content: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    records = content.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"The annotations {file} are not COCO's: expected a list of objects under {key!r}.")
    return records


def _image_folder(file: Path, source: Path, raw: str, name: str, entries: list[dict[str, Any]]) -> Path:
    """The folder that the names of the images start from: the first usual one that has one of the first images."""
    root = source if source.is_dir() else file.parent.parent if file.parent.name == "annotations" else file.parent
    if file.name == _BESIDE:
        return file.parent
    usual = [root / raw, root / "images" / raw, root / name, root / "images" / name, root / "images", root, file.parent]
    names = [found for entry in entries[:50] if (found := inside(str(entry.get("file_name")))) is not None]
    for folder in usual:
        if any((folder / each).is_file() for each in names):
            return folder
    return next((folder for folder in usual if folder.is_dir()), root)


def _add_images(part: _Part, entries: list[dict[str, Any]], file: Path, problems: Problems) -> None:
    """Add image entries; those of a part's instances and captions are the same images."""
    seen: set[int] = set()
    for entry in entries:
        image_id, name = entry.get("id"), entry.get("file_name")
        if not isinstance(image_id, int) or isinstance(image_id, bool) or not isinstance(name, str):
            raise UserError(
                f"The annotations {file} list an image without a whole number 'id' or a 'file_name': {str(entry)[:80]}."
            )
        before = part.images.setdefault(image_id, entry)
        if before["file_name"] != name:
            problems.add("image id", f"{image_id}, of {before['file_name']} and {name}")
        elif image_id in seen:
            problems.add("image twice", name)
        seen.add(image_id)


def _add_category(category: dict[str, Any], categories: dict[int, str], file: Path, problems: Problems) -> None:
    number, name = category.get("id"), category.get("name")
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str) or not name.strip():
        raise UserError(f"The annotations {file} list a category without a whole number 'id' or a 'name': {category}.")
    if categories.setdefault(number, name) != name:
        problems.add("category id", f"{number}, {categories[number]!r} and {name!r}")


def _dataset(source: Path, parts: dict[str, _Part], categories: dict[int, str], problems: Problems) -> SceneDataset:
    """All parts as one data set."""
    root = source if source.is_dir() else source.parent
    ids = sorted(categories)
    index = {number: place for place, number in enumerate(ids)}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    objects: list[Objects] = []
    captions: list[tuple[str, ...]] = []
    image_ids: list[int] = []
    of: list[str] = []
    for name, part in parts.items():
        for image_id, entry in part.images.items():
            path = _path(part, entry, problems)
            size = None if path is None else _size(path, entry, problems)
            if path is None or size is None:
                continue
            names.append(path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute()))
            sizes.append(size)
            objects.append(_objects(part.marks.get(image_id, []), size, index, problems))
            captions.append(_captions(part, image_id, entry, problems))
            image_ids.append(image_id)
            of.append(name)
            if part.has_marks and not len(objects[-1].classes):
                problems.add("no object", names[-1])
        for image_id in (part.marks.keys() | part.captions.keys()) - part.images.keys():
            number = len(part.marks.get(image_id, ())) + len(part.captions.get(image_id, ()))
            problems.add("no image", f"image_id {image_id} in {name}", number)
    if not names and (missing := problems.count("missing")):
        problems.add("all missing", str(next(iter(parts.values())).folder), missing)
    used = {int(label) for each in objects for label in each.classes}
    for number in ids:
        if index[number] not in used:
            problems.add("unused category", categories[number])
    return SceneDataset(
        name=root.resolve().name or "scenes",
        images=FileImages(root, names),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        objects=tuple(objects),
        captions=tuple(captions),
        classes=tuple(categories[number] for number in ids),
        category_ids=tuple(ids),
        image_ids=tuple(image_ids),
        parts=tuple(of),
        has_objects=any(part.has_marks for part in parts.values()),
    )


def _path(part: _Part, entry: dict[str, Any], problems: Problems) -> Path | None:
    name = inside(entry["file_name"])
    if name is None:
        problems.add("path", repr(entry["file_name"]))
        return None
    path = part.folder / name
    if not path.is_file():
        problems.add("missing", str(path))
        return None
    return path


def _size(path: Path, entry: dict[str, Any], problems: Problems) -> tuple[int, int] | None:
    """Height and width by the annotations, else by the file."""
    height, width = entry.get("height"), entry.get("width")
    if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        return height, width
    try:
        return upright_size(path)
    except UserError:
        problems.add("unreadable", str(path))
        return None


def _objects(
    annotations: list[dict[str, Any]], size: tuple[int, int], index: dict[int, int], problems: Problems
) -> Objects:
    marks = Marks(size, problems)
    for annotation in annotations:
        where = f"annotation {annotation.get('id')} of image {annotation['image_id']}"
        category = annotation.get("category_id")
        if not isinstance(category, int) or category not in index:
            problems.add("category", f"category {category!r} in {where}")
            continue
        written = annotation.get("bbox")
        box: tuple[float, ...] = ()
        if isinstance(written, list) and len(written) == 4 and all(isinstance(value, int | float) for value in written):
            left, top, width, height = written
            box = (left, top, left + width, top + height)
        mask = _mask(annotation.get("segmentation"), size, where, problems)
        marks.add(box, index[category], where, crowd=annotation.get("iscrowd") in (1, True), mask=mask)
    return marks.objects()


def _mask(segmentation: Any, size: tuple[int, int], where: str, problems: Problems) -> Rle | None:
    if not segmentation:
        return None
    try:
        mask = coco_mask(segmentation, size)
    except MaskError as error:
        problems.add("mask size" if error.wrong_size else "mask", f"{where}: {error}")
        return None
    if mask_area(mask) == 0:
        problems.add("empty mask", where)
        return None
    return mask


def _captions(part: _Part, image_id: int, entry: dict[str, Any], problems: Problems) -> tuple[str, ...]:
    if not part.has_captions:
        return ()
    texts = [" ".join(text.split()) for text in part.captions.get(image_id, [])]
    if empty := texts.count(""):
        problems.add("empty caption", entry["file_name"], empty)
    found = tuple(text for text in texts if text)
    if not found:
        problems.add("no caption", entry["file_name"])
    return found
