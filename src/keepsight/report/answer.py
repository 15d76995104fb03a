"""The first sentence of a run's page: what was gained over the strongest cheap method, what was forgotten, at what cost, and
whether it is worth it.

Nothing is chosen here: method and baseline were, on labelled images alone. The test images say whether the gain is real. Knows no
file.
"""

from __future__ import annotations

from dataclasses import dataclass

from keepsight.core import Result
from keepsight.report.summary import MAP, percent


@dataclass(frozen=True, slots=True)
class Change:
    """A change and its 95 % interval, as fractions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What the sentence is made of.

    Attributes:
        method: The recommended one.
        tuned: Whether it changes the backbone.
        tested: Its error (or mAP) on the test images; None where there are none.
        validated: The same, cross-validated on the labelled images; None where it was not.
        baseline: The strongest cheap method; None where every method tunes.
        baseline_tested: Its error on the test images.
        gain: Of the method over the baseline, better is positive; None where it is not known, or they are the same.
        rival: Where the method is the baseline: the best of those that tune, by the labelled images.
        rival_gain: Over the baseline.
        unranked: Those that tune, where there are several and the labelled images rank them in no way.
        by_rule: Whether the method was recommended by rule, since the labelled images allow no measurement.
        forgot: Change of the mean accuracy of linear probes on other data; None where it was not measured.
    """

    method: str
    tuned: bool
    tested: Result | None
    validated: Result | None
    baseline: str | None
    baseline_tested: Result | None = None
    gain: Change | None = None
    rival: str | None = None
    rival_gain: Change | None = None
    unranked: tuple[str, ...] = ()
    by_rule: bool = False
    forgot: Change | None = None


def answer(facts: Facts) -> str:
    """The sentence."""
    own = facts.tested
    if own is None:
        return _untested(facts)
    if facts.baseline is None:
        return (
            f"{facts.method} has {_figure(own)}, and no cheap method was tried beside it, so that nothing says whether tuning is "
            f"worth it: add probe to the methods; {_forgotten(facts)}; {_cost(own)}."
        )
    if facts.method == facts.baseline:
        return _of_baseline(facts, own)
    if facts.gain is None:
        other = f", against {_figure(facts.baseline_tested)} of {facts.baseline}" if facts.baseline_tested else ""
        return (
            f"{facts.method} has {_figure(own)}{other}; whether they differ surely was not recorded; {_forgotten(facts)}; "
            f"{_cost(own)}."
        )
    return _compared(facts, own, facts.gain)


def _untested(facts: Facts) -> str:
    if facts.validated is None:
        return f"{facts.method} is recommended by rule: there are no test images, and too few labels to measure anything on."
    return (
        f"{facts.method} is recommended by its cross-validated {_figure(facts.validated)}; there are no test images, so "
        f"nothing says how well it does on new ones; {_forgotten(facts)}; {_cost(facts.validated)}."
    )


def _compared(facts: Facts, own: Result, gain: Change) -> str:
    against = (
        f"{_figure(own, interval=False)} against {percent(facts.baseline_tested.value)} %"
        if facts.baseline_tested
        else _figure(own)
    )
    change = f"{against}, {_gain(gain)}"
    end = f"{_forgotten(facts)}; {_cost(own, facts.baseline_tested)}"
    if gain.high < 0:
        return (
            f"Ship {facts.baseline}: {facts.method} was chosen on the labelled images, but is worse on the test images ({change}); "
            f"{end}."
        )
    if gain.low <= 0:
        return (
            f"{facts.baseline} is as good, as far as {own.n:,} test images can tell: ship {facts.baseline} rather than "
            f"{facts.method} ({change}); {end}."
        )
    if not facts.tuned:
        return f"{facts.method} is worth it over {facts.baseline}: {change}; {end}."
    if facts.forgot is None:
        return f"{facts.method} is worth it over {facts.baseline} for this task: {change}; {end}."
    if facts.forgot.high < 0:
        return (
            f"{facts.method} is worth it over {facts.baseline} if the backbone serves this task alone: {change}; {end}."
        )
    return f"{facts.method} is worth it over {facts.baseline}: {change}; {end}."


def _of_baseline(facts: Facts, own: Result) -> str:
    end = f"{_forgotten(facts)}; {_cost(own)}"
    if facts.rival is None:
        tuned = "" if facts.tuned else "; no method that tunes the backbone was measured on the test images beside it"
        if facts.unranked:
            names = ", ".join(facts.unranked)
            why = "the labelled images are too few to choose one of those that tune the backbone"
            tuned = f"; {why} ({names}), so that the table compares them"
        return f"{facts.method} has {_figure(own)}{tuned}; {end}."
    if facts.rival_gain is None:
        best = f"is the best on the labelled images, {facts.rival} included"
        return f"Ship {facts.method}, which has {_figure(own)} and {best}; {end}."
    found = f"{facts.rival}: {_gain(facts.rival_gain)}"
    if facts.rival_gain.low > 0:
        chosen = "recommended by rule" if facts.by_rule else "chosen on the labelled images"
        return (
            f"{facts.method} was {chosen} with {_figure(own)}, but tuning is better on the test images ({found}): more labels make "
            f"the choice surer; {end}."
        )
    if facts.rival_gain.high < 0:
        return f"Ship {facts.method}: {_figure(own)}, and tuning the backbone makes it worse ({found}); {end}."
    return f"Ship {facts.method}: {_figure(own)}, and tuning the backbone is not surely better ({found}); {end}."


def _figure(found: Result, *, interval: bool = True) -> str:
    name = "mAP" if found.metric == MAP else "error"
    what = f"{'test ' if found.split == 'test' else ''}{name} {percent(found.value)} %"
    return f"{what} [{percent(found.ci_low)}, {percent(found.ci_high)}]" if interval else what


def _gain(gain: Change) -> str:
    """The gain in words, with its interval."""
    if gain.high < 0:
        size = Change(-gain.value, -gain.high, -gain.low)
        word = "worse"
    else:
        size, word = gain, "better"
    signed = "+" if size.low < 0 else ""
    value = f"{100 * size.value:{signed}.1f} points {word}" if not signed else f"{100 * size.value:+.1f} points"
    return f"{value} (95 % interval {100 * size.low:{signed}.1f} to {100 * size.high:{signed}.1f})"


def _forgotten(facts: Facts) -> str:
    if not facts.tuned:
        return "its backbone stays as it was, so nothing is forgotten"
    forgot = facts.forgot
    if forgot is None:
        return "what it forgot was not measured"
    interval = f"[{100 * forgot.low:+.1f}, {100 * forgot.high:+.1f}]"
    if forgot.high < 0:
        return f"it forgot {-100 * forgot.value:.1f} points of linear-probe accuracy on other data {interval}"
    if forgot.low > 0:
        return f"on other data it gained {100 * forgot.value:.1f} points of linear-probe accuracy {interval}"
    return f"on other data nothing is surely forgotten ({100 * forgot.value:+.1f} points of linear-probe accuracy {interval})"


def _cost(own: Result, baseline: Result | None = None) -> str:
    against = f" (against {_seconds(baseline.seconds)})" if baseline else ""
    return f"a fit takes {_seconds(own.seconds)}{against} and {own.peak_mib:,.0f} MiB at its peak"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"
