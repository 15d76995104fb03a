"""What a run of ViSFT works on: the scenes and their parts, the backbone, the vocabulary, and the kept maps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout, SceneDataset, Task, UserError
from keepsight.data.scenes_load import load_scenes
from keepsight.data.words import Words
from keepsight.features.maps import SceneMaps
from keepsight.recipes.visft_settings import VisftConfig

Indices = NDArray[np.int64]
RECIPE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Scenes:
    """The data set and its parts.

    Attributes:
        dataset: All of it.
        train: Images to learn from.
        validation: Images that choose rungs and checkpoints.
        tests: By the name of the part; empty where the data has none.
        words: The vocabulary of the training captions; None where captioning is no task.
    """

    dataset: SceneDataset
    train: Indices
    validation: Indices
    tests: dict[str, Indices]
    words: Words | None

    def measured(self) -> dict[str, Indices]:
        """Validation and tests by name."""
        return {"validation": self.validation, **self.tests}

    def of_task(self, indices: Indices, task: Task) -> Indices:
        """Those of the images that a task can learn from or be measured on."""
        dataset = self.dataset
        if task == "captioning":
            return np.array([i for i in indices.tolist() if dataset.captions[i]], dtype=np.int64)
        return indices

    def content(self) -> str:
        """Sha256 (hex) of the training images with all that is said of them."""
        found = hashlib.sha256(repr(self.dataset.classes).encode())
        for i in self.train.tolist():
            marked = self.dataset.objects[i]
            found.update(self.dataset.images.content_hash(i))
            found.update(marked.boxes.tobytes() + marked.classes.tobytes() + marked.crowd.tobytes())
            found.update(b"".join(mask.counts for mask in marked.masks if mask is not None))
            found.update(repr(self.dataset.captions[i]).encode())
        return found.hexdigest()


def open_scenes(config: VisftConfig) -> Scenes:
    """The data of a run, checked for what its tasks need.

    Raises:
        UserError: It cannot be read, or lacks what a task learns from.
    """
    dataset = load_scenes(config.data)
    parts = list(dict.fromkeys(dataset.parts))
    train = dataset.of("train") if "train" in parts else dataset.of("")
    if not len(train):
        raise UserError(
            f"{config.data} has no part to learn from: it needs images in 'train' (it has {', '.join(parts) or 'none'})."
        )
    validation = dataset.of("val")
    if not len(validation):
        order = np.random.default_rng((config.seed, 23)).permutation(train)
        held = max(1, round(config.validation * len(train)))
        train, validation = np.sort(order[held:]), np.sort(order[:held])
    if not len(train):
        raise UserError(
            f"{config.data} has a single image to learn from, which would be left to validation: add images."
        )
    tests = {part: dataset.of(part) for part in parts if part.startswith("test")}
    _check_tasks(config, dataset, train)
    words = None
    if "captioning" in config.tasks:
        words = Words.fit((text for i in train.tolist() for text in dataset.captions[i]), config.least_count)
    return Scenes(dataset, train, validation, tests, words)


def _check_tasks(config: VisftConfig, dataset: SceneDataset, train: Indices) -> None:
    marked = [dataset.objects[i] for i in train.tolist()]
    if "captioning" in config.tasks and not any(dataset.captions[i] for i in train.tolist()):
        raise UserError(f"{config.data} has no captions to learn from: leave captioning out of --tasks.")
    if config.tasks == ("captioning",):
        return
    if not dataset.has_objects or not any(len(m.classes) for m in marked):
        raise UserError(f"{config.data} has no marked objects to learn from: use --tasks captioning.")
    if "segmentation" in config.tasks and not any(mask is not None for m in marked for mask in m.masks):
        raise UserError(f"{config.data} has boxes and no masks: leave segmentation out of --tasks.")


def made_of(data: str) -> str | None:
    """The name in a suite of the data set whose pictures a set of `demo-data scenes` is composed of; None for other data."""
    try:
        recipe = json.loads((Path(data) / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    source = recipe.get("source") if isinstance(recipe, dict) else None
    return {"tuxpaint-stamps-default": "stamps"}.get(str(source), str(source))


def open_backbone(config: VisftConfig) -> tuple[Backbone, tuple[int, ...]]:
    """The backbone, and the map's blocks counted from 1.

    Raises:
        UserError: It cannot be loaded, or has no such block.
    """
    backbone = load_backbone(config.backbone)
    return backbone, Readout(blocks=config.blocks, pools=("mean",)).resolved(backbone.depth).blocks


def kept_maps(
    folder: Path, backbone: Backbone, blocks: tuple[int, ...], scenes: Scenes, config: VisftConfig
) -> dict[str, SceneMaps]:
    """Maps of each part by its name ("train", "validation", tests); augmented views of the first alone."""
    parts = {"train": scenes.train, **scenes.measured()}
    return {
        name: SceneMaps(
            folder,
            backbone,
            blocks,
            scenes.dataset,
            indices,
            config.views if name == "train" else 0,
            config.view_augmentation,
        )
        for name, indices in parts.items()
    }
