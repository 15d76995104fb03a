"""The tables of a sweep, from `Result` records alone: errors by label count, and differences between methods seed by seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from keepsight.core import Result
from keepsight.report.summary import percent
from keepsight.report.sweep_records import Failure, SweepFacts

OURS = "content-style"
"""What the others are compared with where it is there and nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Place:
    """One table: a data set under a backbone at a size (px)."""

    dataset: str
    backbone: str
    size: int

    @classmethod
    def of(cls, record: Result | Failure) -> Place:
        """Where a record belongs."""
        return cls(record.dataset, record.backbone, record.size or 0)

    @property
    def model(self) -> str:
        """Backbone and size in words."""
        return f"{self.backbone}, {self.size} px"


@dataclass(frozen=True, slots=True)
class Difference:
    """Error of a method minus that of the reference, mean over the seeds that both have, as fractions.

    Attributes:
        value: The mean.
        low, high: 95 % t interval over seeds; None with one seed, or where no seed differs from another.
        seeds: How many.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class SweepTable:
    """The figures of one place.

    Args:
        place: Which.
        results: All records of the sweep; those of this place are taken.
        failures: All failures.
        facts: Order and families of the methods.
    """

    def __init__(self, place: Place, results: Sequence[Result], failures: Sequence[Failure], facts: SweepFacts) -> None:
        self.place, self.facts = place, facts
        self.records = [r for r in results if r.metric == "error" and r.split == "test" and Place.of(r) == place]
        self.failures = [f for f in failures if Place.of(f) == place]
        both: list[Result | Failure] = [*self.records, *self.failures]
        self.labels = sorted({r.labels for r in both})
        there = {r.method for r in both}
        self.methods = [m for m in facts.families if m in there]
        self.n = max((r.n for r in self.records), default=0)
        self.seeds = max((r.seeds for r in self.records), default=0)
        self._over_seeds = {(r.method, r.labels): r for r in self.records if r.seed is None}
        self._by_seed = {(r.method, r.labels, r.seed): r.value for r in self.records if r.seed is not None}
        self._failed = Counter((f.method, f.labels) for f in self.failures)

    def families(self) -> list[tuple[str, list[str]]]:
        """Family and its methods, frozen first."""
        found = [
            (name, [m for m in self.methods if self.facts.families[m] == name]) for name in ("frozen", "trainable")
        ]
        return [(name, methods) for name, methods in found if methods]

    def summary(self, method: str, labels: int) -> Result | None:
        """The record over seeds, if any seed has a result."""
        return self._over_seeds.get((method, labels))

    def best(self, labels: int) -> str | None:
        """The method of the least error over seeds; the first of equals."""
        found = [(r.value, i, m) for i, m in enumerate(self.methods) if (r := self.summary(m, labels))]
        return min(found)[2] if found else None

    def reference(self, labels: int, against: str | None = None) -> str | None:
        """What the others are compared with: `against`, else `OURS` where it is there, else the best."""
        wanted = against or OURS
        return wanted if self.summary(wanted, labels) else self.best(labels)

    def difference(self, method: str, reference: str, labels: int) -> Difference | None:
        """Paired over seeds; None where they share none."""
        seeds = [s for m, n, s in self._by_seed if m == method and n == labels]
        shared = [s for s in seeds if (reference, labels, s) in self._by_seed]
        if not shared or method == reference:
            return None
        values = np.array([self._by_seed[method, labels, s] - self._by_seed[reference, labels, s] for s in shared])
        mean, count = float(values.mean()), len(values)
        spread = float(values.std(ddof=1)) if count > 1 else 0.0
        if spread < 1e-12:
            return Difference(mean, None, None, count)
        half = float(stats.t.ppf(0.975, count - 1)) * spread / count**0.5
        return Difference(mean, mean - half, mean + half, count)

    def error_text(self, method: str, labels: int) -> tuple[str, str]:
        """'8.1 [6.9, 9.3]' and what stands below it: seconds, and seeds that failed."""
        found = self.summary(method, labels)
        if found is None:
            return ("failed" if (method, labels) in self._failed else "-"), ""
        failed = self.failed_text(method, labels)
        below = f"{found.seconds:.1f} s" + (f", {failed}" if failed else "")
        return f"{percent(found.value)} [{percent(found.ci_low)}, {percent(found.ci_high)}]", below

    def failed_text(self, method: str, labels: int) -> str:
        """'1 of 3 seeds failed' where some failed and some did not."""
        failed, found = self._failed[method, labels], self.summary(method, labels)
        return f"{failed} of {failed + found.seeds} seeds failed" if failed and found is not None else ""

    def difference_text(self, method: str, labels: int, against: str | None) -> str:
        """'+1.9 [0.4, 3.4] *', the star where the interval excludes zero; the reference itself is named as such."""
        reference = self.reference(labels, against)
        if reference is None:
            return "-"
        if method == reference:
            return "reference"
        found = self.difference(method, reference, labels)
        if found is None:
            return "-"
        if found.low is None or found.high is None:
            return signed(found.value)
        return f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]{' *' * found.excludes_zero}"

    def caption(self) -> str:
        """What the figures of the error table are."""
        covers = "seeds and a bootstrap over images" if self.seeds > 1 else "a bootstrap over images"
        readouts = {r.labels: r.readout for r in self.records if r.seed is None}
        named = sorted(set(readouts.values()))
        readout = (
            named[0]
            if len(named) == 1
            else ", ".join(f"{text} ({labels} labels)" for labels, text in sorted(readouts.items()))
        )
        return (
            f"Test error in %, mean over {self.seeds} seed{'s' * (self.seeds != 1)} with its 95 % interval ({covers}); "
            f"n = {self.n:,} test images; readout {readout or '-'}. Seconds: fitting and predicting one seed, without the "
            f"features, which are computed once."
        )

    def difference_caption(self, against: str | None) -> str:
        """What the figures of the table of differences are."""
        wanted = against or OURS
        found = {self.reference(labels, against) for labels in self.labels} - {None}
        if not found:
            return ""
        least = "the method of the least test error of its column (chosen on the test: it looks better than it is)"
        named = (
            wanted
            if found == {wanted}
            else f"{wanted}, or where it has no result {least}"
            if wanted in found
            else least
        )
        return (
            f"Test error minus that of {named}, in percentage points: mean over the seeds that both have, with the 95 % t interval "
            f"of the differences seed by seed. * marks an interval that excludes zero, each taken alone, without correction; "
            f"without an interval: a single seed, or no difference between seeds."
        )


def tables(results: Sequence[Result], failures: Sequence[Failure], facts: SweepFacts) -> list[SweepTable]:
    """One table a place, in the order of the records."""
    both: list[Result | Failure] = [*results, *failures]
    return [SweepTable(place, results, failures, facts) for place in dict.fromkeys(Place.of(r) for r in both)]


def signed(value: float) -> str:
    """A fraction in points of per cent, with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # adding zero turns a rounded -0.0 into 0.0
