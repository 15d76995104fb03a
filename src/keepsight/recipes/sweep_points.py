"""One point of a sweep: a data set, a backbone at a size, a number of labels; what lies in its folder. Knows no method's fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Dataset
from keepsight.core.files import make_directory, write_text
from keepsight.core.progress import log
from keepsight.data.limit import limited
from keepsight.data.load import load_dataset
from keepsight.data.splits import SplitConfig, Splits
from keepsight.data.subset import subset
from keepsight.data.transforms import AugmentConfig
from keepsight.features.auto_readout import ReadoutChoice
from keepsight.features.extract import Extractor
from keepsight.recipes.cells import Cell, Context
from keepsight.recipes.config import MethodName, TuneConfig, as_yaml
from keepsight.recipes.prepare import splits_of
from keepsight.recipes.readout import readout_of

READOUT = "readout.json"


@dataclass(frozen=True, slots=True)
class Point:
    """Where it is, and all that a worker process needs to open it.

    Attributes:
        config: As a run of `tune` would have it.
        pool: See `SweepConfig`.
        bad: Indices of images that cannot be read and are left out.
        folder: Laid out as a run's: config.yaml, splits.json, readout.json, cells/.
    """

    config: TuneConfig = field(hash=False)
    pool: int | None
    bad: tuple[int, ...]
    folder: Path


class Opened:
    """Opens points; images, backbone and cache that a point shares with the last one are not read again."""

    def __init__(self) -> None:
        self._dataset: tuple[str, Dataset] | None = None
        self._backbone: tuple[str, Backbone] | None = None
        self._extractor: tuple[Backbone, Dataset, Extractor] | None = None
        self._context: tuple[Point, Context, Splits] | None = None

    def dataset(self, point: Point) -> Dataset:
        """Its images: without those that cannot be read, and no more than the pool."""
        config = point.config
        split = config.split.model_dump(exclude_unset=True) | {"labels": None}
        key = json.dumps([config.data, config.data_options.model_dump_json(), split, point.pool, point.bad])
        if self._dataset is None or self._dataset[0] != key:
            whole = load_dataset(config.data, config.data_options)
            if point.bad:
                whole = subset(whole, np.setdiff1d(np.arange(len(whole.images)), point.bad))
            self._dataset = key, limited(whole, config.split, point.pool)
        return self._dataset[1]

    def backbone(self, point: Point) -> Backbone:
        """Its backbone, filled."""
        key = point.config.backbone.model_dump_json()
        if self._backbone is None or self._backbone[0] != key:
            self._backbone = self._extractor = self._context = None  # the old one goes before the new one comes
            self._backbone = key, load_backbone(point.config.backbone)
        return self._backbone[1]

    def extractor(self, point: Point) -> Extractor:
        """Features of its images."""
        dataset, backbone = self.dataset(point), self.backbone(point)
        found = self._extractor
        if found is None or found[0] is not backbone or found[1] is not dataset:
            self._extractor = found = backbone, dataset, Extractor(backbone, dataset.images)
        return found[2]

    def context(self, point: Point) -> tuple[Context, Splits]:
        """What its cells share; `prepare` has been there before."""
        dataset, extractor = self.dataset(point), self.extractor(point)
        if self._context is None or self._context[0] != point or self._context[1].extractor is not extractor:
            choice = ReadoutChoice.model_validate_json((point.folder / READOUT).read_text(encoding="utf-8"))
            context = Context(point.config, dataset, extractor.backbone, choice.readout, extractor, point.folder)
            self._context = point, context, Splits.read(point.folder / "splits.json", dataset)
        return self._context[1:]


def split_settings(dataset: Dataset, config: SplitConfig) -> SplitConfig:
    """The same; of a data set with a test part of its own `limited` has taken as much as was asked for, and no more is said."""
    if "test" not in dataset.parts:
        return config
    return SplitConfig(**{k: v for k, v in config.model_dump(exclude_unset=True).items() if k != "test"})


def prepare(point: Point, opened: Opened) -> None:
    """Splits, readout and all features that its cells read; what is there already is kept."""
    dataset, extractor, config = opened.dataset(point), opened.extractor(point), point.config
    make_directory(point.folder)
    write_text(point.folder / "config.yaml", as_yaml(config))
    quiet = config.model_copy(update={"split": split_settings(dataset, config.split)})
    splits = splits_of(quiet, dataset, point.folder / "splits.json", overwrite=False)
    splits.save(point.folder / "splits.json")
    draw = splits.draws[0]
    readout = readout_of(config, dataset, extractor, draw, point.folder)
    if config.readout != "auto":
        fixed = ReadoutChoice(readout=readout, criterion="as configured", scores={})
        write_text(point.folder / READOUT, fixed.model_dump_json(indent=2))
    extractor.fill(np.arange(len(dataset.images)), readout.parts)
    learnt_from = np.concatenate([draw.labelled, draw.unlabelled])
    for number, augmentation in views_of(config):
        extractor.view(number, augmentation).fill(learnt_from, readout.parts)
    log.info("%s: ready", describe(point, dataset, extractor.backbone))


def views_of(config: TuneConfig) -> list[tuple[int, AugmentConfig]]:
    """Number and augmentation of every cached view that the settings of the config's methods ask for."""
    found = {}
    candidates = config.auto.candidates if "auto" in config.methods else ()
    for method in (*config.methods, *candidates):
        for views, augmentation in _asked(getattr(config, method.replace("-", "_"), None)):
            for number in range(1, views + 1):
                found[number, augmentation.model_dump_json()] = number, augmentation
    return [found[key] for key in sorted(found)]


def _asked(settings: object) -> Iterator[tuple[int, AugmentConfig]]:
    """All pairs of `views` and `augmentation` in settings, at any depth."""
    if not isinstance(settings, BaseModel):
        return
    own = {name: getattr(settings, name) for name in type(settings).model_fields}
    views, augmentation = own.get("views"), own.get("augmentation")
    # What is fine-tuned on images has its views as images, and not as features.
    if isinstance(views, int) and isinstance(augmentation, AugmentConfig) and "training" not in own:
        yield views, augmentation
    for value in own.values():
        yield from _asked(value)


def describe(point: Point, dataset: Dataset, backbone: Backbone) -> str:
    """In words, for the log."""
    return f"{dataset.name}, {backbone.name} at {backbone.preprocessing.size} px, {point.config.split.labels} labels"


def cell_of(method: MethodName, seed: int, splits: Splits) -> Cell:
    """The cell of a method and a seed, measured on the test images."""
    draw = next(draw for draw in splits.draws if draw.seed == seed)
    return Cell(
        method=method,
        name=f"seed-{seed}",
        seed=seed,
        labelled=draw.labelled,
        validation=draw.validation,
        unlabelled=draw.unlabelled,
        measured_on=splits.test,
    )


def folder_names(texts: Sequence[str]) -> list[str]:
    """A name of a folder for each text: what no file system minds, and no two the same.

    Example:
        >>> folder_names(["mnist-5k", "hf:a/b", "../<b>", "B", ""])
        ['mnist-5k', 'hf-a-b', 'b', 'B-2', 'unnamed']
    """
    made: list[str] = []
    for text in texts:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:60] or "unnamed"
        number, unique = 1, name
        while unique.lower() in (other.lower() for other in made):
            number += 1
            unique = f"{name}-{number}"
        made.append(unique)
    return made
