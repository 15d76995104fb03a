"""What a measurement of forgetting found as `Result` records. Knows no features."""

from __future__ import annotations

from collections.abc import Iterator

from keepsight.core import Result
from keepsight.report.forgetting_records import MEAN, ForgettingFindings


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
        seed=int(found.config["seed"]),
        seeds=1,
        before=before,
        against=found.against,
    )
