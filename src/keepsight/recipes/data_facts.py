"""What a run saw, as a record for its page: counts of its parts and classes, images that are in two parts. Knows no method."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.check import check_data
from keepsight.data.duplicates import perceptual_hash, thumbnail
from keepsight.data.findings import DataReport
from keepsight.data.scan import BadImage
from keepsight.data.splits import Splits, class_counts
from keepsight.recipes.context import Context
from keepsight.report.diagnosis_records import ClassFacts, DataFacts, Twins

SECONDS = 20.0
"""Reading all images once more for near duplicates may take so long, by the first `TRIED` of them; otherwise it is left out."""

TRIED = 24
NEAR_AT_MOST = 20_000
"""Images among which near duplicates are looked for."""

REASONS, TWINS = 50, 50
"""Listed at most."""


def data_facts(context: Context, splits: Splits, skipped: Sequence[BadImage] = ()) -> DataFacts:
    """Counts and duplicates; exact ones by the content that is stored, and near ones too where reading the images is quick."""
    dataset, draw = context.dataset, splits.draws[0]
    labelled, validation, test = (class_counts(dataset, part) for part in (draw.labelled, draw.validation, splits.test))
    own_test = "test" in dataset.parts
    facts = DataFacts(
        name=dataset.name,
        images=len(dataset.images),
        labelled=len(draw.labelled),
        validation=len(draw.validation),
        unlabelled=len(draw.unlabelled),
        test=len(splits.test),
        classes=tuple(
            ClassFacts(name=name, labelled=int(labelled[k]), validation=int(validation[k]), test=int(test[k]))
            for k, name in enumerate(dataset.classes)
        ),
        split_seed=None if own_test else context.config.split.seed,
        skipped=len(skipped),
        skipped_reasons=tuple(bad.reason for bad in skipped[:REASONS]),
    )
    as_split = replace(dataset, parts=_parts(dataset, splits))
    seconds = _seconds(dataset)
    if len(dataset.images) <= NEAR_AT_MOST and seconds is not None and seconds <= SECONDS:
        return facts.model_copy(update=_by_pixels(check_data(as_split)))
    note = (
        "Near duplicates were not looked for: there are too many images, or reading them once more takes too long; "
        "'keepsight data check' does it."
    )
    return facts.model_copy(update={**_by_content(context, as_split), "note": note})


def _parts(dataset: Dataset, splits: Splits) -> tuple[Part, ...]:
    parts: list[Part] = ["train"] * len(dataset.images)
    for index in splits.test.tolist():
        parts[index] = "test"
    for index in splits.draws[0].validation.tolist():
        parts[index] = "val"
    return tuple(parts)


def _seconds(dataset: Dataset) -> float | None:
    """How long reading and hashing all images will take, by some of them; None if one cannot be read."""
    chosen = np.unique(np.linspace(0, len(dataset.images) - 1, TRIED).round().astype(np.int64))
    start = time.monotonic()
    try:
        for index in chosen.tolist():
            perceptual_hash(thumbnail(dataset.images.load(index)))
    except UserError:
        return None
    return (time.monotonic() - start) / len(chosen) * len(dataset.images)


def _by_pixels(report: DataReport) -> dict[str, object]:
    across = [group for group in report.duplicates if group.crosses]
    twins = [_first_twins(group.names, group.parts, same=True) for group in across]
    twins += [Twins(names=pair.names, parts=pair.parts, same=False) for pair in report.near if len(set(pair.parts)) > 1]
    near = report.near_pairs if len(report.parts) > 1 else None
    return {
        "same_across": sum(len(group.names) for group in across),
        "same_within": sum(len(group.names) - 1 for group in report.duplicates if not group.crosses),
        "near_across": near,
        "twins": tuple(twins[:TWINS]),
        "note": ""
        if report.near_complete
        else "So many images look alike that not all pairs were looked at for near duplicates.",
    }


def _by_content(context: Context, dataset: Dataset) -> dict[str, object]:
    groups: dict[bytes, list[int]] = {}
    for index, key in enumerate(context.extractor.keys(np.arange(len(dataset.images)))):
        groups.setdefault(key, []).append(index)
    same = [group for group in groups.values() if len(group) > 1]
    across = [group for group in same if len({dataset.parts[i] for i in group}) > 1]
    twins = [
        _first_twins(
            [dataset.images.name(i) for i in group],
            [dataset.parts[i] for i in group],
            same=True,
        )
        for group in across[:TWINS]
    ]
    return {
        "same_across": sum(len(group) for group in across),
        "same_within": sum(len(group) - 1 for group in same if group not in across),
        "twins": tuple(twins),
    }


def _first_twins(names: Sequence[str], parts: Sequence[str], *, same: bool) -> Twins:
    """The first image and the first one of another part."""
    other = next(i for i, part in enumerate(parts) if part != parts[0])
    return Twins(names=(names[0], names[other]), parts=(parts[0], parts[other]), same=same)
