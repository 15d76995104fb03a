"""Which predictions are wrong with most confidence, and which labels are probably wrong. Knows no image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keepsight.evaluate.classification import Floats


def confident_mistakes(probabilities_NK: Floats, labels_N: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Rows of the wrong predictions, the most confident first, at most so many.

    Example:
        >>> confident_mistakes(np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]]), np.array([1, 1, 0]), 5).tolist()
        [1, 0]
    """
    wrong = np.flatnonzero(probabilities_NK.argmax(axis=1) != labels_N)
    order = np.argsort(-probabilities_NK[wrong].max(axis=1), kind="stable")
    return wrong[order[:most]].astype(np.int64)


@dataclass(frozen=True, slots=True)
class LabelDoubt:
    """A label that is probably wrong: its row, the class to which the image seems to belong, and the probabilities of both."""

    row: int
    suggested: int
    given_probability: float
    suggested_probability: float


def class_thresholds(probabilities_NK: Floats, labels_N: NDArray[np.int64]) -> Floats:
    """For each class the mean probability of it over the images that are labelled so [K]; infinite where there is none."""
    k = probabilities_NK.shape[1]
    counts_K = np.bincount(labels_N, minlength=k)
    given_N = probabilities_NK[np.arange(len(labels_N)), labels_N]
    sums_K = np.bincount(labels_N, weights=given_N, minlength=k)
    thresholds_K: Floats = np.divide(sums_K, counts_K, out=np.full(k, np.inf), where=counts_K > 0)
    return thresholds_K


def label_doubts(probabilities_NK: Floats, labels_N: NDArray[np.int64]) -> list[LabelDoubt]:
    """Labels that confident learning puts off the diagonal of its joint, the least likely label first.

    Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70 (2021), eq. 1 and 2: an
    image labelled i counts as one of class j if its probability of j is at least the mean probability of j over the images labelled
    j; where several classes pass, the most probable one counts. Those with j != i are doubted (the method "C_confusion" there).

    Args:
        probabilities_NK: Out of sample: each image was held out when it was predicted.
        labels_N: The labels as they were given.

    Example:
        >>> said = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
        >>> [(doubt.row, doubt.suggested) for doubt in label_doubts(said, np.array([0, 0, 1, 1, 1]))]
        [(4, 0)]
    """
    passes_NK = probabilities_NK >= class_thresholds(probabilities_NK, labels_N)
    believed_N = np.where(passes_NK, probabilities_NK, -1.0).argmax(axis=1)
    rows = np.flatnonzero(passes_NK.any(axis=1) & (believed_N != labels_N))
    made = [
        LabelDoubt(
            row,
            int(believed_N[row]),
            float(probabilities_NK[row, labels_N[row]]),
            float(probabilities_NK[row, believed_N[row]]),
        )
        for row in rows.tolist()
    ]
    return sorted(made, key=lambda doubt: (doubt.given_probability - doubt.suggested_probability, doubt.row))
