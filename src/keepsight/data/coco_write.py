"""A `SceneDataset` as files in COCO's format, which `coco.read_coco` reads back. Knows no other format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keepsight.core.files import make_directory, write_text
from keepsight.core.scene import SceneDataset
from keepsight.data.files import FileImages
from keepsight.data.marks import inside
from keepsight.data.masks import mask_area


def write_coco(dataset: SceneDataset, folder: Path, *, images: bool = False) -> None:
    """Write annotations/instances_PART.json and captions_PART.json, which `read_coco` reads back.

    Args:
        dataset: Its images are files below `folder` under their names already, or `images` is set.
        folder: The folder of the set.
        images: Copy the images, too; those that are no files become PNG.
    """
    make_directory(folder / "annotations")
    names = [
        _copied(dataset, index, folder) if images else dataset.images.name(index)
        for index in range(len(dataset.images))
    ]
    for part in dict.fromkeys(dataset.parts):
        rows = dataset.of(part).tolist()
        label = part or "train"
        prefix = f"{label}/"
        in_folder = all(names[row].startswith(prefix) for row in rows)
        entries = [
            {
                "id": dataset.image_ids[row],
                "file_name": names[row].removeprefix(prefix) if in_folder else names[row],
                "height": int(dataset.sizes[row][0]),
                "width": int(dataset.sizes[row][1]),
            }
            for row in rows
        ]
        if dataset.has_objects:
            instances = {
                "images": entries,
                "annotations": list(_numbered(record for row in rows for record in _instances(dataset, row))),
                "categories": [
                    {"id": number, "name": name}
                    for number, name in zip(dataset.category_ids, dataset.classes, strict=True)
                ],
            }
            write_text(folder / "annotations" / f"instances_{label}.json", json.dumps(instances) + "\n")
        if any(dataset.captions[row] for row in rows):
            captions = [
                {"image_id": dataset.image_ids[row], "caption": text} for row in rows for text in dataset.captions[row]
            ]
            written = {"images": entries, "annotations": list(_numbered(captions))}
            write_text(folder / "annotations" / f"captions_{label}.json", json.dumps(written) + "\n")


def _numbered(records: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    return ({"id": number, **record} for number, record in enumerate(records, start=1))


def _instances(dataset: SceneDataset, row: int) -> Iterable[dict[str, Any]]:
    found = dataset.objects[row]
    for box, label, crowd, mask in zip(found.boxes, found.classes, found.crowd, found.masks, strict=True):
        left, top, right, bottom = (float(value) for value in box)
        record: dict[str, Any] = {
            "image_id": dataset.image_ids[row],
            "category_id": dataset.category_ids[int(label)],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top) if mask is None else mask_area(mask),
            "iscrowd": int(crowd),
        }
        if mask is not None:
            record["segmentation"] = {"size": list(mask.size), "counts": mask.counts.decode("ascii")}
        yield record


def _copied(dataset: SceneDataset, index: int, folder: Path) -> str:
    """Copy an image into its part's folder; returns its name below `folder`."""
    part = dataset.parts[index] or "train"
    name = inside(dataset.images.name(index))
    if isinstance(dataset.images, FileImages) and name is not None:
        target = folder / part / name.removeprefix(f"{part}/")
        make_directory(target.parent)
        shutil.copyfile(dataset.images.path(index), target)
    else:
        target = make_directory(folder / part) / f"{index:08d}.png"
        dataset.images.load(index).save(target)
    return target.relative_to(folder).as_posix()
