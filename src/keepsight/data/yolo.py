"""Scenes in YOLO's format: a text file of boxes or polygons an image, in shares of its sides. Knows nothing of training.

root/data.yaml            names, and train, val, test: folders of images, or .txt lists of them (`path` is where these start)
root/classes.txt          without a data.yaml: one name a line, and the images in images/ or images/{train,val,test}/
root/**/images/**/a.jpg   its objects in root/**/labels/**/a.txt: lines of CLASS X Y WIDTH HEIGHT or CLASS X1 Y1 X2 Y2 ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from keepsight.core import UserError
from keepsight.core.scene import Objects, Rle, SceneDataset
from keepsight.data.files import EXTENSIONS, FileImages
from keepsight.data.labels import check_class_names
from keepsight.data.marks import Marks, Problems, inside, upright_size
from keepsight.data.masks import MaskError, polygon_mask

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def yolo_file(source: Path) -> Path | None:
    """The file that makes a set YOLO's: a .yaml with class names, or classes.txt beside images/ and labels/; None otherwise."""
    if source.is_file():
        return source if source.suffix.lower() in (".yaml", ".yml") else None
    described = [file for pattern in ("*.yaml", "*.yml") for file in sorted(source.glob(pattern))]
    if preferred := [file for file in described if file.stem == "data"]:
        described = preferred
    for file in described:
        try:
            content = _read_yaml(file)
        except UserError:
            if file.stem == "data":
                raise
            continue  # somebody else's
        if isinstance(content, dict) and "names" in content and any(split in content for split in _SPLITS):
            return file
    names = source / "classes.txt"
    return names if names.is_file() and (source / "images").is_dir() and (source / "labels").is_dir() else None


def read_yolo(source: Path) -> SceneDataset:
    """YOLO's boxes; a polygon becomes a mask, and the box around it.

    Raises:
        UserError: if there is no such set, a file is damaged, or a line is wrong in a way that `marks.SAYS` calls an error.
    """
    dataset, problems = scan_yolo(source)
    problems.refuse_or_log(str(source))
    return dataset


def scan_yolo(source: Path) -> tuple[SceneDataset, Problems]:
    """What can be read, and everything that is wrong with the rest."""
    described = yolo_file(source)
    if described is None:
        raise UserError(
            f"{source} is not in YOLO's format: expected a data.yaml with names and train, or classes.txt with images/ and labels/."
        )
    root, problems = described.parent, Problems()
    classes, images = _described(described, problems)
    check_class_names(classes, str(described))
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    objects: list[Objects] = []
    of: list[str] = []
    for path, part in images.items():
        try:
            size = upright_size(path)
        except UserError:
            problems.add("unreadable", str(path))
            continue
        names.append(path.relative_to(root).as_posix())
        sizes.append(size)
        objects.append(_objects(_label_file(path, root), size, len(classes), problems))
        of.append(part)
        if not len(objects[-1].classes):
            problems.add("no object", names[-1])
    if not images:
        problems.add("all missing", str(root), max(1, problems.count("missing")))
    _find_orphans(root, images, problems)
    used = {int(label) for each in objects for label in each.classes}
    for index, name in enumerate(classes):
        if index not in used:
            problems.add("unused category", name)
    dataset = SceneDataset(
        name=root.resolve().name or "scenes",
        images=FileImages(root, names),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        objects=tuple(objects),
        captions=tuple(() for _ in names),
        classes=classes,
        category_ids=tuple(range(len(classes))),
        image_ids=tuple(range(1, len(names) + 1)),
        parts=tuple(of),
    )
    return dataset, problems


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not a YAML file that can be read ({' '.join(str(error).split())[:80]}).") from error


def _described(file: Path, problems: Problems) -> tuple[tuple[str, ...], dict[Path, str]]:
    """Class names, and the part of each image file, in order."""
    root = file.parent
    if file.suffix == ".txt":
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        classes = tuple(line.strip() for line in lines if line.strip())
        split = [(root / "images" / name, part) for name, part in _SPLITS.items() if (root / "images" / name).is_dir()]
        folders = split or [(root / "images", "train")]
    else:
        content = _read_yaml(file)
        if not isinstance(content, dict):
            raise UserError(f"{file} does not describe a YOLO set: expected names, and train, val or test.")
        classes = _class_names(content.get("names"), file)
        folders = [
            (place, part)
            for name, part in _SPLITS.items()
            for entry in _listed(content.get(name))
            if (place := _place(root, content.get("path"), entry, problems)) is not None
        ]
    images: dict[Path, str] = {}
    for folder, part in folders:
        for path in _images_of(folder, root, problems):
            images.setdefault(path, part)
    return classes, images


def _class_names(names: Any, file: Path) -> tuple[str, ...]:
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(
            f"{file} must name its classes, as a list or numbered from 0, but 'names' is {str(names)[:80]}."
        )
    return tuple(str(name) for name in names)


def _listed(entry: Any) -> list[str]:
    return [] if entry is None else [str(each) for each in (entry if isinstance(entry, list) else [entry])]


def _place(root: Path, base: Any, entry: str, problems: Problems) -> Path | None:
    """A split's folder or list, inside of the set.

    `path` often names a folder of the machine where the set was made: it counts only if it is inside of this one. Some tools
    write '../train/images' for what lies beside data.yaml.
    """
    name = inside(entry[3:] if entry.startswith("../") else entry)
    below = inside(str(base)) if base not in (None, "", ".") else None
    if name is None:
        problems.add("path", repr(entry))
        return None
    places = [*([root / below / name] if below else []), root / name]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        problems.add("missing", str(places[-1]))
    return found


def _images_of(place: Path, root: Path, problems: Problems) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    found = []
    for line in place.read_text(encoding="utf-8", errors="replace").splitlines():
        if not (text := line.strip()):
            continue
        name = inside(text)
        if name is None:
            problems.add("path", repr(text))
        elif (root / name).is_file():
            found.append(root / name)
        else:
            problems.add("missing", str(root / name))
    return found


def _label_file(image: Path, root: Path) -> Path:
    """images/ becomes labels/, the last such folder within the set; without one, the file beside the image."""
    parts = list(image.relative_to(root).parts)
    places = [place for place, name in enumerate(parts[:-1]) if name == "images"]
    if places:
        parts[places[-1]] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def _objects(file: Path, size: tuple[int, int], classes: int, problems: Problems) -> Objects:
    """The objects of one label file; none where it is empty or missing, which is YOLO's way to say so."""
    marks = Marks(size, problems)
    if not file.is_file():
        return marks.objects()
    height, width = size
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        where = f"line {number} of {file.name}"
        words = line.split()
        if not words:
            continue
        try:
            label, values = float(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            problems.add("box", where)
            continue
        if not (label.is_integer() and 0 <= label < classes):
            problems.add("category", f"class {words[0]} in {where}")
        elif len(values) == 4:
            x, y, w, h = values * (width, height, width, height)
            marks.add((x - w / 2, y - h / 2, x + w / 2, y + h / 2), int(label), where)
        elif len(values) >= 6 and len(values) % 2 == 0:
            xy = values.reshape(-1, 2) * (width, height)
            (left, top), (right, bottom) = xy.min(axis=0), xy.max(axis=0)
            marks.add(
                (left, top, right, bottom), int(label), where, mask=_mask(xy.ravel().tolist(), size, where, problems)
            )
        else:
            problems.add("box", where)
    return marks.objects()


def _mask(corners: list[float], size: tuple[int, int], where: str, problems: Problems) -> Rle | None:
    try:
        return polygon_mask([corners], size)
    except MaskError as error:
        problems.add("mask", f"{where}: {error}")
        return None


def _find_orphans(root: Path, images: dict[Path, str], problems: Problems) -> None:
    """Label files whose image is not there."""
    labelled = {_label_file(path, root) for path in images}
    folders = {file.parent for file in labelled}
    for folder in sorted(folders):
        for file in sorted(folder.glob("*.txt")) if folder.is_dir() else ():
            if file not in labelled and file.name != "classes.txt" and folder.name != root.name:
                problems.add("no image", str(file))
