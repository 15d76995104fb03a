"""Temperature scaling: one number that makes probabilities as sure as they are right. Knows no model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from keepsight.evaluate.classification import Floats

RANGE = (0.05, 20.0)
"""Temperatures that are looked at: predictions without an error would have it go to 0."""

_LEAST = 1e-12  # probabilities below, such as the zeros of k-NN, are taken as so much


def tempered(probabilities_NK: Floats, temperature: float) -> Floats:
    """softmax(log p / T) [N, K]: sharper below T = 1, flatter above; the order of the classes stays.

    Example:
        >>> tempered(np.array([[0.8, 0.2]]), 2.0).round(3).tolist()
        [[0.667, 0.333]]
    """
    scaled_NK = np.log(np.maximum(probabilities_NK, _LEAST)) / temperature
    scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
    risen_NK = np.exp(scaled_NK)
    found: Floats = risen_NK / risen_NK.sum(axis=1, keepdims=True)
    return found


def temperature(probabilities_NK: Floats, labels_N: NDArray[np.int64]) -> float:
    """The T that minimises the cross-entropy of softmax(log p / T), within `RANGE`.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017, section 4.2. The cross-entropy is convex
    in 1 / T, so that it has one minimum.

    Args:
        probabilities_NK: Of images that the model was not fitted on, and that nothing is reported of.
        labels_N: The truth.

    Raises:
        ValueError: There is no image.

    Example:
        >>> truth = np.array([0] * 75 + [1] * 25)
        >>> round(temperature(np.tile([0.9, 0.1], (100, 1)), truth), 3)
        2.0
    """
    if not len(labels_N):
        raise ValueError("a temperature is fitted on at least one image")
    log_NK = np.log(np.maximum(probabilities_NK, _LEAST))
    log_NK -= log_NK.max(axis=1, keepdims=True)
    truth_N = log_NK[np.arange(len(labels_N)), labels_N]

    def cross_entropy(log_temperature: float) -> float:
        beta = np.exp(-log_temperature)
        return float((np.log(np.exp(beta * log_NK).sum(axis=1)) - beta * truth_N).mean())

    low, high = (float(np.log(end)) for end in RANGE)
    found = minimize_scalar(cross_entropy, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
