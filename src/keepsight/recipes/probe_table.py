"""The findings of probes as `Result` records: every figure with its interval, and differences in pairs. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator

from keepsight.core import Result, Score
from keepsight.evaluate.intervals import Interval
from keepsight.evaluate.scores import score_difference, score_interval
from keepsight.recipes.probe_parts import Part

TASK = "probe"


def records_of_probe(
    probe: str,
    seed: int,
    after: tuple[str, Part],
    before: tuple[str, Part] | None = None,
    against: str | None = None,
) -> list[Result]:
    """The records of one probe: each score of the network, and where it is compared, the other's and the difference.

    A difference is of the metric "..._change", with `before` and `against`. Scores are of the same items in the same order; one
    that only one of the two has (of a network with a text tower) has no difference.

    Args:
        probe: Its name.
        seed: Of the settings.
        after: The network's name and findings.
        before: The same of what it is compared with.
        against: What that is called.
    """
    return list(_records(probe, seed, after, before, against))


def _records(
    probe: str, seed: int, after: tuple[str, Part], before: tuple[str, Part] | None, against: str | None
) -> Iterator[Result]:
    others = {} if before is None else {(s.metric, s.dataset): s for s in before[1].findings.scores}
    for score in after[1].findings.scores:
        other = others.pop((score.metric, score.dataset), None)
        if before is not None and other is not None:
            start = score_interval(other)
            yield _record(probe, seed, before, other, start)
            yield _record(probe, seed, after, score, score_interval(score))
            change = _record(probe, seed, after, score, score_difference(score, other), "_change")
            yield change.model_copy(update={"before": start.value, "against": against, "chance": None})
        else:
            yield _record(probe, seed, after, score, score_interval(score))
    for score in others.values():
        if before is not None:
            yield _record(probe, seed, before, score, score_interval(score))


def _record(probe: str, seed: int, of: tuple[str, Part], score: Score, found: Interval, suffix: str = "") -> Result:
    title, part = of
    seeds = len(score.values)
    return Result(
        task=TASK,
        dataset=score.dataset,
        split="test",
        method=probe,
        backbone=title,
        readout="probe",
        metric=f"{score.metric}{suffix}",
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.kind,
        n=score.values.shape[1],
        labels=0,
        seed=seed if seeds == 1 else None,
        seeds=seeds,
        spread=found.spread,
        trainable_parameters=part.trainable_parameters,
        seconds=part.seconds,
        peak_mib=part.peak_mib,
        size=part.size,
        chance=score.chance,
        better=score.better,
        detail=not score.shown,
    )
