"""Scenes in Pascal VOC's format: boxes from XML, the split from ImageSets. Knows nothing of training.

    root/Annotations/NAME.xml, root/JPEGImages/NAME.jpg, root/ImageSets/Main/{train,val,trainval,test}.txt

or VOCdevkit/VOC2007/ around it. `coco_write.write_coco(read_voc(root), target, images=True)` makes it a COCO set.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from keepsight.core import UserError
from keepsight.core.scene import Objects, SceneDataset
from keepsight.data.files import FileImages
from keepsight.data.labels import index_labels
from keepsight.data.marks import Marks, Problems, inside, upright_size
from keepsight.data.xml_files import parse_xml


def voc_root(source: Path) -> Path | None:
    """The folder with Annotations and JPEGImages: the source, or the only one up to two folders deeper; None if there is none."""
    if not source.is_dir():
        return None
    found = [source, *sorted(source.glob("VOC*")), *sorted(source.glob("VOCdevkit/VOC*"))]
    found = [place for place in found if (place / "Annotations").is_dir() and (place / "JPEGImages").is_dir()]
    if len(found) > 1:
        raise UserError(
            f"{source} holds several sets of Pascal VOC ({', '.join(p.name for p in found)}): give one of them."
        )
    return found[0] if found else None


def read_voc(source: Path) -> SceneDataset:
    """Pascal VOC's boxes; objects marked as difficult become crowd regions, since both neither train nor count as a miss.

    VOC counts pixels from 1 and includes the last one: xmin 1, xmax 10 are the boundaries 0 and 10 here.

    Raises:
        UserError: if there is no such set, a file is damaged, or an annotation is wrong in a way that `marks.SAYS` calls an error.
    """
    dataset, problems = scan_voc(source)
    problems.refuse_or_log(str(source))
    return dataset


def scan_voc(source: Path) -> tuple[SceneDataset, Problems]:
    """What can be read, and everything that is wrong with the rest."""
    root = voc_root(source)
    if root is None:
        raise UserError(
            f"{source} is not in Pascal VOC's format: expected the folders Annotations and JPEGImages in it."
        )
    problems = Problems()
    parts = _parts(root, problems)
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    marked: list[list[tuple[str, tuple[str | None, ...], bool, str]]] = []
    of: list[str] = []
    for stem, part in parts.items():
        file = root / "Annotations" / f"{stem}.xml"
        tree = parse_xml(file) if file.is_file() else None
        image = _image(root, stem, tree, problems)
        size = None if image is None else _size(image, tree, problems)
        if image is None or size is None:
            continue
        names.append(image.relative_to(root).as_posix())
        sizes.append(size)
        marked.append([] if tree is None else _marked(tree, file.name))
        of.append(part)
    if not names and (missing := problems.count("missing")):
        problems.add("all missing", str(root / "JPEGImages"), missing)
    _, classes = index_labels([name for objects in marked for name, *_ in objects if name], f"The set {source}")
    objects = [_objects(each, size, classes, problems) for each, size in zip(marked, sizes, strict=True)]
    for name, each in zip(names, objects, strict=True):
        if not len(each.classes):
            problems.add("no object", name)
    dataset = SceneDataset(
        name=root.resolve().name,
        images=FileImages(root, names),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        objects=tuple(objects),
        captions=tuple(() for _ in names),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        image_ids=tuple(range(1, len(names) + 1)),
        parts=tuple(of),
    )
    return dataset, problems


def _parts(root: Path, problems: Problems) -> dict[str, str]:
    """The part of each image by its stem; trainval is training where there is no train list, and all is without any list."""
    lists = root / "ImageSets" / "Main"
    wanted = [part for part in ("train", "val", "test") if (lists / f"{part}.txt").is_file()]
    files = {part: lists / f"{part}.txt" for part in wanted}
    if "train" not in files and (lists / "trainval.txt").is_file():
        files["train"] = lists / "trainval.txt"
    if not files:
        return {file.stem: "train" for file in sorted((root / "Annotations").glob("*.xml"))}
    parts: dict[str, str] = {}
    for part, file in files.items():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            stem = line.split()[0] if line.split() else ""
            if stem and (inside(stem) != stem or "/" in stem):
                problems.add("path", repr(stem))
            elif stem:
                parts.setdefault(stem, part)
    return parts


def _image(root: Path, stem: str, tree: ElementTree.Element | None, problems: Problems) -> Path | None:
    """The image by the name in its annotation, else by its stem."""
    written = tree.findtext("filename") if tree is not None else None
    if written and (inside(written) is None):
        problems.add("path", repr(written))
        return None
    candidates = [
        root / "JPEGImages" / name for name in (written, f"{stem}.jpg", f"{stem}.png", f"{stem}.jpeg") if name
    ]
    for path in candidates:
        if path.is_file():
            return path
    problems.add("missing", str(candidates[0]))
    return None


def _size(image: Path, tree: ElementTree.Element | None, problems: Problems) -> tuple[int, int] | None:
    try:
        written = ("", "") if tree is None else (tree.findtext("size/height", ""), tree.findtext("size/width", ""))
        height, width = (int(value) for value in written)
        if height > 0 and width > 0:
            return height, width
    except ValueError:
        pass
    try:
        return upright_size(image)
    except UserError:
        problems.add("unreadable", str(image))
        return None


def _marked(tree: ElementTree.Element, file: str) -> list[tuple[str, tuple[str | None, ...], bool, str]]:
    """Name, box as written, whether difficult, and where it stands."""
    found = []
    for number, each in enumerate(tree.iter("object"), start=1):
        name = (each.findtext("name") or "").strip()
        box = tuple(each.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (each.findtext("difficult") or "0").strip() == "1"
        found.append((name, box, difficult, f"object {number} of {file}"))
    return found


def _objects(
    marked: list[tuple[str, tuple[str | None, ...], bool, str]],
    size: tuple[int, int],
    classes: tuple[str, ...],
    problems: Problems,
) -> Objects:
    marks = Marks(size, problems)
    for name, written, difficult, where in marked:
        if not name:
            problems.add("category", f"no name in {where}")
            continue
        try:
            left, top, right, bottom = (float(value or "") for value in written)
        except ValueError:
            problems.add("box", where)
            continue
        marks.add((left - 1, top - 1, right, bottom), classes.index(name), where, crowd=difficult)
    return marks.objects()
