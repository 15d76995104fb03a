"""Stage 1 of ViSFT: each task's head by itself on maps of the frozen backbone; finished heads are found again by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from keepsight.core import Backbone, Config, Task, TaskHead, UserError, processes
from keepsight.core.files import atomic_directory, is_sound
from keepsight.core.progress import log
from keepsight.data.streams import Stream
from keepsight.data.words import Words
from keepsight.evaluate.coco import average_precision
from keepsight.evaluate.cost import measured
from keepsight.features.maps import SceneMaps
from keepsight.methods.captioning import CaptionHead
from keepsight.methods.detection import DenseHead, DetrHead
from keepsight.methods.segmentation import MaskHead
from keepsight.methods.visft import HeadAlone, weights_hash
from keepsight.recipes.visft_data import Indices, Scenes
from keepsight.recipes.visft_measure import answers_of, from_maps, located_all
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.train import MapBatches, train, with_draws

ABOUT, WEIGHTS, VOCABULARY = "head.json", "head.safetensors", "words.json"
BATCH = 32

KINDS: dict[str, type[TaskHead]] = {"detr": DetrHead, "dense": DenseHead, "mask": MaskHead, "caption": CaptionHead}
"""What head.json calls each class."""

SelectedBy = Literal["loss", "box_ap50"]

SELECTED_BY: dict[Task, SelectedBy] = {"detection": "box_ap50", "segmentation": "loss", "captioning": "loss"}
"""What the kept weights of each task are best in on validation images.

The loss of a detector is no measure of its boxes: classes grow too sure and the loss rises while boxes still improve. AP of masks
and generated captions would take longer than the steps between two validations."""


class HeadRecord(Config):
    """head.json.

    Attributes:
        task: What the head does.
        kind: One of `KINDS`, or "own" for one that was passed in.
        shape: Keyword arguments of its class.
        key: A hash of everything that it was made from: backbone, blocks, data, settings, seed.
        weights: Sha256 of its weights.
        backbone: The backbone's name.
        blocks: Of the map.
        classes: Names, for boxes and masks.
        steps: Of training, and the one whose weights were kept.
        selected_step: See `steps`.
        seconds: Wall time of the training.
        validation: (step, score) while training, on validation images: see `selected_by`.
        selected_by: Whether the score is minus the loss, or AP50 of boxes with their classes.
    """

    task: Task
    kind: str
    shape: dict[str, Any]
    key: str
    weights: str
    backbone: str
    blocks: tuple[int, ...]
    classes: tuple[str, ...]
    steps: int = 0
    selected_step: int = 0
    seconds: float = 0.0
    validation: tuple[tuple[int, float], ...] = ()
    selected_by: SelectedBy = "loss"


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head with its record."""

    head: TaskHead
    record: HeadRecord


def fresh_head(config: VisftConfig, task: Task, channels: int, scenes: Scenes, size: int) -> tuple[str, TaskHead]:
    """A new head of a task, and its kind; its random weights are those of the run's seed."""
    torch.manual_seed(config.seed)
    classes, settings = len(scenes.dataset.classes), config.head(task)
    if task == "detection":
        kind = config.detector
        return kind, KINDS[kind](channels, classes, settings)
    if task == "segmentation":
        return "mask", MaskHead(channels, classes, size, settings)
    assert scenes.words is not None
    return "caption", CaptionHead(channels, len(scenes.words), settings)


def key_of(config: VisftConfig, task: Task, backbone: Backbone, blocks: tuple[int, ...], scenes: Scenes) -> str:
    """What the head of a task depends on, as a hash: another run's head with the same key is the same head."""
    facts = {
        "task": task,
        "backbone": backbone.weights_hash(),
        "preprocessing": backbone.preprocessing.model_dump(mode="json"),
        "blocks": blocks,
        "data": scenes.content(),
        "validation": [scenes.dataset.images.content_hash(i).hex() for i in scenes.validation.tolist()],
        "words": scenes.words.to_json() if task == "captioning" and scenes.words is not None else None,
        "kind": config.detector if task == "detection" else task,
        "head": config.head(task),
        "stage": config.stage(task).model_dump(mode="json"),
        "views": None if task == "captioning" else [config.views, config.view_augmentation.model_dump(mode="json")],
        "seed": config.seed,
    }
    if SELECTED_BY[task] != "loss":
        facts["selected_by"] = SELECTED_BY[task]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def trained_head(
    config: VisftConfig,
    task: Task,
    backbone: Backbone,
    blocks: tuple[int, ...],
    scenes: Scenes,
    maps: Callable[[], dict[str, SceneMaps]],
    folder: Path,
    elsewhere: Path | None,
    own: TaskHead | None,
) -> TrainedHead:
    """The head of a task: from `folder`, from the heads of another run, or trained now; a killed training goes on.

    Args:
        config: The run's.
        task: The task.
        backbone: Frozen.
        blocks: Of the map.
        scenes: The data.
        maps: Gives them by part; asked only where a head must be trained.
        folder: heads/ of the run.
        elsewhere: Another run's heads/; what fits is copied from there.
        own: The user's own head, trained in place of ours.

    Raises:
        UserError: The user's head is of another task.
    """
    if own is not None and own.task != task:
        raise UserError(f"The head that was given for {task} says that its task is {own.task}.")
    key = key_of(config, task, backbone, blocks, scenes)
    if own is not None:
        key = hashlib.sha256(
            f"{key} {weights_hash(own)} {json.dumps(own.shape(), sort_keys=True)}".encode()
        ).hexdigest()
    for place in (folder, elsewhere):
        found = None if place is None else read_head(place / task, key, own)
        if found is not None:
            log.info("%s: the head is there already (%s)", task, place)
            if place is not folder:
                _write(folder / task, found, scenes.words)
            return found
    kind, head = (
        ("own", own)
        if own is not None
        else fresh_head(config, task, maps()["train"].channels, scenes, backbone.preprocessing.size)
    )
    made = _trained(config, task, head, kind, key, backbone, blocks, scenes, maps(), folder)
    _write(folder / task, made, scenes.words)
    return made


def _trained(
    config: VisftConfig,
    task: Task,
    head: TaskHead,
    kind: str,
    key: str,
    backbone: Backbone,
    blocks: tuple[int, ...],
    scenes: Scenes,
    maps: dict[str, SceneMaps],
    folder: Path,
) -> TrainedHead:
    stage = config.stage(task)
    words = None if scenes.words is None else scenes.words.encode
    rows = scenes.of_task(scenes.train, task)
    batches = MapBatches(maps["train"], task, Stream(rows, stage.batch_size, config.seed), words, config.seed)
    held = scenes.of_task(scenes.validation, task)
    validate: Callable[[], float] | None = None
    if len(held):
        by_loss = SELECTED_BY[task] == "loss"
        validate = (
            loss_score(head, maps["validation"], held, task, words)
            if by_loss
            else box_score(head, maps["validation"], held, backbone, scenes)
        )
    torch.manual_seed(config.seed)
    with measured() as cost:
        checkpoints = folder.parent / "checkpoints" / task / key[:16]
        outcome = train(
            HeadAlone(head), batches, stage.steps, stage.training, checkpoints, validate, None, f"{task} head"
        )
    record = HeadRecord(
        task=task,
        kind=kind,
        shape=head.shape(),
        key=key,
        weights=weights_hash(head),
        backbone=backbone.name,
        blocks=blocks,
        classes=scenes.dataset.classes,
        steps=outcome.steps,
        selected_step=outcome.selected_step,
        seconds=cost.seconds,
        validation=tuple(outcome.validation),
        selected_by=SELECTED_BY[task],
    )
    return TrainedHead(head.eval(), record)


def loss_score(
    head: TaskHead, maps: SceneMaps, indices: Any, task: Task, words: Callable[[tuple[str, ...]], torch.Tensor] | None
) -> Callable[[], float]:
    """Minus the mean loss on these images, all of them on every process."""

    def score() -> float:
        losses, sizes = [], []
        device = next(head.parameters()).device
        for first in range(0, len(indices), BATCH):
            rows = indices[first : first + BATCH]
            plain = np.zeros(len(rows), dtype=np.int64)
            said = words if task == "captioning" else None
            # The same points at every validation, and on every process: all must keep the same weights.
            targets = with_draws(maps.targets(rows, plain, task == "segmentation", said), 0, first)
            with torch.no_grad():
                found = head.losses(maps.read(rows, plain).to(device), tuple(t.to(device) for t in targets))
            losses.append(float(torch.stack(list(found.values())).sum()))
            sizes.append(len(rows))
        return -float(np.average(losses, weights=sizes))

    return score


def box_score(
    head: TaskHead, maps: SceneMaps, indices: Indices, backbone: Backbone, scenes: Scenes
) -> Callable[[], float]:
    """AP50 of the boxes with their classes on these images, all of them on every process."""

    def score() -> float:
        with torch.no_grad():
            answers = answers_of({"detection": head}, from_maps(maps), {"detection": indices}, "validation")[
                "detection"
            ]
        found = located_all(answers, backbone, scenes.dataset, indices)
        ap50 = average_precision(found, scenes.dataset, indices, "bbox").figure("ap50")
        return ap50 if np.isfinite(ap50) else 0.0  # no object in any of them: the first weights of equals are kept

    return score


def _write(folder: Path, made: TrainedHead, words: Words | None) -> None:
    with processes.main_writes():
        if processes.is_main():
            _write_here(folder, made, words)


def _write_here(folder: Path, made: TrainedHead, words: Words | None) -> None:
    with atomic_directory(folder, sealed=True) as temporary:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in made.head.state_dict().items()}
        save_file(state, temporary / WEIGHTS)
        if made.record.task == "captioning" and words is not None:
            (temporary / VOCABULARY).write_text(words.to_json(), encoding="utf-8")
        (temporary / ABOUT).write_text(made.record.model_dump_json(indent=2), encoding="utf-8")


def read_head(folder: Path, key: str | None = None, own: TaskHead | None = None) -> TrainedHead | None:
    """The head in a folder; None where there is none with this key, or it is damaged.

    Args:
        folder: heads/TASK of a run.
        key: See `key_of`; None takes any.
        own: An empty head of the user's own class, which the weights are loaded into.
    """
    if not is_sound(folder):
        return None
    record = HeadRecord.model_validate_json((folder / ABOUT).read_text(encoding="utf-8"))
    if key is not None and record.key != key:
        return None
    if record.kind == "own" and own is None:
        raise UserError(f"The head in {folder} is of a class of your own: load its weights ({WEIGHTS}) with it.")
    head = own if own is not None else KINDS[record.kind](**record.shape)
    head.load_state_dict(load_file(folder / WEIGHTS))
    return TrainedHead(head.eval(), record)
