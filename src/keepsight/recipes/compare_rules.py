"""When a candidate of a comparison stops: figures on held-out labelled images, and a rule. Knows no training and no folder."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from keepsight.core import Dataset
from keepsight.evaluate.classification import METRICS, Floats
from keepsight.evaluate.intervals import interval
from keepsight.evaluate.multilabel import MAP, map_draws, mean_average_precision, multilabel_intervals
from keepsight.recipes.context import Indices
from keepsight.report.ladder_records import LadderFigure

SURELY = 0.05
"""The chance at which a difference as large or larger counts as sure, one-sided."""

RULE = (
    "After a rung of frozen backbones or of short trainings a candidate stops where two things hold: it is out of the better "
    "half of those that were trained alike in this rung, and it is surely worse than the best of them on the same held-out "
    "images. Surely: by chance, the images that one of the two gets right and the other wrong would fall so unevenly once in "
    "20 times at most (exact one-sided sign test; for multi-label data the 5 % quantile of the paired bootstrap of the "
    "difference in mAP). After the full rung, where frozen and tuned candidates are ranked together, the worse half stops by "
    "rank alone: the recommendation is made of these very figures, and by them it cannot win. The best tuned candidate never "
    "stops there. Where forgetting is limited, what tunes the backbone stops on the full rung alone, and only if it is surely "
    "worse than the best candidate on the frozen backbone, which forgets nothing: any other one may turn out to forget too "
    "much."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate goes on, why, and its figure."""

    goes_on: bool
    reason: str
    figure: LadderFigure | None


@dataclass(frozen=True, slots=True)
class Judge:
    """Compares predictions on held-out images.

    Attributes:
        dataset: Theirs.
        indices: Which images of it, in the order of the predictions.
    """

    dataset: Dataset
    indices: Indices

    @property
    def truth(self) -> NDArray[np.int64] | NDArray[np.int8]:
        """Class indices [N], or targets [N, K]."""
        return self.dataset.truth[self.indices]

    def loss(self, predicted_NK: Floats) -> float:
        """What is to be small: the error, or 1 - mAP; 1 where the mAP is not defined."""
        if self.dataset.targets is None:
            return float((predicted_NK.argmax(axis=1) != self.truth).mean())
        found = mean_average_precision(predicted_NK, self.truth)
        return 1.0 if math.isnan(found) else 1.0 - found

    def figure(self, predicted_NK: Floats) -> LadderFigure | None:
        """The error or mAP with its interval; None where it is not defined."""
        n = len(self.indices)
        if self.dataset.targets is None:
            found = interval(METRICS["error"], [predicted_NK], self.dataset.labels[self.indices])
            return LadderFigure(value=found.value, low=found.low, high=found.high, n=n)
        all_found = multilabel_intervals([predicted_NK], self.truth, self.dataset.classes)
        if MAP not in all_found:
            return None
        found = all_found[MAP][0]
        return LadderFigure(value=found.value, low=found.low, high=found.high, n=n)

    def surely_worse(self, predicted_NK: Floats, best_NK: Floats) -> tuple[bool, str]:
        """Whether the first is surely worse than the second, and the figures behind that in words.

        Example:
            >>> from keepsight.data.arrays import ArrayImages
            >>> images = ArrayImages(np.zeros((8, 4, 4), np.uint8))
            >>> dataset = Dataset("two", images, np.array([0, 1] * 4), ("a", "b"), ("",) * 8)
            >>> right = np.eye(2)[dataset.labels]
            >>> Judge(dataset, np.arange(8)).surely_worse(1 - right, right)
            (True, 'wrong on 8 images that it has right, right on 0 that it has wrong, p = 0.0039')
        """
        if self.dataset.targets is not None:
            draws_D = map_draws(best_NK, self.truth) - map_draws(predicted_NK, self.truth)
            low = float(np.nanquantile(draws_D, SURELY))
            return low > 0, f"mAP lower by {100 * float(np.nanmean(draws_D)):.1f} points, at least {100 * low:.1f}"
        wrong_N, best_wrong_N = (p.argmax(axis=1) != self.truth for p in (predicted_NK, best_NK))
        lost, gained = int((wrong_N & ~best_wrong_N).sum()), int((best_wrong_N & ~wrong_N).sum())
        chance = float(stats.binomtest(lost, lost + gained, alternative="greater").pvalue) if lost + gained else 1.0
        words = f"wrong on {lost} images that it has right, right on {gained} that it has wrong, p = {chance:.2g}"
        return chance <= SURELY, words


def verdicts(
    judge: Judge,
    predicted: Mapping[str, Floats],
    before: Collection[str] = (),
    safe: Collection[str] = (),
    by_rank: bool = False,
) -> dict[str, Verdict]:
    """What becomes of candidates after a rung; see `RULE`.

    Args:
        judge: Of the rung's held-out images.
        predicted: Probabilities [N, K] by candidate, from cheap to dear; of equals the cheaper one is the better one.
        before: Of these, the ones that have gone on already and are only compared with.
        safe: Those that never stop.
        by_rank: The worse half stops, surely worse or not.
    """
    losses = {name: judge.loss(p_NK) for name, p_NK in predicted.items()}
    ranked = sorted(predicted, key=lambda name: losses[name])
    best, half = ranked[0], math.ceil(len(ranked) / 2)
    found = {}
    for name, p_NK in predicted.items():
        if name in before:
            continue
        goes_on, reason = name in ranked[:half], f"rank {ranked.index(name) + 1} of {len(ranked)}"
        if not goes_on:
            sure, words = judge.surely_worse(p_NK, predicted[best])
            goes_on = not sure and not by_rank
            reason = f"{reason}, {'' if sure else 'not '}surely worse than {best} ({words})"
        if not goes_on and name in safe:
            goes_on, reason = True, f"{reason}; it goes on as the best that is tuned"
        found[name] = Verdict(goes_on, reason, judge.figure(p_NK))
    return found


def verdicts_under_limit(
    judge: Judge, predicted: Mapping[str, Floats], before: Collection[str], frozen: str | None
) -> dict[str, Verdict]:
    """The same where forgetting is limited: only what is surely worse than the best candidate on the frozen backbone stops.

    Args:
        judge: Of the rung's held-out images.
        predicted: Probabilities [N, K] by candidate.
        before: Of these, the ones that have gone on already.
        frozen: The best of them, trained alike; None where there is none to compare with.
    """
    found = {}
    for name, p_NK in predicted.items():
        if name in before:
            continue
        sure, words = judge.surely_worse(p_NK, predicted[frozen]) if frozen is not None else (False, "")
        why = f"{'' if sure else 'not '}surely worse than {frozen} ({words})" if words else "forgetting is limited"
        found[name] = Verdict(not sure, why, judge.figure(p_NK))
    return found


def best_of(judge: Judge, predicted: Mapping[str, Floats], names: Sequence[str]) -> str | None:
    """The one with the smallest loss, the first (cheapest) of equals; None of none."""
    there = [name for name in names if name in predicted]
    return min(there, key=lambda name: judge.loss(predicted[name])) if there else None


def curve_choice(judges: Sequence[Judge], curves: Sequence[Floats], alphas: Sequence[float]) -> float:
    """The alpha with the smallest loss over all folds together; of equals the smallest alpha, which changes the backbone least.

    Args:
        judges: One a fold.
        curves: Probabilities [A, N, K] of each fold.
        alphas: A of them.
    """
    sizes = np.array([len(judge.indices) for judge in judges], dtype=np.float64)
    loss_A = [
        float(np.dot(sizes, [judge.loss(curve[a]) for judge, curve in zip(judges, curves, strict=True)]))
        for a in range(len(alphas))
    ]
    return alphas[min(range(len(alphas)), key=lambda a: (loss_A[a], alphas[a]))]


def along_curve(judges: Sequence[Judge], curves: Sequence[Floats], alphas: Sequence[float]) -> Floats:
    """Probabilities [N, K] of all folds, each at the alpha that the other folds choose, so that the choice does not flatter them.

    With one fold alone it is the alpha that this fold chooses.
    """
    parts = []
    for i, curve in enumerate(curves):
        others = [j for j in range(len(curves)) if j != i] or [i]
        alpha = curve_choice([judges[j] for j in others], [curves[j] for j in others], alphas)
        parts.append(curve[list(alphas).index(alpha)])
    return np.concatenate(parts)
