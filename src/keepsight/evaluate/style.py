"""What a content-style head calls style, in figures: swaps, prototypes, neighbours, and what style still tells of the class.

Knows the head and the tokens of N images; no images and no backbone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import UNLABELLED, Config
from keepsight.heads.content_style import ContentStyleHead

Indices = NDArray[np.int64]

PROBED = 3000
"""Images, at most, that the probes are fitted on."""


@dataclass(frozen=True, slots=True)
class Decomposed:
    """N images, decomposed.

    Attributes:
        head: With a style part.
        tokens_ND: z.
        content_NK: Class probabilities.
        style_NS: Style.
        labels_N: Index into the head's classes, UNLABELLED where it is not known.
    """

    head: ContentStyleHead
    tokens_ND: Tensor
    content_NK: Tensor
    style_NS: Tensor
    labels_N: Indices

    @property
    def predicted(self) -> Indices:
        """The predicted class of every image."""
        found: Indices = self.content_NK.argmax(dim=1).numpy()
        return found


class Swaps(Config):
    """Nearest images of decode(content of i, style of j), i and j among M chosen images.

    Attributes:
        nearest: [M, M] indices; row i has i's content, column j has j's style. Neither i nor j is ever the answer.
        cosines: [M, M] between the decoded token and the nearest one.
        swapped: Number of cells with i and j of different predicted classes: those are counted below.
        kept: Of these, how many nearest images have i's predicted class.
        taken: How many have j's predicted class.
        swapped_true: As `swapped`, by true classes, where those of i, j and the nearest image are known.
        kept_true: Of these, how many have i's true class.
        style_distance: Mean distance between the style of the nearest image and the wanted one, over all cells with i != j.
        style_distance_random: The same for images drawn at random.
    """

    nearest: tuple[tuple[int, ...], ...]
    cosines: tuple[tuple[float, ...], ...]
    swapped: int
    kept: int
    taken: int
    swapped_true: int
    kept_true: int
    style_distance: float
    style_distance_random: float


class Probed(Config):
    """How well something is predicted by a linear probe, cross-validated.

    Attributes:
        of: What is predicted.
        measure: "accuracy", or "r2" (share of the variance) for numbers.
        style, content, token: By the style alone, by the class probabilities alone, by the whole token.
        chance: Share of the largest class; 0 for numbers.
        n: Images.
    """

    of: str
    measure: str
    style: float
    content: float
    token: float
    chance: float
    n: int


class Reconstruction(Config):
    """Mean of 1 - cosine between tokens and what the decoder makes of them: own parts, and one of them of another image."""

    own: float
    style_permuted: float
    content_permuted: float


class StyleFigures(Config):
    """The distribution of style over the images, which training pulls towards N(0, I).

    Attributes:
        mean, sd: Of each axis.
        normality: Of each axis: correlation of its sorted values with the quantiles of a normal distribution; 1 is normal.
        largest_correlation: Largest absolute correlation between two axes; 0 for independent ones.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    normality: tuple[float, ...]
    largest_correlation: float


def decompose(head: ContentStyleHead, tokens_ND: Tensor, labels_N: Indices) -> Decomposed:
    """All tokens through the head."""
    with torch.no_grad():
        content_NK, style_NS = head.content(tokens_ND), head.style(tokens_ND)
    return Decomposed(head, tokens_ND, content_NK, style_NS, labels_N)


def nearest_tokens(
    of: Decomposed, content_BK: Tensor, style_BS: Tensor, exclude: Sequence[Sequence[int]] = (), count: int = 1
) -> tuple[Indices, NDArray[np.float64]]:
    """Images whose tokens are nearest (by cosine) to decode(content, style): indices [B, count] and cosines, nearest first.

    Args:
        of: The images.
        content_BK: Content.
        style_BS: Style.
        exclude: For each row the images that may not be the answer; none by default.
        count: How many.
    """
    with torch.no_grad():
        decoded_BD = of.head.decode(content_BK, style_BS)
        cosines_BN = F.normalize(decoded_BD, dim=1) @ F.normalize(of.tokens_ND, dim=1).T
    for row, left_out in zip(cosines_BN, exclude, strict=False):
        row[list(left_out)] = -torch.inf
    values, places = cosines_BN.topk(count, dim=1)
    return places.numpy(), values.double().numpy()


def swap(of: Decomposed, chosen: Indices, seed: int = 0) -> Swaps:
    """Every chosen image's content with every chosen image's style."""
    m = len(chosen)
    rows, columns = np.repeat(chosen, m), np.tile(chosen, m)
    exclude = list(zip(rows.tolist(), columns.tolist(), strict=True))
    wanted_BS = of.style_NS[columns]
    places, cosines = nearest_tokens(of, of.content_NK[rows], wanted_BS, exclude)
    found, predicted, truth = places[:, 0], of.predicted, of.labels_N
    differ = predicted[rows] != predicted[columns]
    known = (truth[rows] != UNLABELLED) & (truth[columns] != UNLABELLED) & (truth[found] != UNLABELLED)
    differ_true = known & (truth[rows] != truth[columns])
    other = rows != columns
    random = np.random.default_rng(seed).integers(0, len(of.tokens_ND), len(rows))
    return Swaps(
        nearest=tuple(tuple(row) for row in found.reshape(m, m).tolist()),
        cosines=tuple(tuple(row) for row in cosines.reshape(m, m).tolist()),
        swapped=int(differ.sum()),
        kept=int((predicted[found] == predicted[rows])[differ].sum()),
        taken=int((predicted[found] == predicted[columns])[differ].sum()),
        swapped_true=int(differ_true.sum()),
        kept_true=int((truth[found] == truth[rows])[differ_true].sum()),
        style_distance=_distance(of.style_NS[found] - wanted_BS, other),
        style_distance_random=_distance(of.style_NS[random] - wanted_BS, other),
    )


def _distance(differences_BS: Tensor, counted: NDArray[np.bool_]) -> float:
    chosen_CS = differences_BS[torch.from_numpy(counted)]
    return float(chosen_CS.norm(dim=1).mean()) if len(chosen_CS) else 0.0


def neighbours(of: Decomposed, index: int, count: int) -> dict[str, Indices]:
    """The nearest other images of one, in three spaces.

    ``style``: by the distance of styles, among images of other predicted classes; ``content``: by the distance of the square roots
    of class probabilities (Hellinger); ``token``: by cosine. There may be fewer in ``style``.
    """
    predicted = of.predicted
    style_N = (of.style_NS - of.style_NS[index]).norm(dim=1)
    style_N[torch.from_numpy(predicted == predicted[index])] = torch.inf
    content_N = (of.content_NK.sqrt() - of.content_NK[index].sqrt()).norm(dim=1)
    token_N = 1 - F.cosine_similarity(of.tokens_ND, of.tokens_ND[index][None], dim=1)
    found = {}
    for name, distance_N in (("style", style_N), ("content", content_N), ("token", token_N)):
        distance_N[index] = torch.inf
        order = torch.argsort(distance_N, stable=True)[:count]
        found[name] = order[torch.isfinite(distance_N[order])].numpy()
    return found


def reconstruction(of: Decomposed, seed: int = 0) -> Reconstruction:
    """How far decoded tokens are from the real ones; what permuting a part costs is what the decoder uses it for."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(of.tokens_ND)))

    def error(content_NK: Tensor, style_NS: Tensor) -> float:
        with torch.no_grad():
            decoded_ND = of.head.decode(content_NK, style_NS)
        return float(1 - F.cosine_similarity(decoded_ND, of.tokens_ND, dim=1).mean())

    return Reconstruction(
        own=error(of.content_NK, of.style_NS),
        style_permuted=error(of.content_NK, of.style_NS[order]),
        content_permuted=error(of.content_NK[order], of.style_NS),
    )


def style_figures(style_NS: Tensor) -> StyleFigures:
    """Moments of the style [N, S], N at least 2.

    Example:
        >>> style_figures(torch.tensor([[1.0], [3.0]])).mean
        (2.0,)
    """
    values = style_NS.double().numpy()
    n, axes = values.shape
    sd = values.std(axis=0)
    quantiles = stats.norm.ppf((np.arange(n) + 0.5) / n)
    spread = sd > 0
    normality = [float(np.corrcoef(np.sort(values[:, a]), quantiles)[0, 1]) if spread[a] else 0.0 for a in range(axes)]
    correlations = np.corrcoef(values[:, spread], rowvar=False) if spread.sum() > 1 else np.eye(1)
    return StyleFigures(
        mean=tuple(values.mean(axis=0).tolist()),
        sd=tuple(sd.tolist()),
        normality=tuple(normality),
        largest_correlation=float(np.abs(correlations - np.eye(len(correlations))).max()),
    )


def probe(of: Decomposed, what: str, target: NDArray[np.generic], seed: int = 0) -> Probed | None:
    """Predict `target` [N'] of the first N' images from style, content and token, by cross-validated linear probes.

    Numbers (floats) are predicted by ridge regression, everything else by logistic regression; at most `PROBED` images, drawn by
    the seed, are used. None where there is nothing to predict: fewer than two classes of two images, or no spread.

    Args:
        of: The images.
        what: Name of the target.
        target: Floats (NaN: unknown), or classes (UNLABELLED or "": unknown).
        seed: Of the folds and of the images used.
    """
    numbers = target.dtype.kind == "f"
    known = (
        np.isfinite(target.astype(float)) if numbers else (target != (UNLABELLED if target.dtype.kind == "i" else ""))
    )
    rows = np.flatnonzero(known)
    if not numbers:
        values, counts = np.unique(target[rows], return_counts=True)
        rows = rows[np.isin(target[rows], values[counts >= 2])]
    if len(rows) > PROBED:
        rows = np.sort(np.random.default_rng(seed).choice(rows, PROBED, replace=False))
    values, counts = np.unique(target[rows], return_counts=True)
    if len(values) < 2 or len(rows) < 4 or (not numbers and counts.min() < 2):
        return None
    chance = 0.0 if numbers else float(counts.max() / counts.sum())
    scores = [
        _score(x[torch.from_numpy(rows)].double().numpy(), target[rows], numbers, min(5, counts.min()), seed)
        for x in (of.style_NS, of.content_NK, of.tokens_ND)
    ]
    return Probed(
        of=what,
        measure="r2" if numbers else "accuracy",
        style=scores[0],
        content=scores[1],
        token=scores[2],
        chance=chance,
        n=len(rows),
    )


def _score(x_NF: NDArray[np.float64], y_N: NDArray[np.generic], numbers: bool, smallest: int, seed: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last digits of the weights do not matter here
        if numbers:
            model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 7)))
            folds = KFold(min(5, len(y_N)), shuffle=True, random_state=seed)
            truth = y_N.astype(float)
            residual = truth - cross_val_predict(model, x_NF, truth, cv=folds)
            return float(1 - residual.var() / truth.var())
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        strata = StratifiedKFold(smallest, shuffle=True, random_state=seed)
        return float((cross_val_predict(model, x_NF, y_N, cv=strata) == y_N).mean())
