"""What the figures of a run cannot say, by the numbers: too few images, too few seeds, wide intervals, labels used twice."""

from __future__ import annotations

from collections.abc import Iterator

from keepsight.report.run_records import RunRecords
from keepsight.report.summary import MAP

FEW_TEST, FEW_SEEDS, FEW_LABELS = 300, 3, 5
"""Fewer test images, seeds, or labels of a class are said."""

WIDE = 0.05
"""An interval that is wider is said."""


def limitations(run: RunRecords) -> list[str]:
    """Sentences, the weightiest first."""
    return [*_leaks(run), *_test(run), *_choices(run), *_forgetting(run)]


def _leaks(run: RunRecords) -> Iterator[str]:
    if run.diagnosis is None:
        yield "This run kept no record of its predictions: what the page says of calibration, mistakes and data is missing."
        return
    data = run.diagnosis.data
    if data.same_across:
        yield (
            f"{data.same_across:,} images are in two parts: figures on test or validation images that were also learnt from are "
            "too good."
        )
    if data.near_across:
        yield f"{data.near_across:,} pairs of images in two parts look nearly the same: figures may be too good."
    if data.skipped:
        share = data.skipped / (data.skipped + data.images)
        yield f"{data.skipped:,} images ({100 * share:.1f} %) could not be read and are in no figure."
    absent = [c.name for c in data.classes if data.test and not c.test]
    if absent:
        named = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        yield f"{len(absent)} of {len(data.classes)} classes have no test image ({named}): nothing is known of them."
    few = [c for c in data.classes if c.labelled < FEW_LABELS]
    if few:
        least = min(c.labelled for c in few)
        yield f"{len(few)} of {len(data.classes)} classes have fewer than {FEW_LABELS} labelled images (the least: {least})."


def _test(run: RunRecords) -> Iterator[str]:
    own = run.summary(run.method)
    if own is None:
        yield "There are no test images: the cross-validated figures chose the method, and are too good for the chosen one."
        return
    name = "mAP" if run.metric == MAP else "error"
    if own.n < FEW_TEST:
        yield f"n is small: {own.n:,} test images."
    width = own.ci_high - own.ci_low
    if width > WIDE:
        yield f"The 95 % interval of {run.method}'s test {name} is {100 * width:.1f} points wide."
    gain = run.gain(run.method)
    if gain is not None and gain.high - gain.low > WIDE:
        yield f"The 95 % interval of its gain over {run.baseline} is {100 * (gain.high - gain.low):.1f} points wide."
    if own.seeds < FEW_SEEDS:
        scatter = "how figures scatter over seeds is not known" if own.seeds == 1 else "intervals over seeds are wide"
        yield f"Seeds are few ({own.seeds}): {scatter}."
    tested = sum(run.summary(method) is not None for method in run.methods)
    if tested > 2:
        yield (
            f"{tested} methods were measured on the same test images, and each interval is for one of them: the best of many looks "
            "better than it is. That is why the method was chosen on the labelled images."
        )
    if run.diagnosis is not None and run.diagnosis.methods:
        yield "Calibration, confusion and mistakes are those of one seed."


def _choices(run: RunRecords) -> Iterator[str]:
    if run.criterion == "rule":
        yield "The method was named by rule: the labels did not allow a cross-validation, so that no measurement speaks for it."
    cv = run.validated(run.method)
    if cv is not None and cv.n < FEW_TEST:
        yield f"The choice rests on {cv.n:,} labelled images, each held out once."
    reused = sorted({r.method for r in run.results if r.selection == "validation"})
    if reused:
        yield f"Validation images were used again and again to choose a step of the training ({', '.join(reused)})."
    if run.ladder is not None and run.ladder.held_out == "validation images":
        yield "Candidates were compared on the validation images: their figures there are too good for the chosen one."


def _forgetting(run: RunRecords) -> Iterator[str]:
    unknown = [m for m in run.methods if run.is_tuned(m) and m not in run.forgetting and m.partition("+")[0] != "cnn"]
    if unknown:
        yield f"What {', '.join(unknown)} forgot was not measured."
    if run.forgetting:
        sets = max(len(found.sets) for found in run.forgetting.values())
        yield (
            f"Forgetting was measured on {sets} data set{'s' if sets != 1 else ''}, with the first seed's model: other data may "
            "say otherwise."
        )
