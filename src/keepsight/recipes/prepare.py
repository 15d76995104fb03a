"""What a run works on: its config, the images that can be read, the splits, their features. Knows no method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import Backbone, Dataset, UserError, processes
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.data.load import check_dataset, load_dataset
from keepsight.data.scan import BadImage, find_unreadable
from keepsight.data.splits import Splits, make_splits
from keepsight.data.subset import subset
from keepsight.evaluate.cost import measured
from keepsight.features.extract import Extractor
from keepsight.recipes.config import TuneConfig, resolve
from keepsight.recipes.context import Context
from keepsight.recipes.folder import environment
from keepsight.recipes.origin import Origin, sketch
from keepsight.recipes.readout import readout_of


def config_and_images(data: Any, settings: dict[str, Any]) -> tuple[TuneConfig, Dataset | None]:
    """The complete config, and the images if they are in memory."""
    if isinstance(data, TuneConfig):
        return data, None
    if isinstance(data, str | Path):
        return resolve(str(data), settings=settings), None
    given = load_dataset(data, resolve("memory", settings=settings).data_options)
    return resolve(f"memory-{given.name}", settings=settings), given


def readable_images(dataset: Dataset, skip_bad: bool) -> tuple[Dataset, list[BadImage]]:
    """The images that can be read, and those that cannot.

    Raises:
        UserError: There are some that cannot, and they are not to be skipped; or a class has lost all of its images.
    """
    shares = processes.everyone(find_unreadable(dataset.images, processes.mine(np.arange(len(dataset.images)))))
    bad = sorted((image for share in shares for image in share), key=lambda image: image.index)
    if not bad:
        return dataset, bad
    if not skip_bad:
        processes.wait()  # all have come this far: the main process speaks for them
        if not processes.is_main():
            raise processes.SharedError(bad[0].reason)
        more = f" ({len(bad)} of {len(dataset.images)} images cannot be read)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0].reason.rstrip('.')}{more}; --skip-bad leaves such images out and counts them.")
    log.warning(
        "%d of %d images cannot be read and are left out (first: %s)", len(bad), len(dataset.images), bad[0].name
    )
    kept = subset(dataset, np.setdiff1d(np.arange(len(dataset.images)), [image.index for image in bad]))
    check_dataset(kept, f"{dataset.name} without the images that cannot be read")
    return kept, bad


def splits_of(config: TuneConfig, dataset: Dataset, file: Path, overwrite: bool) -> Splits:
    """The splits in the file, where a run was begun; else new ones.

    Raises:
        UserError: The file belongs to other data, or the data does not suffice.
    """
    if file.is_file() and not overwrite:
        return Splits.read(file, dataset)
    return make_splits(dataset, config.split, tuple(range(config.seeds)))


def opened(config: TuneConfig, path: Path, dataset: Dataset, splits: Splits, backbone: Backbone) -> Context:
    """What all fits of a run share: environment and splits are written, the readout is chosen, all features are in the cache.

    Under several processes all call it: they share the extraction.
    """
    with processes.main_writes():
        if processes.is_main():
            write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
            splits.save(path / "splits.json")
    draw = splits.draws[0]
    log.info(
        "%s: %d images, %d classes; %d labelled, %d validation, %d unlabelled, %d test",
        dataset.name,
        len(dataset.images),
        len(dataset.classes),
        len(draw.labelled),
        len(draw.validation),
        len(draw.unlabelled),
        len(splits.test),
    )
    extractor = Extractor(backbone, dataset.images)
    with measured() as cost:
        readout = readout_of(config, dataset, extractor, draw, path)
        extractor.fill(np.arange(len(dataset.images)), readout.parts)
    extracted = sum(processes.everyone(extractor.extracted))
    log.info("features ready after %.1f s (%d images through the backbone)", cost.seconds, extracted)
    return Context(config, dataset, backbone, readout, extractor, path)


def origin_of(context: Context) -> Origin:
    """Which weights and images the models of a run come from."""
    return Origin(
        backbone=context.config.backbone,
        weights=context.backbone.weights_hash(),
        data=context.dataset.name,
        images=sketch(context.extractor.keys(np.arange(len(context.dataset.images)))),
    )
