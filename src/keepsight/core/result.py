"""The record every figure is, and the only thing a report reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from keepsight.core.config import Config


class Result(Config):
    """One measured figure.

    Attributes:
        task: What was measured ("classification").
        dataset: Name of the data set.
        split: "test", "validation" or "cross-validation" (on the labelled images only).
        method: Method name.
        backbone: Backbone name.
        readout: Readout as text.
        metric: Metric name ("accuracy", "error", "balanced_accuracy", "macro_f1", "ece").
        value: The figure, as a fraction.
        ci_low: Lower end of the 95 % interval.
        ci_high: Upper end of the 95 % interval.
        interval: What the interval covers: "bootstrap" (images), "seeds+bootstrap" or "none".
        n: Number of images measured.
        labels: Number of labelled images the method saw.
        seed: The seed, or None for a summary over seeds.
        seeds: Number of seeds in the figure.
        spread: Standard deviation over seeds, where there are several.
        selection: "last" (last step) or "validation" (checkpoint chosen on validation images); never test.
        trainable_parameters: Parameters that were fitted.
        seconds: Wall time of fitting and predicting, mean over seeds; the features are extracted once and not included.
        peak_mib: Peak resident memory of the process meanwhile, MiB.
        size: Input size of the backbone, px, where sizes are compared.
        before: What `value` is the change from, where it is one.
        against: What it is compared with ("untouched", or another model).
        retain: What kept the backbone near the one it came from, where that is compared ("none", "procrustes").
        chance: What guessing gives, where it is known (probes).
        better: Whether a higher or a lower `value` is better, where the metric's name alone does not say it (probes).
        detail: Whether it stands behind another figure (a probe's question type, its baseline).
    """

    task: str
    dataset: str
    split: str
    method: str
    backbone: str
    readout: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    interval: str
    n: int
    labels: int
    seed: int | None
    seeds: int
    spread: float | None = None
    selection: str = "last"
    trainable_parameters: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0
    size: int | None = None
    before: float | None = None
    against: str | None = None
    retain: str | None = None
    chance: float | None = None
    better: Literal["higher", "lower"] | None = None
    detail: bool = False


def read_results(path: Path) -> list[Result]:
    """All records of a results.jsonl."""
    return [Result.model_validate_json(line) for line in path.read_text().splitlines() if line.strip()]
