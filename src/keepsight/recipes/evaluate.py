"""A model measured on labelled images it was not fitted on: classes matched by name, intervals, and a paired comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UNLABELLED, Dataset, Result, UserError
from keepsight.core.progress import Track, log
from keepsight.data.load import load_dataset
from keepsight.data.multilabel import require_single_label
from keepsight.data.options import DataConfig
from keepsight.data.splits import Splits
from keepsight.evaluate.classification import METRICS, Floats, confusion
from keepsight.evaluate.cost import measured
from keepsight.evaluate.intervals import Interval, interval, paired_difference
from keepsight.export.model import TunedModel

Split = Literal["test", "val", "all"]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class: images of it, and how the model does on them (fractions; None where nothing was predicted as it)."""

    name: str
    images: int
    recall: float
    precision: float | None
    f1: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `evaluate_model` found.

    Attributes:
        records: One `Result` a metric; with a second model those of it, and of the difference first - second.
        classes: Figures of every class that occurs in the data, for the first model.
        skipped: Unreadable images that were left out.
    """

    records: list[Result]
    classes: tuple[ClassFigures, ...]
    skipped: int


@dataclass(frozen=True, slots=True)
class _Measured:
    """One model's probabilities [N, K], and the truth [N] as indices into its classes."""

    model: TunedModel
    probabilities: Floats
    labels: Indices
    read: Indices
    seconds: float
    peak_mib: float


def evaluate_model(
    model: TunedModel | str | Path,
    data: Dataset | str | Path,
    *,
    split: Split | None = None,
    against: TunedModel | str | Path | None = None,
    skip_bad: bool = False,
    options: DataConfig | None = None,
) -> Evaluation:
    """Figures of a model on labelled images, each with its 95 % interval (bootstrap over images).

    Args:
        model: A model, or the folder of one or of its run.
        data: A data set, or what `load_dataset` takes. Its classes are matched with the model's by name; it may lack some.
        split: ``test`` and ``val`` measure that part of the data (``test`` also: the images that the model's own run held out,
            if it is the run's data), ``all`` every labelled image. None takes ``test`` where there is such a part, else ``all``.
        against: A second model, measured on the same images; the difference has a paired interval.
        skip_bad: Leave unreadable images out and count them.
        options: Columns and sources of the data; pixel values are read as the model was trained.

    Raises:
        UserError: No labelled image in that part, a class that the model does not know, or an unreadable image.

    Example::

        found = keepsight.evaluate_model("runs/leaves", "new-leaves/", against="runs/older")
        print([(r.metric, r.value, r.ci_low, r.ci_high) for r in found.records])
    """
    models = [m if isinstance(m, TunedModel) else TunedModel.load(m) for m in (model, against) if m is not None]
    read_as = (options or DataConfig()).model_copy(update={"pixels": models[0].pixels})
    dataset = data if isinstance(data, Dataset) else load_dataset(data, read_as, check=False)
    run = None if isinstance(model, TunedModel) else _run_folder(Path(model))
    chosen, name = _choose(dataset, split, run)
    require_single_label(dataset, "keepsight evaluate")
    truths = [_labels_of(m, dataset, chosen) for m in models]
    first, *others = (_measure(m, dataset, chosen, y, skip_bad) for m, y in zip(models, truths, strict=True))
    labelled = 0 if run is None else _labels_seen(run, first.model.method)
    records = _records(first, dataset.name, name, labelled)
    for second in others:
        records += _records(second, dataset.name, name, 0)
        records += _differences(first, second, dataset.name, name)
    return Evaluation(records, _class_figures(first), len(chosen) - len(first.read))


def _run_folder(model: Path) -> Path | None:
    """The run that a model lies in: its splits say which images it was fitted on."""
    for folder in (model, model.resolve().parent):
        if (folder / "splits.json").is_file() and (folder / "model" / "model.json").is_file():
            return folder
    return None


def _choose(dataset: Dataset, split: Split | None, run: Path | None) -> tuple[Indices, str]:
    """The images to measure, and what records call them."""
    labelled = dataset.labels != UNLABELLED
    parts = np.array(dataset.parts, dtype=object)
    splits = _splits_of(run, dataset)
    fitted = np.zeros(len(labelled), dtype=bool)
    held_out = np.flatnonzero(labelled & (parts == "test"))
    if splits is not None:
        held_out = splits.test[labelled[splits.test]]
        for draw in splits.draws:
            fitted[draw.labelled] = fitted[draw.validation] = True
    if split is None:
        split = "test" if len(held_out) else "all"
        what = "its test part" if split == "test" else "all labelled images, since it has no test part"
        log.info("%s: measured on %s", dataset.name, what)
    indices = {"test": held_out, "val": np.flatnonzero(labelled & (parts == "val"))}.get(
        split, np.flatnonzero(labelled)
    )
    if not len(indices):
        part = "labelled images" if split == "all" else f"labelled images in a {split} part"
        hint = "" if split == "all" else ": measure all with --split all"
        raise UserError(f"The data set {dataset.name} has no {part}{hint}.")
    if seen := int(fitted[indices].sum()):
        log.warning("%d of these %d images were used to fit the model: its figures are too good", seen, len(indices))
    return indices, {"test": "test", "val": "validation", "all": "all"}[split]


def _splits_of(run: Path | None, dataset: Dataset) -> Splits | None:
    """The run's own splits, if they are of this data set."""
    if run is None:
        return None
    try:
        return Splits.read(run / "splits.json", dataset)
    except UserError:  # other data: that is the usual case, and nothing is wrong with it
        return None


def _labels_seen(run: Path, method: str) -> int:
    """Labelled images of the run's first seed, which the saved model saw; 0 if the run does not say."""
    from keepsight.core.result import read_results

    path = run / "results.jsonl"
    records = read_results(path) if path.is_file() else []
    return next((r.labels for r in records if r.method == method), 0)


def _labels_of(model: TunedModel, dataset: Dataset, chosen: Indices) -> Indices:
    """The truth as indices into the model's classes, by name."""
    position = {name: i for i, name in enumerate(model.classes)}
    used, counts = np.unique(dataset.labels[chosen], return_counts=True)
    unknown = [
        (dataset.classes[k], int(n)) for k, n in zip(used, counts, strict=True) if dataset.classes[k] not in position
    ]
    if unknown:
        name, images = unknown[0]
        known = ", ".join(repr(c) for c in model.classes[:10]) + (", ..." if len(model.classes) > 10 else "")
        more = f" and {len(unknown) - 1} other classes" if len(unknown) > 1 else ""
        raise UserError(
            f"The data set {dataset.name} has the class {name!r} ({images} images){more}, which the model does not know (it knows "
            f"{known}): rename the classes, or leave those images out."
        )
    table = np.array([position.get(name, -1) for name in dataset.classes], dtype=np.int64)
    return table[dataset.labels[chosen]]


def _measure(model: TunedModel, dataset: Dataset, chosen: Indices, labels: Indices, skip_bad: bool) -> _Measured:
    read = [np.empty(0, np.int64)]
    rows = [np.empty((0, len(model.classes)), np.float32)]
    with measured() as cost, Track("evaluating", len(chosen), "images") as track:
        for indices, probabilities_BK in model.stream(dataset.images, chosen, skip_bad=skip_bad):
            read.append(indices)
            rows.append(probabilities_BK)
            track.advance(len(indices))
    found = np.concatenate(read)
    if not len(found):
        raise UserError(f"None of the {len(chosen)} images of {dataset.name} can be read: nothing was measured.")
    kept = labels[np.searchsorted(chosen, found)]
    return _Measured(model, np.concatenate(rows).astype(np.float64), kept, found, cost.seconds, cost.peak_mib)


def _record(of: _Measured, method: str, dataset: str, split: str, metric: str, found: Interval, labels: int) -> Result:
    return Result(
        task="classification",
        dataset=dataset,
        split=split,
        method=method,
        backbone=of.model.backbone.name,
        readout=str(of.model.readout),
        metric=metric,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.kind,
        n=len(of.labels),
        labels=labels,
        seed=None,
        seeds=1,
        seconds=of.seconds,
        peak_mib=of.peak_mib,
    )


def _records(of: _Measured, dataset: str, split: str, labels: int) -> list[Result]:
    return [
        _record(of, of.model.method, dataset, split, name, interval(metric, [of.probabilities], of.labels), labels)
        for name, metric in METRICS.items()
    ]


def _differences(first: _Measured, second: _Measured, dataset: str, split: str) -> list[Result]:
    one, two = (first.probabilities, first.labels), (second.probabilities, second.labels)
    method = f"{first.model.method} - {second.model.method}"
    return [
        _record(first, method, dataset, split, f"{name}_difference", paired_difference(metric, one, two), 0)
        for name, metric in METRICS.items()
    ]


def _class_figures(of: _Measured) -> tuple[ClassFigures, ...]:
    matrix_KK = confusion(of.probabilities, of.labels, np.ones(len(of.labels)))
    support, predicted, hits = matrix_KK.sum(axis=1), matrix_KK.sum(axis=0), matrix_KK.diagonal()
    return tuple(
        ClassFigures(
            name=name,
            images=int(support[k]),
            recall=float(hits[k] / support[k]),
            precision=float(hits[k] / predicted[k]) if predicted[k] else None,
            f1=float(2 * hits[k] / (support[k] + predicted[k])),
        )
        for k, name in enumerate(of.model.classes)
        if support[k]
    )
