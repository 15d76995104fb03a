"""The trainings of a comparison of retention, and what is made of their weights. Knows no suite's figures."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import math
import shutil
import string
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from keepsight.core import Backbone, Dataset, Head, UserError
from keepsight.core.files import is_sound
from keepsight.data.splits import Draw, Splits
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig
from keepsight.evaluate.cost import measured
from keepsight.export.model import TunedModel
from keepsight.features.extract import Extractor
from keepsight.methods.consistency import Consistency
from keepsight.methods.encoder import Adapter, TunedBackbone
from keepsight.methods.frozen import Probe
from keepsight.recipes.config import FinetuneSettings, MethodName, TuneConfig
from keepsight.recipes.context import Cell, Context
from keepsight.recipes.fit_finetune import fit_finetune
from keepsight.recipes.fit_frozen import fit_head
from keepsight.recipes.interpolate import mixed_network
from keepsight.recipes.retention_config import CONTROL, PLAIN, CompareConfig, alpha_of, retain_of
from keepsight.recipes.sweep_points import folder_names
from keepsight.train import ImageBatches, WithReference, train

UNTOUCHED = "untouched"
_PLAIN_LETTERS = frozenset(string.ascii_lowercase + string.digits + "-.")


@dataclass(frozen=True, slots=True)
class Timed(Context):
    """A context that notes when each step of a training ended, in place of curves.

    Attributes:
        times: Seconds on a clock of its own.
    """

    times: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def trackers(self, cell: Cell) -> Iterator[Callable[[int, dict[str, float]], None] | None]:
        """What is called after every step."""
        del cell

        def ended(step: int, figures: dict[str, float]) -> None:
            del step, figures
            self.times.append(time.perf_counter())

        yield ended


@dataclass(frozen=True, slots=True)
class Task:
    """What all cells share.

    Attributes:
        config: The comparison's.
        context: Of the task: images, untouched backbone, its features; the folder is the comparison's.
        splits: One draw a seed.
        sets: The suite, each with the features of the untouched backbone.
        weights: Hash of the untouched backbone.
    """

    config: CompareConfig
    context: Timed
    splits: Splits
    sets: tuple[tuple[Dataset, Extractor], ...]
    weights: str

    def draw(self, seed: int) -> Draw:
        """Of this seed."""
        return next(draw for draw in self.splits.draws if draw.seed == seed)


@dataclass(frozen=True, slots=True)
class Key:
    """Which cell: ("untouched", "none") is the backbone before any training."""

    method: str
    variant: str
    seed: int

    def folder(self, root: Path) -> Path:
        """Where its outcome lies; `=`, `:` and `+` of a variant's text are spelt out, so that no two share one."""
        name = "".join(c if c in _PLAIN_LETTERS else f"_{ord(c):x}_" for c in self.variant)
        if len(name) > 100:
            name = f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
        return root / "cells" / self.method / name / f"seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Made:
    """A network with its head, and what it cost."""

    backbone: Backbone
    head: Head
    model: TunedModel | None = None
    cost: Mapping[str, float] = field(default_factory=dict)


def cell_of_key(task: Task, key: Key) -> Cell:
    """Its images, measured on the test images."""
    draw = task.draw(key.seed)
    of_method: MethodName = "probe"  # what the untouched backbone is looked at by
    for name in task.config.base.methods:
        of_method = name if name == key.method else of_method
    title = f"{folder_names([key.variant])[0]}-seed-{key.seed}"
    return Cell(of_method, title, key.seed, draw.labelled, draw.validation, draw.unlabelled, task.splits.test)


def probe_head(context: Context, cell: Cell) -> Head:
    """The rule of every probe on the task: the one that a trained head starts from, and the refitted one."""
    return fit_head(context, cell, Probe(context.config.probe), cell.unlabelled[:0])


def made_of(task: Task, key: Key) -> Made:
    """The network of a cell.

    Raises:
        UserError: The training failed, or the plain one that it is made of is not there.
    """
    context, cell = task.context, cell_of_key(task, key)
    if key.method == UNTOUCHED:
        return Made(context.backbone, probe_head(context, cell))
    if key.variant != CONTROL and (alpha := alpha_of(key.variant)) is not None:
        return mixed(task, key, alpha)
    gc.collect()
    shutil.rmtree(context.checkpoints(cell), ignore_errors=True)  # half a training has half its cost
    context = replace(context, times=[])
    try:
        with measured() as cost:
            fit = _control if key.variant == CONTROL else _trained
            made, trainable, steps = fit(context, cell, key)
    finally:
        shutil.rmtree(context.checkpoints(cell), ignore_errors=True)
    gaps = np.diff(context.times)
    costs = {
        "steps": steps,
        "step_seconds": float(np.median(gaps)) if len(gaps) else 0.0,
        "seconds": cost.seconds,
        "peak_mib": cost.peak_mib,
        "trainable_parameters": trainable,
    }
    return replace(made, cost=costs)


def _trained(context: Timed, cell: Cell, key: Key) -> tuple[Made, int, int]:
    config = context.config.model_copy(update={"retain": retain_of(key.variant)})
    fitted = fit_finetune(
        replace(context, config=config), cell, adapter_of(cell.method), _settings(config, cell.method)
    )
    model = fitted.model
    assert model is not None
    kept = model if key.variant == PLAIN else None  # what is between its ends is made of it
    return Made(model.backbone, model.head, kept), fitted.trainable_parameters, fitted.steps


def _settings(config: TuneConfig, method: MethodName) -> FinetuneSettings:
    """The method's, without checkpoints: half a training is made again, since what it cost is to be known."""
    settings = config.finetuning(method)
    training = settings.training.model_copy(update={"checkpoint_seconds": math.inf, "checkpoint_steps": None})
    return settings.model_copy(update={"training": training})


def adapter_of(method: MethodName) -> Adapter:
    """What a method of `config.FINETUNED` trains."""
    adapters: dict[MethodName, Adapter] = {
        "finetune-bitfit": "bitfit",
        "finetune-adaptformer": "adaptformer",
        "finetune-vpt": "vpt",
        "finetune-lora": "lora",
        "finetune-dora": "lora",
        "finetune-oft": "oft",
        "finetune-osf": "osf",
        "finetune-full": "full",
    }
    return adapters[method]


def _control(context: Timed, cell: Cell, key: Key) -> tuple[Made, int, int]:
    """As many steps as a training has, on as many images of the task without their labels."""
    del key
    settings = _settings(context.config, cell.method)
    head = probe_head(context, cell)
    backbone = copy.deepcopy(context.backbone)
    encoder = TunedBackbone(backbone, context.readout, adapter_of(cell.method), settings.objective)
    method = Consistency(encoder, head)
    chosen = np.random.default_rng((cell.seed, 13)).permutation(cell.unlabelled)[: len(cell.labelled)]
    if not len(chosen):
        raise UserError(
            f"The variant {CONTROL} needs images without a label, and all of them are labelled: give fewer --labels."
        )
    stream, images = Stream(np.sort(chosen), settings.batch_size, cell.seed), context.dataset.images
    # On plain images there would be nothing to do: it is augmented where the trainings are not, too.
    moved = AugmentConfig() if settings.augmentation == AugmentConfig.none() else settings.augmentation
    augmented = ImageBatches(images, context.dataset.truth, stream, None, backbone.preprocessing, moved, cell.seed)
    batches = WithReference(augmented, images, stream, backbone.preprocessing)
    steps = settings.epochs * math.ceil(len(cell.labelled) / settings.batch_size)
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    with context.trackers(cell) as report:
        train(method, batches, steps, settings.training, context.checkpoints(cell), None, report, cell.name)
    encoder.after_training()
    encoder.merge()
    return Made(encoder.backbone.eval(), head), trainable, steps


def end_of(key: Key) -> Key | None:
    """The cell that a mixture with alpha 0 or 1 is exactly; None for all others."""
    if key.variant == CONTROL or (alpha := alpha_of(key.variant)) not in (0, 1):
        return None
    return Key(UNTOUCHED if alpha == 0 else key.method, PLAIN, key.seed)


def mixed(task: Task, key: Key, alpha: float) -> Made:
    """(1 - alpha) start + alpha end of the plain training's backbone and head, exactly the one or the other at 0 and 1.

    Raises:
        UserError: There is no plain training, or it added parts that have no start.
    """
    folder = replace(key, variant=PLAIN).folder(task.context.folder)
    if not is_sound(folder):
        raise UserError(f"{key.variant} is made of the plain training with the same seed, which failed.")
    end = TunedModel.load(folder / "model")
    start = probe_head(task.context, cell_of_key(task, key))
    return Made(*mixed_network(task.context, start, end, alpha, key.method))
