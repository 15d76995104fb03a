"""One cell of a comparison of retention: all that is asked of the network that a training (or a mixture of weights) leaves.

Knows no interval: what is kept are predictions, from which every figure is made.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import keepsight
from keepsight.core import Config, Head
from keepsight.core.files import atomic_directory, is_sound
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.forgetting import block_similarity, cross_fitted
from keepsight.evaluate.weight_distance import weight_distance
from keepsight.features.cache import FeatureCache
from keepsight.features.extract import Extractor
from keepsight.recipes.retention_fits import Key, Made, Task, cell_of_key, end_of, made_of, probe_head

CELL, PREDICTIONS = "cell.json", "predictions.npz"


class Looked(Config):
    """cell.json: what was found that is no prediction.

    Attributes:
        sets: Names of the suite's sets, in the order of the predictions.
        cka, shuffled: Debiased CKA of the readout with that of the untouched backbone on each set, and its control.
        distance: Relative distance of the backbone's weights from the untouched ones; None where parts were added.
        labels: Labelled images.
        steps: Of the training; 0 where there was none.
        step_seconds: Median wall time between the ends of two steps, images loaded meanwhile; 0 without a training.
        seconds: Wall time of the fit.
        peak_mib: Largest resident memory of the process during the fit.
        trainable_parameters: Count.
    """

    sets: tuple[str, ...]
    cka: tuple[float, ...]
    shuffled: tuple[float, ...]
    distance: float | None
    labels: int
    steps: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    peak_mib: float = 0.0
    trainable_parameters: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished cell.

    Attributes:
        looked: See there.
        head_NK: Probabilities of the trained head on the test images.
        refitted_NK: Of a probe fitted to the tuned features of the same labelled images.
        knn, probe: On each set of the suite, cross-fitted (`evaluate.forgetting.cross_fitted`).
    """

    looked: Looked
    head_NK: Floats
    refitted_NK: Floats
    knn: tuple[Floats, ...]
    probe: tuple[Floats, ...]


def is_there(task: Task, key: Key) -> bool:
    """Whether the cell is finished, and about this suite."""
    folder = key.folder(task.context.folder)
    if not is_sound(folder):
        return False
    names = Looked.model_validate_json((folder / CELL).read_text(encoding="utf-8")).sets
    return names == tuple(dataset.name for dataset, _ in task.sets)


def read_cell(task: Task, key: Key) -> Outcome:
    """A finished cell."""
    folder = key.folder(task.context.folder)
    looked = Looked.model_validate_json((folder / CELL).read_text(encoding="utf-8"))
    with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
        found: dict[str, Floats] = {name: arrays[name] for name in arrays.files}
    every = range(len(looked.sets))
    knn, probe = (tuple(found[f"{kind}_{i}"] for i in every) for kind in ("knn", "probe"))
    return Outcome(looked, found["head"], found["refitted"], knn, probe)


def run_retention_cell(task: Task, key: Key) -> None:
    """Compute the cell, and write it at once.

    Raises:
        UserError: The training failed, or the plain one that it is made of is not there.
    """
    torch.manual_seed(key.seed)
    if (end := end_of(key)) is not None and is_there(task, end):
        made = None
        looked, arrays = _copied(task, end)
    else:
        made = made_of(task, key)
        looked, arrays = _look(task, key, made)
    with atomic_directory(key.folder(task.context.folder), sealed=True) as temporary:
        with (temporary / PREDICTIONS).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        if made is not None and made.model is not None:
            made.model.save(temporary / "model", keepsight.__version__)
        (temporary / CELL).write_text(looked.model_dump_json(indent=2), encoding="utf-8")


def _copied(task: Task, end: Key) -> tuple[Looked, dict[str, Floats]]:
    """What was found of an end of a curve, which takes no training of its own."""
    folder = end.folder(task.context.folder)
    looked = Looked.model_validate_json((folder / CELL).read_text(encoding="utf-8"))
    with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
        found: dict[str, Floats] = {name: arrays[name] for name in arrays.files}
    free = {"steps": 0, "step_seconds": 0.0, "seconds": 0.0, "peak_mib": 0.0, "trainable_parameters": 0}
    return looked.model_copy(update=free), found


def _look(task: Task, key: Key, made: Made) -> tuple[Looked, dict[str, Floats]]:
    """All that is asked of a network: predictions on test images and suite, similarity, distance of weights."""
    context, cell, rule = task.context, cell_of_key(task, key), task.config.forgetting
    context.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.folder, prefix=".features-", suffix=".tmp") as folder:
        hashed = made.backbone.weights_hash()
        root = None if hashed == task.weights else Path(folder)
        cache = FeatureCache(hashed, made.backbone.preprocessing, root=root)
        own = Extractor(made.backbone, context.dataset.images, cache=cache)
        tuned = replace(context, backbone=made.backbone, extractor=own)
        again = probe_head(tuned, cell)
        test_NF = own.features(task.splits.test, context.readout)
        found = {"head": _probabilities(made.head, test_NF), "refitted": _probabilities(again, test_NF)}
        similar = []
        for number, (dataset, before) in enumerate(task.sets):
            every = np.arange(len(dataset.images))
            x_NF = Extractor(made.backbone, dataset.images, cache=cache).features(every, context.readout)
            x0_NF = before.features(every, context.readout)
            fits = cross_fitted(x_NF, dataset.labels, len(dataset.classes), rule.rule, rule.seed)
            found |= {f"knn_{number}": fits.knn_NK, f"probe_{number}": fits.probe_NK}
            similar.append(block_similarity(x0_NF, x_NF, rule.seed))
    try:
        distance: float | None = weight_distance(context.backbone, made.backbone).total
    except ValueError:
        distance = None
    looked = Looked(
        sets=tuple(dataset.name for dataset, _ in task.sets),
        cka=tuple(cka for cka, _ in similar),
        shuffled=tuple(shuffled for _, shuffled in similar),
        distance=distance,
        labels=len(cell.labelled),
        **made.cost,
    )
    return looked, found


def _probabilities(head: Head, x_NF: torch.Tensor) -> Floats:
    with torch.inference_mode():
        probabilities: Floats = torch.softmax(head.cpu().eval()(x_NF).double(), dim=1).numpy()
    return probabilities
