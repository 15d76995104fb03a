"""The outcomes of a comparison of retention as `Result` records: every figure with its interval. Knows no training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from keepsight.core import Result
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.forgetting import Change, accuracy_change, ece_change, mean_change
from keepsight.evaluate.intervals import Interval
from keepsight.evaluate.resampled import all_intervals
from keepsight.evaluate.retention import of_values, over_seeds, share_kept
from keepsight.recipes.retention_cells import Outcome
from keepsight.recipes.retention_config import PLAIN
from keepsight.recipes.retention_fits import UNTOUCHED, Key, Task
from keepsight.report.retention_records import MEAN, SHARE_OF_SEED


@dataclass(frozen=True, slots=True)
class _Row:
    """The cells of one method and variant: the outcomes of its seeds, and those of backbone and plain training beside them."""

    task: Task
    method: str
    variant: str
    seeds: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    untouched: tuple[Outcome, ...]
    plain: tuple[Outcome, ...]

    def only(self, i: int) -> _Row:
        """Of one seed."""
        here = slice(i, i + 1)
        parts = (self.seeds[here], self.outcomes[here], self.untouched[here], self.plain[here])
        return _Row(self.task, self.method, self.variant, *parts)

    def result(
        self,
        metric: str,
        found: Interval,
        dataset: str = "",
        split: str = "suite",
        before: float | None = None,
        against: str | None = None,
    ) -> Result:
        """One record."""
        looked = [outcome.looked for outcome in self.outcomes]
        context = self.task.context
        sizes = {each.name: len(each.images) for each, _ in self.task.sets}
        return Result(
            task="retention",
            dataset=dataset or context.dataset.name,
            split=split,
            method=self.method,
            backbone=context.backbone.name,
            readout=str(context.readout),
            metric=metric,
            value=found.value,
            ci_low=found.low,
            ci_high=found.high,
            interval=found.kind,
            n=sizes.get(dataset, sum(sizes.values()) if dataset else len(self.task.splits.test)),
            labels=looked[0].labels,
            seed=self.seeds[0] if len(self.seeds) == 1 else None,
            seeds=len(self.seeds),
            spread=found.spread,
            trainable_parameters=looked[0].trainable_parameters,
            seconds=float(np.mean([one.seconds for one in looked])),
            peak_mib=max(one.peak_mib for one in looked),
            size=context.backbone.preprocessing.size,
            before=before,
            against=against,
            retain=self.variant,
        )


def records_of_comparison(task: Task, outcomes: Mapping[Key, Outcome]) -> list[Result]:
    """For the untouched backbone and every method and variant its records, over the seeds that came to an end.

    What is compared with the plain training is compared on the seeds that both have. Intervals are `over_seeds`: with one seed the
    paired bootstrap over images, with several of seeds and images together.
    """
    made: list[Result] = []
    for method, variant in dict.fromkeys((key.method, key.variant) for key in outcomes):
        seeds = tuple(key.seed for key in outcomes if (key.method, key.variant) == (method, variant))
        of = tuple(outcomes[Key(method, variant, seed)] for seed in seeds)
        untouched = tuple(outcomes[Key(UNTOUCHED, PLAIN, seed)] for seed in seeds)
        row = _Row(task, method, variant, seeds, of, untouched, of)
        made += [*_on_task(row), *_costs(row)]
        if method == UNTOUCHED:
            continue
        made += _on_suite(row)
        both = tuple(seed for seed in seeds if Key(method, PLAIN, seed) in outcomes)
        if variant != PLAIN and both:
            plain = tuple(outcomes[Key(method, PLAIN, seed)] for seed in both)
            of, untouched = (
                tuple(outcomes[Key(*k, seed)] for seed in both) for k in ((method, variant), (UNTOUCHED, PLAIN))
            )
            made += _against_plain(_Row(task, method, variant, both, of, untouched, plain))
    return made


def _on_task(row: _Row) -> list[Result]:
    """Accuracy of both heads and calibration, and their changes from a probe on the untouched backbone."""
    labels_N = row.task.context.dataset.labels[row.task.splits.test]
    made = []
    for prefix, of in _HEADS:
        found = all_intervals([of(outcome) for outcome in row.outcomes], labels_N)
        made += [row.result(f"{prefix}{name}", found[name][-1], split="test") for name in ("accuracy", "ece")]
        if row.method == UNTOUCHED:
            continue
        for name, change_of in (("accuracy", accuracy_change), ("ece", ece_change)):
            changes = [
                change_of(of(before), of(after), labels_N)
                for before, after in zip(row.untouched, row.outcomes, strict=True)
            ]
            made.append(_change(row, f"{prefix}{name}_change", changes, split="test"))
    return made


_HEADS: tuple[tuple[str, Callable[[Outcome], Floats]], ...] = (
    ("", lambda outcome: outcome.head_NK),
    ("refitted_", lambda outcome: outcome.refitted_NK),
)
"""The trained head, and the probe refitted to the tuned features."""


def _costs(row: _Row) -> list[Result]:
    looked = [outcome.looked for outcome in row.outcomes]
    made = []
    for name, values in (
        ("weight_distance", [one.distance for one in looked]),
        ("step_seconds", [one.step_seconds for one in looked if one.steps]),
        ("peak_mib", [one.peak_mib for one in looked if one.steps]),
    ):
        known = [value for value in values if value is not None]
        if known and len(known) == len(looked):
            made.append(row.result(name, of_values(np.array(known)), split="training"))
    return made


def _on_suite(row: _Row) -> list[Result]:
    """Every change on every set and of their mean, and the similarity of the representations."""
    made = []
    by_set = {
        "probe_accuracy": _changes(row.task, row.untouched, row.outcomes, lambda o: o.probe, accuracy_change),
        "knn_accuracy": _changes(row.task, row.untouched, row.outcomes, lambda o: o.knn, accuracy_change),
        "probe_ece": _changes(row.task, row.untouched, row.outcomes, lambda o: o.probe, ece_change),
    }
    for number, (dataset, _) in enumerate(row.task.sets):
        for metric, changes in by_set.items():
            made.append(_change(row, f"{metric}_change", [of[number] for of in changes], dataset.name))
        for metric in ("cka", "shuffled"):
            values = np.array([getattr(outcome.looked, metric)[number] for outcome in row.outcomes])
            made.append(row.result(_SIMILARITY[metric], of_values(values), dataset.name, against=UNTOUCHED))
    for metric, changes in by_set.items():
        made.append(_change(row, f"{metric}_change", [mean_change(of) for of in changes], MEAN))
    for metric in ("cka", "shuffled"):
        means = np.array([np.mean(getattr(outcome.looked, metric)) for outcome in row.outcomes])
        made.append(row.result(_SIMILARITY[metric], of_values(means), MEAN, against=UNTOUCHED))
    return made


_SIMILARITY = {"cka": "cka", "shuffled": "cka_shuffled"}


def _changes(
    task: Task,
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    of: Callable[[Outcome], tuple[Floats, ...]],
    measure: Callable[..., Change],
) -> list[list[Change]]:
    """Of every seed, of every set; each set has resamples of its own, as in `forgetting_measure`."""
    start = task.config.forgetting.seed
    return [
        [
            measure(of(one)[i], of(other)[i], dataset.labels, start + 1000 * i)
            for i, (dataset, _) in enumerate(task.sets)
        ]
        for one, other in zip(before, after, strict=True)
    ]


def _change(row: _Row, metric: str, changes: Sequence[Change], dataset: str = "", split: str = "suite") -> Result:
    """The mean change over seeds from the untouched backbone."""
    n = len(row.task.splits.test)
    found = _over_seeds(changes, n)
    return row.result(metric, found, dataset, split, float(np.mean([c.before for c in changes])), UNTOUCHED)


def _over_seeds(changes: Sequence[Change], n: int) -> Interval:
    if all(change.kind == "identical" for change in changes):
        return Interval(0.0, 0.0, 0.0, "identical")
    least = float(np.mean([change.least for change in changes]))
    return over_seeds(np.array([c.value for c in changes]), np.stack([c.draws_D for c in changes]), n, least)


def _against_plain(row: _Row) -> list[Result]:
    """What is paid in-domain and what is kept on the suite, in points and as a share, against the training without retention."""
    labels_N = row.task.context.dataset.labels[row.task.splits.test]
    made = []
    for prefix, of in _HEADS:
        changes = [
            accuracy_change(of(one), of(other), labels_N) for one, other in zip(row.plain, row.outcomes, strict=True)
        ]
        made.append(_against(row, f"{prefix}accuracy_change", changes))
    changes = [
        mean_change(of) for of in _changes(row.task, row.plain, row.outcomes, lambda o: o.probe, accuracy_change)
    ]
    made.append(_against(row, "probe_accuracy_change", changes, MEAN))
    lost, left = (
        [mean_change(of) for of in _changes(row.task, row.untouched, outcomes, lambda o: o.probe, accuracy_change)]
        for outcomes in (row.plain, row.outcomes)
    )
    if _over_seeds(lost, sum(len(dataset.images) for dataset, _ in row.task.sets)).high < 0:
        plain, other = ((np.array([c.value for c in of]), np.stack([c.draws_D for c in of])) for of in (lost, left))
        made.append(row.result("share_kept", share_kept(plain, other), MEAN, against=PLAIN))
        for i in range(len(row.seeds)) if len(row.seeds) > 1 else ():
            if plain[0][i] < 0:  # else there is no share of what this seed lost
                lost_S, left_S = ((values[i : i + 1], draws[i : i + 1]) for values, draws in (plain, other))
                made.append(row.only(i).result(SHARE_OF_SEED, share_kept(lost_S, left_S), MEAN, against=PLAIN))
    return made


def _against(row: _Row, metric: str, changes: Sequence[Change], dataset: str = "") -> Result:
    found = _over_seeds(changes, len(row.task.splits.test))
    split = "suite" if dataset else "test"
    return row.result(metric, found, dataset, split, float(np.mean([c.before for c in changes])), PLAIN)
