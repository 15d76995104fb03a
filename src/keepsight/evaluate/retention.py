"""Differences between trainings, with intervals over seeds and images; and the share of a loss that was kept.

Knows resampled differences (`evaluate.forgetting.Change.draws_D`), one row a seed, the same resamples of images in every row.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import Interval


def over_seeds(values_S: Floats, draws_SD: Floats, n: int, least: float = 0.0) -> Interval:
    """The mean of a difference over seeds with its 95 % interval: what `intervals.interval` says, of either sign.

    One seed: the percentile bootstrap over images. Several: value +- t SE with SE^2 = s^2 / S + v (scatter of seeds, and of images
    for the mean over seeds) and Satterthwaite's degrees of freedom.

    Args:
        values_S: The difference with each seed.
        draws_SD: The same on D resamples of the n images.
        n: Images.
        least: What is added on both sides where no resample differs (`Change.least`).

    Example:
        >>> found = over_seeds(np.array([0.1]), np.linspace(0, 0.2, 1001)[None], 100)
        >>> found.value, round(found.low, 3), found.kind
        (0.1, 0.005, 'paired bootstrap')
    """
    seeds, mean_D = len(values_S), draws_SD.mean(axis=0)
    value = float(values_S.mean())
    if seeds == 1:
        low, high = np.quantile(mean_D, [0.025, 0.975])
        return Interval(value, float(low) - least, float(high) + least, "paired bootstrap")
    of_seeds, of_images = float(values_S.var(ddof=1)) / seeds, float(mean_D.var(ddof=1))
    squared, half = of_seeds + of_images, least
    if squared > 0:
        freedom = squared**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / max(n - 1, 1))
        half += float(stats.t.ppf(0.975, freedom) * np.sqrt(squared))
    spread = float(values_S.std(ddof=1))
    return Interval(value, value - half, value + half, "seeds+paired bootstrap", spread)


def of_values(values_S: Floats) -> Interval:
    """The mean of a figure that is not resampled, with its 95 % t interval over seeds; with one seed the figure alone."""
    value, seeds = float(values_S.mean()), len(values_S)
    if seeds == 1:
        return Interval(value, value, value, "none")
    spread = float(values_S.std(ddof=1))
    half = float(stats.t.ppf(0.975, seeds - 1)) * spread / seeds**0.5
    return Interval(value, value - half, value + half, "seeds", spread)


def share_kept(plain: tuple[Floats, Floats], other: tuple[Floats, Floats], seed: int = 0) -> Interval:
    """1 - loss(other) / loss(plain): 1 where nothing was lost, 0 where as much as without retention, more than 1 for a gain.

    Percentile bootstrap: each draw takes the same images for both, and of several seeds a resample, the same for both. Draws in
    which the plain training lost nothing have no share and are left out: ask only where the interval of its loss excludes zero
    (then they are one in forty at most).

    Args:
        plain: Changes [S] and their resamples [S, D] of the plain training; a loss is a negative change.
        other: Of the other one, on the same seeds.
        seed: Of the resampled seeds.

    Raises:
        ValueError: The plain training lost nothing.

    Example:
        >>> lost = np.full(1, -0.04), np.full((1, 1000), -0.04)
        >>> share_kept(lost, (lost[0] / 4, lost[1] / 4)).value
        0.75
    """
    loss, left = -float(plain[0].mean()), -float(other[0].mean())
    if loss <= 0:
        raise ValueError("the plain training lost nothing: there is no share of it")
    seeds, draws = plain[1].shape
    chosen_DS = np.random.default_rng((seed, 11)).integers(0, seeds, (draws, seeds))
    losses_D, left_D = (-of[1].T[np.arange(draws)[:, None], chosen_DS].mean(axis=1) for of in (plain, other))
    there_D = losses_D > 0
    low, high = np.quantile(1 - left_D[there_D] / losses_D[there_D], [0.025, 0.975])
    kind = "paired bootstrap" if seeds == 1 else "bootstrap of seeds and images"
    return Interval(1 - left / loss, float(low), float(high), kind)
