"""What heads answered, drawn on the first images of each part: sheets (pictures/PART.png) and a gallery. Knows no head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight.core import Rle, SceneDataset
from keepsight.core.files import atomic_file
from keepsight.data.masks import decode_mask
from keepsight.report.galleries import Gallery
from keepsight.report.page import Picture, Pictures, picture
from keepsight.report.scene_pictures import Shown, drawn, sheet

SHOWN = 8
"""Pictures of each part."""

LEAST_SCORE = 0.3

LONGEST = 320
"""Longer side of a picture on the page, px."""

TASKS = ("segmentation", "detection", "captioning")

SAID = (
    f"The first images of the part: answers scored {LEAST_SCORE} or more (masks filled, boxes framed), the generated caption, and "
    "what was marked."
)


def write_scene_examples(path: Path, dataset: SceneDataset, parts: Mapping[str, NDArray[np.int64]]) -> list[Gallery]:
    """Write pictures/PART.png, and give the same pictures one by one.

    Args:
        path: The run's folder, with its predictions.
        dataset: The images and what is marked in them.
        parts: Images of each part that was measured.
    """
    galleries = []
    for part, indices in parts.items():
        found = {task: _predictions(path, task, part) for task in TASKS}
        sheets, pictures = [], []
        for index in indices[:SHOWN].tolist():
            large, small = _answered(dataset, index, found)
            sheets.append(large)
            pictures.append(small)
        if not pictures:
            continue
        with atomic_file(sheet_file(path, part)) as temporary:
            sheet(sheets).save(temporary, format="PNG")
        block = Pictures(title=part, caption=SAID, pictures=tuple(pictures), width=LONGEST)
        galleries.append(Gallery(of=part, pictures=block))
    return galleries


def sheet_file(path: Path, part: str) -> Path:
    """Where the sheet of a part lies."""
    return path / "pictures" / f"{''.join(c if c.isalnum() or c in '-_' else '_' for c in part)}.png"


def _answered(
    dataset: SceneDataset, index: int, found: Mapping[str, Mapping[int, list[dict[str, Any]]]]
) -> tuple[Image.Image, Picture]:
    """One image with its answers: for the sheet, with the caption in it, and for the page, with the caption below."""
    number = dataset.image_ids[index]
    places = {category: k for k, category in enumerate(dataset.category_ids)}
    # Masks and boxes of different heads are shown together: masks with their own outline, boxes with class and score.
    objects = [
        _shown(one, dataset, places)
        for task in ("segmentation", "detection")
        for one in found[task].get(number, [])
        if one["score"] >= LEAST_SCORE
    ]
    caption = next((one["caption"] for one in found["captioning"].get(number, [])), "")
    image = dataset.images.load(index)
    labels = ", ".join(dict.fromkeys(one.label for one in objects)) or "nothing"
    marked = ", ".join(sorted(dataset.classes[k] for k in dataset.objects[index].classes.tolist())) or "nothing"
    lines = [f"caption: {caption}"] if caption else []
    lines += [f"a true caption: {text}" for text in dataset.captions[index][:1] if caption]
    below = "; ".join([f"marked: {marked}", *lines])
    plain = drawn(image, objects, least=LONGEST)
    return drawn(image, objects, caption), picture(plain, f"found: {labels}", below, longest=LONGEST)


def _shown(one: Mapping[str, Any], dataset: SceneDataset, places: Mapping[int, int]) -> Shown:
    left, top, width, height = one["bbox"]
    place = places[one["category_id"]]
    mask = None
    if "segmentation" in one:
        size, counts = one["segmentation"]["size"], one["segmentation"]["counts"]
        mask = decode_mask(Rle((size[0], size[1]), counts.encode()))
    label = f"{dataset.classes[place]} {one['score']:.2f}"
    return Shown((left, top, left + width, top + height), label, place, mask)


def _predictions(path: Path, task: str, part: str) -> dict[int, list[dict[str, Any]]]:
    file = path / "predictions" / f"{task}-{part}.json"
    by: dict[int, list[dict[str, Any]]] = {}
    if file.is_file():
        for one in json.loads(file.read_text(encoding="utf-8")):
            by.setdefault(one["image_id"], []).append(one)
    return by
