"""Everything that can be wrong with a sweep, before its first cell: every data set, backbone and number of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keepsight.core import UNLABELLED, Config, Dataset, Readout, UserError
from keepsight.data.load import load_dataset
from keepsight.data.multilabel import require_single_label
from keepsight.data.splits import make_splits
from keepsight.recipes.config import TuneConfig
from keepsight.recipes.prepare import readable_images
from keepsight.recipes.sweep_config import SweepConfig
from keepsight.recipes.sweep_points import Opened, Point, folder_names, split_settings


class Counts(Config):
    """What a data set holds after `limited`: images to learn from, test images and all of them."""

    pool: int
    test: int
    images: int


def checked(config: SweepConfig, path: Path, opened: Opened) -> tuple[list[Point], dict[str, Counts]]:
    """The points of a sweep below a folder, in the order of `SweepConfig.points`, and the counts of every data set.

    Raises:
        UserError: The first thing that is wrong.
    """
    points: list[Point] = []
    counts: dict[str, Counts] = {}
    names: list[str] = []
    sides = _sides(config, opened)
    data_folders = folder_names([_short(data) for data in config.data])
    backbone_folders = folder_names([_short(name) for name in config.backbones])
    for data, data_folder in zip(config.data, data_folders, strict=True):
        smallest = config.at(data, config.backbones[0], config.sizes[0], config.labels[0])
        whole = load_dataset(data, smallest.data_options)
        require_single_label(whole, "keepsight sweep")
        _, bad = readable_images(whole, smallest.skip_bad)
        left_out = tuple(image.index for image in bad)
        dataset = opened.dataset(Point(smallest, config.pool, left_out, path))
        counts[data] = _check_labels(config, smallest, dataset)
        names.append(dataset.name)
        for backbone, backbone_folder in zip(config.backbones, backbone_folders, strict=True):
            for size in config.sizes:
                below = path / data_folder / f"{backbone_folder}-{sides[backbone, size]}"
                points += [
                    Point(config.at(data, backbone, size, n), config.pool, left_out, below / f"labels-{n}")
                    for n in config.labels
                ]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"Two of the data sets are called {twice!r}: rename one, so that their figures can be told apart."
        )
    return points, counts


def _short(text: str) -> str:
    """The last part of a path; a name as it is."""
    path = Path(text)
    return (
        path.resolve().name
        if path.is_absolute() or text.startswith((".", "~")) or ("/" in text and path.exists())
        else text
    )


def _sides(config: SweepConfig, opened: Opened) -> dict[tuple[str, int | None], int]:
    """Input size of every backbone at every size, each loaded once to see that it can be."""
    sides = {}
    names: dict[str, str] = {}
    for name in config.backbones:
        for size in config.sizes:
            point = config.at(config.data[0], name, size, config.labels[0])
            backbone = opened.backbone(Point(point, None, (), Path()))
            if point.readout != "auto":
                Readout.parse(point.readout).resolved(backbone.depth)
            sides[name, size] = backbone.preprocessing.size
            if names.setdefault(backbone.name, name) != name:
                raise UserError(
                    f"The backbones {names[backbone.name]} and {name} are both called {backbone.name}: sweep them one at a time."
                )
    return sides


def _check_labels(config: SweepConfig, smallest: TuneConfig, dataset: Dataset) -> Counts:
    fewest, most = config.labels[0], config.labels[-1]
    if fewest < len(dataset.classes):
        raise UserError(
            f"--labels {fewest} is fewer than the {len(dataset.classes)} classes of {dataset.name}: every class needs at least one."
        )
    split = split_settings(dataset, smallest.split)
    splits = make_splits(dataset, split, (0,))
    draw = splits.draws[0]
    if not len(splits.test):
        raise UserError(f"{dataset.name} has no test images to measure on: hold some out with --test.")
    learnt_from = np.concatenate([draw.labelled, draw.unlabelled])
    labelled = int(np.count_nonzero(dataset.labels[learnt_from] != UNLABELLED))
    labelled += len(draw.validation) * ("val" not in dataset.parts)
    if most > labelled:
        raise UserError(
            f"--labels {most} is more than the {labelled} labelled images of {dataset.name} that are left to learn from: give "
            f"fewer labels, or hold out fewer images."
        )
    return Counts(pool=len(learnt_from), test=len(splits.test), images=len(dataset.images))
