"""The facts of a finished run's model card. Knows the run; the words are in `report.card`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keepsight
from keepsight.backbones.load import list_backbones
from keepsight.core import Preprocessing, Result
from keepsight.data.splits import Splits
from keepsight.recipes.cells import Context
from keepsight.recipes.recommend import Recommendation
from keepsight.report.card import CardFacts, write_card


def write_model_card(
    path: Path, context: Context, splits: Splits, results: Sequence[Result], recommendation: Recommendation
) -> None:
    """Write the README.md of the recommended model."""
    first, dataset, backbone = splits.draws[0], context.dataset, context.backbone
    facts = CardFacts(
        version=keepsight.__version__,
        dataset=dataset.name,
        images=len(dataset.images),
        labelled=len(first.labelled),
        validation=len(first.validation),
        unlabelled=len(first.unlabelled),
        test=len(splits.test),
        classes=dataset.classes,
        method=recommendation.method,
        why=recommendation.why,
        backbone=backbone.name,
        licence=_licence(backbone.name, context.config.backbone.weights),
        readout=str(context.readout),
        preprocessing=_in_words(backbone.preprocessing),
        parameters=sum(p.numel() for p in backbone.parameters()),
        multilabel=dataset.targets is not None,
    )
    write_card(path, facts, results)


def _licence(name: str, weights: str) -> str | None:
    """Of published weights; nobody but their owner knows that of a local file."""
    if weights != "pretrained":
        return None
    bare = name.partition(".")[0]
    found = next((e.licence for e in list_backbones(bare) if e.name in (name, bare)), None)
    return None if found in (None, "", "unknown") else found


def _in_words(p: Preprocessing) -> str:
    fit = {"crop": "the centre", "squash": "all of it, squashed", "pad": "all of it, padded"}[p.fit]
    mean, std = (", ".join(f"{v:.3f}" for v in values) for values in (p.mean, p.std))
    return f"RGB, {p.size} x {p.size} px ({fit}; {p.interpolation}), normalised with mean {mean} and standard deviation {std}"
