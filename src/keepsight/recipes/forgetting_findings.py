"""forgetting.json: what a measurement of forgetting found, and the same as `Result` records. Knows no features."""

from __future__ import annotations

from collections.abc import Iterator

from keepsight.core import Config, Result
from keepsight.evaluate.forgetting import Change
from keepsight.recipes.forgetting_settings import ForgettingConfig

UNTOUCHED = "untouched"
"""What a model is compared with unless another one is given."""

MEAN = "mean of the suite"


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

    @staticmethod
    def of(change: Change) -> Figure:
        """The same without its draws."""
        return Figure(before=change.before, after=change.after, low=change.low, high=change.high, kind=change.kind)


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
        config: The settings.
        sets: One a data set.
        mean: Of each figure that every set has, over the sets.
        weights: None where the two are of different architectures.
        adapter: None without a LoRA adapter.
        sharpness: None where it was not asked for.
        notes: What was left out, and why.
        extracted: Images through the backbone before; 0 where their features were cached.
        seconds: All of it.
    """

    method: str
    against: str
    backbone: str
    readout: str
    weights_before: str
    weights_after: str
    config: ForgettingConfig
    sets: tuple[SetFindings, ...]
    mean: dict[str, Figure]
    weights: WeightFindings | None
    adapter: AdapterSwitch | None
    sharpness: SharpnessFindings | None
    notes: tuple[str, ...]
    extracted: int
    seconds: float

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


def records_of_findings(found: ForgettingFindings) -> list[Result]:
    """One `Result` a figure: changes with `before`, similarities, distances."""
    made = []
    for name, images, figures in (
        *((s.name, s.images, s.figures) for s in found.sets),
        (MEAN, sum(s.images for s in found.sets), found.mean),
    ):
        for metric, of in figures.items():
            made.append(
                _record(
                    found,
                    name,
                    f"{metric}_change",
                    of.change,
                    images,
                    found.readout,
                    (of.low, of.high, of.kind),
                    of.before,
                )
            )
    for s in found.sets:
        for block in s.blocks:
            made.append(_record(found, s.name, "cka", block.cka, s.images, block.readout))
            made.append(_record(found, s.name, "cka_shuffled", block.shuffled, s.images, block.readout))
    made += _others(found)
    return made


def _others(found: ForgettingFindings) -> Iterator[Result]:
    if found.weights is not None:
        yield _record(found, "weights", "weight_distance", found.weights.total, 0, "all")
        for block, distance in found.weights.blocks.items():
            yield _record(found, "weights", "weight_distance", distance, 0, f"block {block}")
    if found.sharpness is not None:
        of = found.sharpness
        yield _record(found, "labelled images", "sharpness", of.rise, of.images, found.readout, before=of.loss)
    if found.adapter is not None:
        of_off = found.adapter
        yield _record(found, "suite", "adapter_off_deviation", of_off.off_deviation, of_off.images, found.readout)


def _record(
    found: ForgettingFindings,
    dataset: str,
    metric: str,
    value: float,
    n: int,
    readout: str,
    interval: tuple[float, float, str] | None = None,
    before: float | None = None,
) -> Result:
    low, high, kind = interval or (value, value, "none")
    return Result(
        task="forgetting",
        dataset=dataset,
        split="cross-validation" if interval else "all",
        method=found.method,
        backbone=found.backbone,
        readout=readout,
        metric=metric,
        value=value,
        ci_low=low,
        ci_high=high,
        interval=kind,
        n=n,
        labels=0,
        seed=found.config.seed,
        seeds=1,
        before=before,
        against=found.against,
    )
