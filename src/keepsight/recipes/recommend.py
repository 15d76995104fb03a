"""Which method to use, chosen on labelled training images alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from keepsight.core import Config
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.multilabel import Targets, map_draws, mean_average_precision


class Recommendation(Config):
    """recommendation.json.

    Attributes:
        method: The recommended method.
        why: One sentence for a person.
        criterion: "cross-validation", or "rule" where the labels are too few for it.
    """

    method: str
    why: str
    criterion: str


def recommend(
    methods: Sequence[str], wrong_by_method: Mapping[str, NDArray[np.bool_]], folds: int, has_unlabelled: bool
) -> Recommendation:
    """The method with the fewest cross-validated errors on the labelled images; the cheaper (earlier) one of equals.

    Args:
        methods: In the order of their cost.
        wrong_by_method: For each method, whether it was wrong on each labelled image when that was held out (same order
            of images for all); empty where no cross-validation was possible.
        folds: Number of folds; 1 for predictions on validation images.
        has_unlabelled: Whether there are unlabelled images.
    """
    if not wrong_by_method:
        prefer = ["label-propagation", "probe", "knn"] if has_unlabelled else ["probe", "knn"]
        method = next((m for m in prefer if m in methods), methods[0])
        return Recommendation(
            method=method,
            why=f"Recommended: {method}, by rule and not by measurement: with a single label in some class (or selection_folds=0) "
            "the labelled images allow no cross-validation.",
            criterion="rule",
        )
    errors = {m: float(wrong_by_method[m].mean()) for m in methods}
    best = min(methods, key=lambda m: errors[m])
    n = len(wrong_by_method[best])
    close = []
    for other in methods:
        difference = wrong_by_method[other].astype(np.float64) - wrong_by_method[best]
        if other != best and difference.mean() <= 1.96 * difference.std(ddof=1) / np.sqrt(n):
            close.append(other)
    doubt = (
        f" On {n} labels it is not distinguishable from {', '.join(close)} (paired difference within 1.96 standard errors)."
        if close
        else " Every other method is worse by more than 1.96 standard errors of the paired difference."
    )
    others = "; ".join(f"{m} {100 * errors[m]:.1f} %" for m in methods if m != best)
    compared = f" ({others})" if others else ""
    return Recommendation(
        method=best,
        why=f"Recommended: {best}, because it has the lowest {_figure('error', folds)} on the {n} {_images(folds)} images: "
        f"{100 * errors[best]:.1f} %{compared}; the test labels were not used.{doubt if others else ''}",
        criterion="cross-validation",
    )


def recommend_by_map(
    methods: Sequence[str], predicted: Mapping[str, Floats], targets_NK: Targets, folds: int
) -> Recommendation:
    """For multi-label data: the method with the highest cross-validated mean average precision; the cheaper one of equals.

    Args:
        methods: In the order of their cost.
        predicted: For each method the probabilities [N, K] of the labelled images when they were held out (same order of images
            for all); empty where no cross-validation was possible.
        targets_NK: The truth.
        folds: Number of folds; 1 for predictions on validation images.
    """
    found = {m: mean_average_precision(scores, targets_NK) for m, scores in predicted.items()}
    if not found or any(np.isnan(value) for value in found.values()):
        method = next((m for m in ("probe", "knn") if m in methods), methods[0])
        return Recommendation(
            method=method,
            why=f"Recommended: {method}, by rule and not by measurement: with a single image of every class (or selection_folds=0) "
            "the labelled images allow no cross-validation.",
            criterion="rule",
        )
    best = max(methods, key=lambda m: found[m])
    draws = {m: map_draws(scores, targets_NK) for m, scores in predicted.items()}
    close = [m for m in methods if m != best and np.nanquantile(draws[best] - draws[m], 0.025) <= 0]
    doubt = (
        f" On {len(targets_NK)} labelled images it is not distinguishable from {', '.join(close)} (the 95 % interval of the paired "
        "difference holds 0)."
        if close
        else " Every other method is worse: the 95 % interval of the paired difference leaves out 0."
    )
    others = "; ".join(f"{m} {100 * found[m]:.1f} %" for m in methods if m != best)
    compared = f" ({others})" if others else ""
    return Recommendation(
        method=best,
        why=f"Recommended: {best}, because it has the highest {_figure('mean average precision (mAP)', folds)} on the "
        f"{len(targets_NK)} {_images(folds)} images: {100 * found[best]:.1f} %{compared}; the test labels were not used."
        f"{doubt if others else ''}",
        criterion="cross-validation",
    )


def _figure(name: str, folds: int) -> str:
    return f"{folds}-fold cross-validated {name}" if folds > 1 else name


def _images(folds: int) -> str:
    return "labelled" if folds > 1 else "validation"
