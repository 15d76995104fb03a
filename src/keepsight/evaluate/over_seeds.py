"""The mean of records that differ by their seed alone, with an interval over seeds and images. Knows no predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from keepsight.core import Result


def over_seeds(records: Sequence[Result]) -> Result:
    """One record for several runs that measured the same on the same images with different seeds.

    The seeds' scatter and the images' scatter are independent; the squared standard error is s^2 / S + v. s is the standard
    deviation over the S seeds. v is the mean of the squared standard errors over images, each a record's interval over two
    times 1.96; it is not divided by S, since all seeds were measured on the same images. The interval is value +- t SE with
    Welch's and Satterthwaite's degrees of freedom, as in `intervals.interval`, of which this is the version that needs no
    predictions.

    Args:
        records: At least one, of one metric, task, part and n each; with one alone it is given back.

    Raises:
        ValueError: None are given, or they are of different things.
    """
    first = records[0] if records else None
    if first is None or any(_what(r) != _what(first) for r in records):
        raise ValueError("a mean over seeds needs records of one metric on the same images")
    if len(records) == 1:
        return first
    values = np.array([r.value for r in records])
    of_images = float(np.mean([((r.ci_high - r.ci_low) / (2 * stats.norm.ppf(0.975))) ** 2 for r in records]))
    of_seeds = float(values.var(ddof=1)) / len(values)
    squared = of_seeds + of_images
    half = 0.0
    if squared > 0:
        freedom = squared**2 / (of_seeds**2 / (len(values) - 1) + of_images**2 / max(first.n - 1, 1))
        half = float(stats.t.ppf(0.975, freedom)) * math.sqrt(squared)
    value = float(values.mean())
    befores = [r.before for r in records if r.before is not None]
    return first.model_copy(
        update={
            "value": value,
            "ci_low": value - half,
            "ci_high": value + half,
            "interval": "seeds+bootstrap",
            "seed": None,
            "seeds": len(records),
            "spread": float(values.std(ddof=1)),
            "seconds": float(np.mean([r.seconds for r in records])),
            "peak_mib": max(r.peak_mib for r in records),
            "before": float(np.mean(befores)) if len(befores) == len(records) else None,
        }
    )


def _what(record: Result) -> tuple[object, ...]:
    return (record.task, record.dataset, record.split, record.method, record.metric, record.n, record.against)
