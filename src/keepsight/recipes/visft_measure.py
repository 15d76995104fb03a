"""What the heads of ViSFT are worth on the parts of the data, with a backbone as it is now: answers, figures with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from keepsight.core import Answer, Backbone, SceneDataset, Task, TaskHead
from keepsight.core.features import feature_map
from keepsight.core.progress import Track
from keepsight.data.masks import encode_mask
from keepsight.data.moves import Placement
from keepsight.data.scene_transforms import load_scene_batch
from keepsight.evaluate.captions import CaptionScores, caption_scores
from keepsight.evaluate.coco import ApMetric, APs, Kind, Located, ap_interval, average_precision
from keepsight.evaluate.intervals import Interval
from keepsight.features.maps import SceneMaps
from keepsight.recipes.visft_data import Indices, Scenes

BATCH = 32

ReadMaps = Callable[[Indices], Tensor]
"""Indices [B] -> maps [B, C, h, w]."""

MAIN: dict[Task, str] = {"detection": "box_ap50", "segmentation": "mask_ap50", "captioning": "bleu4"}
"""The figure of each task by which rungs are told apart."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One task on one part.

    Attributes:
        task: The task.
        n: Images.
        figures: By metric, with 95 % intervals over images.
        found: What was found in each image, for boxes and masks.
        said: What was said of each image, for captions.
        aps: With and without classes, for boxes and masks.
    """

    task: Task
    n: int
    figures: dict[str, Interval]
    found: tuple[Located, ...] = ()
    said: tuple[str, ...] = ()
    aps: tuple[APs, ...] = ()


def from_maps(maps: SceneMaps) -> ReadMaps:
    """Kept maps of the frozen backbone."""
    return lambda rows: maps.read(rows, np.zeros(len(rows), dtype=np.int64))


def from_backbone(backbone: Backbone, blocks: tuple[int, ...], dataset: SceneDataset) -> ReadMaps:
    """Maps of a backbone as it is now."""
    return from_map(lambda images: feature_map(backbone(images, blocks)), backbone, dataset)


def from_map(make: Callable[[Tensor], Tensor], backbone: Backbone, dataset: SceneDataset) -> ReadMaps:
    """Maps that `make` gives of images [B, 3, S, S]."""

    def read(rows: Indices) -> Tensor:
        images, _ = load_scene_batch(dataset, rows, backbone.preprocessing)
        with torch.no_grad():
            return make(images.to(next(backbone.parameters()).device))

    return read


def answers_of(
    heads: Mapping[Task, TaskHead], read: ReadMaps, rows_of: Mapping[Task, Indices], what: str
) -> dict[Task, list[Answer]]:
    """Each head's answers to its images, in their order; every image passes the backbone once for all heads."""
    found: dict[Task, dict[int, Answer]] = {task: {} for task in heads}
    for head in heads.values():
        head.eval()
    every = np.unique(np.concatenate([rows_of[task] for task in heads]))
    with Track(what, len(every), "images") as track:
        for first in range(0, len(every), BATCH):
            rows = every[first : first + BATCH]
            maps_BChw = read(rows)
            for task, head in heads.items():
                own_B = np.isin(rows, rows_of[task])
                maps = maps_BChw[torch.from_numpy(own_B)].to(next(head.parameters()).device)
                found[task] |= dict(zip(rows[own_B].tolist(), head.answers(maps), strict=True))
            track.advance(len(rows))
    return {task: [found[task][row] for row in rows_of[task].tolist()] for task in heads}


def located(answer: Answer, size: tuple[int, int], backbone: Backbone) -> Located:
    """An answer in the pixels of the stored image of the size (height, width)."""
    placement = Placement.of(size, backbone.preprocessing)
    boxes = placement.boxes(answer.boxes.cpu()).numpy().astype(np.float32)
    masks = None
    if answer.masks.shape[-1]:
        masks = tuple(encode_mask(mask) for mask in placement.masks(answer.masks.cpu()).numpy())
    return Located(boxes, answer.classes.cpu().numpy(), answer.scores.cpu().numpy().astype(np.float32), masks)


def located_all(
    answers: Sequence[Answer], backbone: Backbone, dataset: SceneDataset, indices: Indices
) -> list[Located]:
    """The answers to these images, in the pixels of the stored ones."""
    return [located(a, _size(dataset, i), backbone) for a, i in zip(answers, indices.tolist(), strict=True)]


def measure(task: Task, answers: Sequence[Answer], backbone: Backbone, scenes: Scenes, indices: Indices) -> Measured:
    """A task's figures on some images: AP of boxes or masks with and without their classes, or scores of generated captions."""
    dataset = scenes.dataset
    if task == "captioning":
        assert scenes.words is not None
        said = tuple(scenes.words.decode(answer.words.tolist()) for answer in answers)
        scores: CaptionScores = caption_scores(said, [dataset.captions[i] for i in indices.tolist()])
        return Measured(task, scores.n, scores.metrics, said=said)
    return scored(task, located_all(answers, backbone, dataset, indices), dataset, indices)


def _size(dataset: SceneDataset, index: int) -> tuple[int, int]:
    height, width = dataset.sizes[index].tolist()
    return height, width


METRICS: tuple[ApMetric, ...] = ("ap", "ap50", "ap75")


def scored(task: Task, found: Sequence[Located], dataset: SceneDataset, indices: Indices) -> Measured:
    """AP of boxes or masks, with and without their classes."""
    kind: Kind = "segm" if task == "segmentation" else "bbox"
    name = "mask" if task == "segmentation" else "box"
    figures: dict[str, Interval] = {}
    both = []
    for agnostic in (False, True):
        aps = average_precision(found, dataset, indices, kind, agnostic)
        both.append(aps)
        for metric in METRICS:
            title = f"{name}_{metric}" + ("_agnostic" if agnostic else "")
            figures[title] = ap_interval([aps], metric)
    return Measured(task, len(indices), figures, tuple(found), aps=tuple(both))


def measure_all(
    heads: Mapping[Task, TaskHead],
    read_of: Callable[[str], ReadMaps],
    backbone: Backbone,
    scenes: Scenes,
    parts: Sequence[str],
) -> dict[tuple[Task, str], Measured]:
    """Every task on every part that has images for it."""
    found: dict[tuple[Task, str], Measured] = {}
    for part in parts:
        rows_of = {task: scenes.of_task(scenes.measured()[part], task) for task in heads}
        able = {task: head for task, head in heads.items() if len(rows_of[task])}
        if able:
            answers = answers_of(able, read_of(part), rows_of, f"answers on {part}")
            found |= {(t, part): measure(t, answers[t], backbone, scenes, rows_of[t]) for t in able}
    return found
