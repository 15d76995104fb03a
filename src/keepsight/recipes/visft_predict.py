"""Boxes, masks and captions of new pictures by a finished run of ViSFT: COCO's JSON, and the pictures with the answers drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from keepsight.backbones.load import load_backbone
from keepsight.core import Answer, Backbone, ImageList, Task, TaskHead, UserError
from keepsight.core.features import feature_map
from keepsight.core.files import atomic_file, make_directory, write_text
from keepsight.core.progress import Track, log
from keepsight.data.masks import decode_mask
from keepsight.data.transforms import load_batch
from keepsight.data.words import Words
from keepsight.evaluate.coco import Located
from keepsight.features.device import this_device
from keepsight.recipes.visft_heads import VOCABULARY, read_head
from keepsight.recipes.visft_measure import located
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.report.scene_pictures import Shown, drawn
from keepsight.report.visft import read_visft_facts

SHAPES: tuple[Task, ...] = ("detection", "segmentation")


@dataclass(frozen=True, slots=True)
class SceneModel:
    """What a run of ViSFT leaves: the backbone (tuned where stage 2 was run), its map's blocks, the heads, classes and words."""

    backbone: Backbone
    blocks: tuple[int, ...]
    heads: Mapping[Task, TaskHead]
    classes: tuple[str, ...]
    words: Words | None


def load_scene_model(path: str | Path) -> SceneModel:
    """The model in a run's folder.

    Raises:
        UserError: There is none, or a head is missing or damaged.
    """
    folder = Path(path)
    facts = read_visft_facts(folder)
    config = VisftConfig.model_validate(facts.config)
    tuned = folder / "backbone"
    backbone = load_backbone(f"{tuned}/") if tuned.is_dir() else load_backbone(config.backbone)
    heads: dict[Task, TaskHead] = {}
    blocks: tuple[int, ...] = ()
    for task in config.tasks:
        found = read_head(folder / "heads" / task)
        if found is None:
            raise UserError(
                f"The head for {task} in {folder} is missing or damaged: start the run again, which repairs it."
            )
        heads[task], blocks = found.head, found.record.blocks
    file = folder / "heads" / "captioning" / VOCABULARY
    words = Words.from_json(file.read_text(encoding="utf-8"), str(file)) if file.is_file() else None
    return SceneModel(backbone, blocks, heads, facts.classes, words)


def predict_scenes(
    model: SceneModel, images: ImageList, out: Path, least_score: float = 0.3, skip_bad: bool = False
) -> int:
    """Write predictions.json and pictures/NUMBER.png; the number of images that were answered.

    The JSON has COCO's lists: images (id, file_name, height, width), categories, annotations (bbox, score, and segmentation of
    mask heads; `task` says which head) and captions (image_id, caption). Pictures show answers of at least `least_score`.

    Raises:
        UserError: An image cannot be read (without `skip_bad`), or none can.
    """
    device = this_device()
    model.backbone.to(device).eval()
    listed, annotations, captions = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
    make_directory(out / "pictures")
    with Track("predicting", len(images), "images") as track:
        for index in range(len(images)):
            try:
                picture = images.load(index)
            except UserError as error:
                if not skip_bad:
                    raise
                log.warning("left out: %s", error)
                continue
            number = index + 1
            found = _answers(model, images, index, device)
            listed.append(
                {"id": number, "file_name": images.name(index), "height": picture.height, "width": picture.width}
            )
            shown: list[Shown] = []
            for task in SHAPES:
                if task in found:
                    where = located(found[task], (picture.height, picture.width), model.backbone)
                    annotations += _listed(where, number, task, len(annotations))
                    shown += _shown(where, model.classes, least_score)
            caption = ""
            if "captioning" in found and model.words is not None:
                caption = model.words.decode(found["captioning"].words.tolist())
                captions.append({"image_id": number, "caption": caption})
            with atomic_file(out / "pictures" / f"{number:06d}.png") as temporary:
                drawn(picture, shown, caption).save(temporary, format="PNG")
            track.advance(1)
    if not listed:
        raise UserError("There is no image to answer that can be read.")
    categories = [{"id": k, "name": name} for k, name in enumerate(model.classes)]
    said = {"images": listed, "categories": categories, "annotations": annotations, "captions": captions}
    write_text(out / "predictions.json", json.dumps(said, ensure_ascii=False) + "\n")
    return len(listed)


def _answers(model: SceneModel, images: ImageList, index: int, device: torch.device) -> dict[Task, Answer]:
    inputs = load_batch(images, [index], model.backbone.preprocessing).to(device)
    with torch.no_grad():
        seen = feature_map(model.backbone(inputs, model.blocks))
    return {task: head.to(device).eval().answers(seen)[0] for task, head in model.heads.items()}


def _listed(found: Located, image: int, task: str, taken: int) -> list[dict[str, Any]]:
    lines = []
    for row in range(len(found.scores)):
        left, top, right, bottom = (float(side) for side in found.boxes[row])
        line: dict[str, Any] = {
            "id": taken + row + 1,
            "image_id": image,
            "category_id": int(found.classes[row]),
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "area": round((right - left) * (bottom - top), 2),
            "iscrowd": 0,
            "score": round(float(found.scores[row]), 5),
            "task": task,
        }
        if found.masks is not None:
            mask = found.masks[row]
            line["segmentation"] = {"size": list(mask.size), "counts": mask.counts.decode()}
        lines.append(line)
    return lines


def _shown(found: Located, classes: tuple[str, ...], least_score: float) -> list[Shown]:
    shown = []
    for row in range(len(found.scores)):
        if found.scores[row] < least_score:
            continue
        left, top, right, bottom = (float(side) for side in found.boxes[row])
        place = int(found.classes[row])
        mask = None if found.masks is None else decode_mask(found.masks[row])
        label = f"{classes[place]} {found.scores[row]:.2f}"
        shown.append(Shown((left, top, right, bottom), label, place, mask))
    return shown
