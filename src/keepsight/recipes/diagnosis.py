"""What a run keeps for its page besides figures: diagnosis.json, tested.json and losses.json, made before the run is sealed.

Choices (the baseline, temperatures, doubted labels) are made on labelled images that were held out in turn. Test images only say
how well that did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from keepsight.core import Dataset, Result, UserError
from keepsight.data.scan import BadImage
from keepsight.data.splits import Splits
from keepsight.evaluate.calibration import ReliabilityBin, ece_change, reliability
from keepsight.evaluate.classification import Floats, confusion
from keepsight.evaluate.intervals import Interval
from keepsight.evaluate.mistakes import confident_mistakes, label_doubts
from keepsight.evaluate.multilabel import mean_average_precision
from keepsight.evaluate.paired import error_change, map_change
from keepsight.evaluate.temperature import temperature, tempered
from keepsight.recipes.context import Context, Indices
from keepsight.recipes.data_facts import data_facts
from keepsight.recipes.losses import losses_of
from keepsight.recipes.origin import DIGITS
from keepsight.report.diagnosis_records import (
    BinRecord,
    Calibration,
    DataFacts,
    Diagnosis,
    Estimate,
    LabelError,
    LabelErrors,
    MethodDiagnosis,
    Mistake,
    write_diagnosis,
)
from keepsight.report.loss_records import write_losses
from keepsight.report.page import Picture, picture
from keepsight.report.tested_records import TESTED, AnswerRecord, Answers, write_tested

MISTAKES, DOUBTS = 12, 24
"""So many are shown, at most."""

LONGEST = 96
"""Longer side of their pictures, px."""

PREFERRED = ("label-propagation", "probe", "knn")
"""The baseline where the labels are too few to choose it."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What one method said.

    Attributes:
        name: As records call it ("finetune-full+procrustes").
        tuned: Whether it trains a network on images; otherwise it is cheap, and the backbone stays as it was.
        rows: The labelled images [L] that were held out in turn.
        held_out: Probabilities [L, K] of them; None without a cross-validation.
        tested: By seed, in their order, the probabilities [N, K] of the test images.
    """

    name: str
    tuned: bool
    rows: Indices
    held_out: Floats | None
    tested: Mapping[int, Floats]


def write_page_records(
    context: Context,
    splits: Splits,
    methods: Sequence[Outcomes],
    results: Sequence[Result],
    recommended: str,
    skipped: Sequence[BadImage] = (),
) -> Diagnosis:
    """Write all three records into the run's folder; on the main process, before the run is sealed.

    Args:
        context: The run's.
        splits: Its parts.
        methods: Those with a result, from cheap to dear.
        results: All records of the run.
        recommended: By what labels are doubted.
        skipped: Images that could not be read.
    """
    data = data_facts(context, splits, skipped)
    found = diagnose(context.dataset, splits, methods, results, recommended, data)
    write_diagnosis(context.folder, found)
    write_losses(context.folder, losses_of(context.folder, [method.name for method in methods]))
    tested = tested_of(context, splits, methods)
    if tested is None:
        (context.folder / TESTED).unlink(missing_ok=True)
    else:
        write_tested(context.folder, tested)
    return found


def diagnose(
    dataset: Dataset,
    splits: Splits,
    methods: Sequence[Outcomes],
    results: Sequence[Result],
    recommended: str,
    data: DataFacts,
) -> Diagnosis:
    """The record; see `write_page_records` for the arguments."""
    baseline, chosen_by = strongest_cheap(dataset, methods, len(splits.draws[0].unlabelled) > 0)
    return Diagnosis(
        baseline=baseline,
        chosen_by=chosen_by,
        frozen=tuple(method.name for method in methods if not method.tuned),
        multilabel=dataset.targets is not None,
        classes=dataset.classes,
        methods=tuple(_of_method(dataset, splits, method) for method in methods if method.tested and len(splits.test)),
        differences=_differences(dataset, splits, methods, results, baseline),
        label_errors=_label_errors(dataset, methods, recommended),
        data=data,
    )


def strongest_cheap(
    dataset: Dataset, methods: Sequence[Outcomes], has_unlabelled: bool
) -> tuple[str | None, Literal["cross-validation", "rule"]]:
    """The best method that leaves the backbone as it is, by the held-out labelled images; the cheaper (earlier) one of equals.

    Without a cross-validation it is named by rule. Test images are not looked at.
    """
    cheap = [method for method in methods if not method.tuned]
    if not cheap:
        return None, "rule"
    figures = [_held_out_figure(dataset, method) for method in cheap]
    if any(np.isnan(figure) for figure in figures):
        preferred = PREFERRED if has_unlabelled and dataset.targets is None else PREFERRED[1:]
        names = [method.name for method in cheap]
        return next((name for name in preferred if name in names), names[0]), "rule"
    return cheap[int(np.argmin(figures))].name, "cross-validation"


def _held_out_figure(dataset: Dataset, method: Outcomes) -> float:
    """Error, or minus the mean average precision, on the held-out labelled images; NaN where there is none."""
    if method.held_out is None or not len(method.rows):
        return float("nan")
    if dataset.targets is not None:
        return -mean_average_precision(method.held_out, dataset.targets[method.rows])
    return float((method.held_out.argmax(axis=1) != dataset.labels[method.rows]).mean())


def _differences(
    dataset: Dataset, splits: Splits, methods: Sequence[Outcomes], results: Sequence[Result], baseline: str | None
) -> tuple[Result, ...]:
    """Of every method to the baseline on the test images, over the seeds that both were fitted with."""
    against = next((method for method in methods if method.name == baseline), None)
    metric = "mean_average_precision" if dataset.targets is not None else "error"
    made = []
    for method in methods if against is not None and len(splits.test) else ():
        assert against is not None
        shared = [seed for seed in method.tested if seed in against.tested]
        own, other = (_summary(results, name, metric) for name in (method.name, against.name))
        if method is against or not shared or own is None or other is None:
            continue
        pair = [method.tested[seed] for seed in shared], [against.tested[seed] for seed in shared]
        found = _change(dataset, splits.test, *pair)
        change = {
            "metric": f"{metric}_change",
            "value": found.value,
            "ci_low": found.low,
            "ci_high": found.high,
            "interval": found.kind,
            "spread": found.spread,
            "seeds": len(shared),
            "before": other.value,
            "against": against.name,
        }
        made.append(own.model_copy(update=change))
    return tuple(made)


def _change(dataset: Dataset, test: Indices, first: Sequence[Floats], second: Sequence[Floats]) -> Interval:
    if dataset.targets is not None:
        return map_change(first, second, dataset.targets[test])
    truth = dataset.labels[test]
    return error_change([p.argmax(axis=1) != truth for p in first], [p.argmax(axis=1) != truth for p in second])


def _summary(results: Sequence[Result], method: str, metric: str) -> Result | None:
    return next(
        (r for r in results if (r.method, r.metric, r.split, r.seed) == (method, metric, "test", None)),
        None,
    )


def _of_method(dataset: Dataset, splits: Splits, method: Outcomes) -> MethodDiagnosis:
    seed, probabilities_NK = next(iter(method.tested.items()))
    n = len(splits.test)
    if dataset.targets is not None:
        return MethodDiagnosis(method=method.name, seed=seed, images=n)
    labels_N = dataset.labels[splits.test]
    counts_KK = confusion(probabilities_NK, labels_N, np.ones(n)).astype(np.int64)
    mistakes = []
    for row in confident_mistakes(probabilities_NK, labels_N, MISTAKES).tolist():
        index, said = int(splits.test[row]), int(probabilities_NK[row].argmax())
        truth, answer = dataset.classes[int(labels_N[row])], dataset.classes[said]
        name, confidence = dataset.images.name(index), float(probabilities_NK[row, said])
        caption = f"{answer}, {100 * confidence:.0f} % sure; it is {truth}"
        shown = _picture(dataset, index, f"{name}: {truth}, taken for {answer}", caption)
        mistakes.append(Mistake(name=name, truth=truth, said=answer, confidence=confidence, picture=shown))
    return MethodDiagnosis(
        method=method.name,
        seed=seed,
        images=n,
        calibration=_calibration(dataset, method, probabilities_NK, labels_N),
        confusion=tuple(tuple(row) for row in counts_KK.tolist()),
        mistakes=tuple(mistakes),
        wrong=int(counts_KK.sum() - np.trace(counts_KK)),
    )


def _calibration(dataset: Dataset, method: Outcomes, probabilities_NK: Floats, labels_N: Indices) -> Calibration:
    known = method.held_out is not None and len(method.rows) > 0
    found = 1.0
    if method.held_out is not None and known:
        found = temperature(method.held_out, dataset.labels[method.rows])
    change = ece_change(probabilities_NK, labels_N, found)
    before = Calibration(bins=_bins(reliability(probabilities_NK, labels_N)), ece=_estimate(change.before))
    if not known:
        return before
    return Calibration(
        bins=before.bins,
        ece=before.ece,
        temperature=found,
        fitted_on=len(method.rows),
        bins_after=_bins(reliability(tempered(probabilities_NK, found), labels_N)),
        ece_after=_estimate(change.after),
        change=_estimate(change.change),
    )


def _bins(found: Sequence[ReliabilityBin]) -> tuple[BinRecord, ...]:
    return tuple(BinRecord(confidence=b.confidence, accuracy=b.accuracy, low=b.low, high=b.high, n=b.n) for b in found)


def _estimate(found: Interval) -> Estimate:
    return Estimate(value=found.value, low=found.low, high=found.high)


def _label_errors(dataset: Dataset, methods: Sequence[Outcomes], recommended: str) -> LabelErrors | None:
    method = next((m for m in methods if m.name == recommended and m.held_out is not None and len(m.rows)), None)
    if method is None or method.held_out is None or dataset.targets is not None:
        return None
    doubts = label_doubts(method.held_out, dataset.labels[method.rows])
    listed = []
    for doubt in doubts[:DOUBTS]:
        index = int(method.rows[doubt.row])
        given, suggested = dataset.classes[int(dataset.labels[index])], dataset.classes[doubt.suggested]
        name = dataset.images.name(index)
        caption = f"labelled {given}; looks like {suggested} ({100 * doubt.suggested_probability:.0f} %)"
        listed.append(
            LabelError(
                name=name,
                given=given,
                suggested=suggested,
                given_probability=doubt.given_probability,
                suggested_probability=doubt.suggested_probability,
                picture=_picture(dataset, index, f"{name}: labelled {given}, perhaps {suggested}", caption),
            )
        )
    return LabelErrors(method=method.name, images=len(method.rows), found=len(doubts), listed=tuple(listed))


def _picture(dataset: Dataset, index: int, alt: str, caption: str) -> Picture | None:
    try:
        image = dataset.images.load(index)
    except UserError:  # it was read before, and is gone now: the page goes without its picture
        return None
    return picture(image, alt, caption, longest=LONGEST)


def tested_of(context: Context, splits: Splits, methods: Sequence[Outcomes]) -> AnswerRecord | None:
    """What each method answered wrongly on which test images; None where there are none, and in multi-label data."""
    dataset, test = context.dataset, splits.test
    if not len(test) or dataset.targets is not None:
        return None
    truth = dataset.labels[test]
    answers = tuple(
        Answers(
            method=method.name,
            wrong={
                seed: tuple(np.flatnonzero(p.argmax(axis=1) != truth).tolist()) for seed, p in method.tested.items()
            },
        )
        for method in methods
        if method.tested
    )
    keys = tuple(key.hex()[:DIGITS] for key in context.extractor.keys(test))
    return AnswerRecord(keys=keys, labels=tuple(dataset.classes[int(k)] for k in truth), answers=answers)
