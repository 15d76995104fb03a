"""What the folder of a measurement of forgetting holds for its page: findings and points. Knows no way to make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from keepsight.core import Config, UserError

FINDINGS, POINTS = "forgetting.json", "pca.json"

UNTOUCHED = "untouched"
"""What a model is compared with unless another one is given."""

MEAN = "mean of the suite"

SHOWN = 400
"""Points of a picture, at most."""


class Figure(Config):
    """A figure before and after, and the 95 % interval of the change (see `evaluate.forgetting.Change`)."""

    before: float
    after: float
    low: float
    high: float
    kind: str

    @property
    def change(self) -> float:
        """after - before."""
        return self.after - self.before


class BlockSimilarity(Config):
    """Debiased linear CKA of one readout before and after, and of its shuffled control."""

    readout: str
    cka: float
    shuffled: float


class SetFindings(Config):
    """One data set of the suite.

    Attributes:
        name: Of the data set.
        images, classes: Counts.
        figures: By name: knn_accuracy, probe_accuracy, probe_ece, and zero_shot_accuracy where there is a text tower.
        blocks: CKA of every block, then of the model's readout.
    """

    name: str
    images: int
    classes: int
    figures: dict[str, Figure]
    blocks: tuple[BlockSimilarity, ...]


class AdapterSwitch(Config):
    """Features of some images with the LoRA adapter off and on.

    Attributes:
        images: How many.
        off_identical: Whether, with the adapter off, all features are bitwise those of the untouched backbone.
        off_deviation: Largest difference there, in units of the largest untouched feature.
        on_deviation: The same between the adapter switched on and the tuned model, into whose weights it was added: rounding.
    """

    images: int
    off_identical: bool
    off_deviation: float
    on_deviation: float


class WeightFindings(Config):
    """Relative Frobenius distances; see `evaluate.weight_distance`."""

    total: float
    blocks: dict[int, float]


class SharpnessFindings(Config):
    """See `evaluate.sharpness`; of the cross-entropy, in nats, on the model's own labelled images."""

    loss: float
    rise: float
    spread: float
    rho: float
    pairs: int
    images: int


class ForgettingFindings(Config):
    """forgetting.json.

    Attributes:
        method: How the model was fitted.
        against: "untouched", or what the model that it is compared with was fitted by.
        backbone: Name.
        readout: What k-NN and probe see.
        weights_before, weights_after: Hashes.
        config: The settings, a `recipes.forgetting_settings.ForgettingConfig`.
        sets: One a data set.
        mean: Of each figure that every set has, over the sets.
        weights: None where the two are of different architectures.
        adapter: None without a LoRA adapter.
        sharpness: None where it was not asked for.
        notes: What was left out, and why.
        extracted: Images through the backbone before; 0 where their features were cached.
        seconds: All of it.
        version: keepsight's; empty in records of versions that did not write it.
    """

    method: str
    against: str
    backbone: str
    readout: str
    weights_before: str
    weights_after: str
    config: dict[str, Any]
    sets: tuple[SetFindings, ...] = Field(min_length=1)
    mean: dict[str, Figure]
    weights: WeightFindings | None
    adapter: AdapterSwitch | None
    sharpness: SharpnessFindings | None
    notes: tuple[str, ...]
    extracted: int
    seconds: float
    version: str = ""

    def summary(self) -> str:
        """One line for a log or a report."""
        sets = f"{len(self.sets)} data sets that were" if len(self.sets) > 1 else "one data set that was"
        parts = [
            f"{title} {100 * of.before:.1f} % -> {100 * of.after:.1f} % ({100 * of.change:+.1f} [{100 * of.low:+.1f}, "
            f"{100 * of.high:+.1f}] points)"
            for name, title in (
                ("probe_accuracy", "linear probe"),
                ("knn_accuracy", "k-NN"),
                ("zero_shot_accuracy", "zero-shot"),
            )
            if (of := self.mean.get(name)) is not None
        ]
        off = " With the adapter off nothing changes." if self.adapter and self.adapter.off_identical else ""
        return f"On {sets} not trained on: {'; '.join(parts)}.{off}"


class SetPoints(Config):
    """Some images of one data set on two axes, before and after (`evaluate.forgetting.rotated_picture`).

    Attributes:
        name: Of the data set.
        before, after: A point an image, in the units of the features.
        labels: Numbers of the classes.
        classes: Their names.
    """

    name: str
    before: tuple[tuple[float, float], ...]
    after: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


class ForgettingPoints(Config):
    """pca.json, in the order of the sets."""

    sets: tuple[SetPoints, ...]


def read_findings(folder: Path) -> ForgettingFindings:
    """The findings in a folder; UserError where there are none, or they are damaged."""

    def read() -> ForgettingFindings:
        return ForgettingFindings.model_validate_json((folder / FINDINGS).read_text(encoding="utf-8"))

    found = _read(folder / FINDINGS, read)
    if found is None:
        raise UserError(f"There is no measurement of forgetting in {folder}: keepsight forgetting MODEL makes one.")
    return found


def read_points(folder: Path) -> tuple[SetPoints, ...]:
    """The points in a folder; none where an older version wrote pictures only. UserError where they are damaged."""
    found = _read(
        folder / POINTS,
        lambda: ForgettingPoints.model_validate_json((folder / POINTS).read_text(encoding="utf-8")),
    )
    return () if found is None else found.sets


_T = TypeVar("_T")


def _read(file: Path, read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{file} is damaged: measure again with keepsight forgetting --overwrite.") from error
