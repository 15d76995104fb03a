"""What a sweep says in a sentence: what errs least with few and with many labels, and from how many on training a network pays.

From records alone. Every claim is that of a paired interval over seeds (`SweepTable.difference`), taken alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from keepsight.report.summary import percent
from keepsight.report.sweep_table import Difference, SweepTable, signed

BASELINE = "probe"
"""What everything else must be better than to be worth its cost."""


def sweep_answer(found: Sequence[SweepTable]) -> str:
    """One sentence for all places."""
    known = [table for table in found if table.records]
    if not known:
        return "No method has come to a result."
    if len(known) == 1:
        text = _clause(known[0])
        # Only a word of ours is made a capital: names stay as they are.
        return f"W{text[1:]}." if text.startswith("with ") else f"{text}."
    few, many = (_often(known, place) for place in (0, -1))
    errs = f"the least error with the fewest labels is that of {few}, with the most that of {many}"
    return f"Of {len(known)} data sets and backbones, {errs}; {_pays_where(known)}."


def place_sentences(found: Sequence[SweepTable]) -> list[str]:
    """A sentence a place, where there are several."""
    known = [table for table in found if table.records]
    return [f"{_where(table, known)}: {_clause(table)}." for table in known] if len(known) > 1 else []


def pays_from(table: SweepTable) -> tuple[str, int] | None:
    """A method that trains a network, and the number of labels from which on it is surely better than every frozen method.

    Surely: the interval of its difference from the frozen method of the least test error lies below zero, at this number of labels
    and at every larger one. That frozen method is chosen on the test images, in its favour.
    """
    families = dict(table.families())
    best: tuple[int, float, str] | None = None
    for method in families.get("trainable", []):
        start: int | None = None
        for labels in reversed(table.labels):
            seen = _against_frozen(table, method, labels)
            if seen is None or seen[1].high is None or seen[1].high >= 0:
                break
            start = labels
        if start is not None and (error := table.summary(method, start)) is not None:
            tried = start, error.value, method
            best = tried if best is None else min(best, tried)
    return None if best is None else (best[2], best[0])


def _against_frozen(table: SweepTable, method: str, labels: int) -> tuple[str, Difference] | None:
    """The frozen method of the least test error, and the difference of `method` from it."""
    frozen = dict(table.families()).get("frozen", [])
    errors = [(r.value, i, m) for i, m in enumerate(frozen) if (r := table.summary(m, labels))]
    if not errors:
        return None
    strongest = min(errors)[2]
    difference = table.difference(method, strongest, labels)
    return None if difference is None else (strongest, difference)


def _clause(table: SweepTable) -> str:
    ends = list(dict.fromkeys((table.labels[0], table.labels[-1])))
    named = [table.best(labels) for labels in ends]
    figures = [_figures(table, labels) for labels in ends]
    if len(set(named)) == 1:
        said = " and ".join(f"with {labels:,} labels ({of})" for labels, of in zip(ends, figures, strict=True))
        return f"{named[0]} errs least {said}; {_pays(table)}"
    said = ", ".join(
        f"with {labels:,} labels {name or 'no method has a result'}{' errs least' * (name is not None)} ({of})"
        for labels, name, of in zip(ends, named, figures, strict=True)
    )
    return f"{said}; {_pays(table)}"


def _figures(table: SweepTable, labels: int) -> str:
    """Error of the best, and its difference from the baseline."""
    best = table.best(labels)
    found = None if best is None else table.summary(best, labels)
    if best is None or found is None:
        return "every cell failed"
    said = f"{percent(found.value)} % [{percent(found.ci_low)}, {percent(found.ci_high)}]"
    difference = table.difference(best, BASELINE, labels)
    return said if difference is None else f"{said}, {_points(difference)} against {BASELINE}"


def _points(difference: Difference) -> str:
    value = signed(difference.value)
    if difference.low is None or difference.high is None:
        return f"{value} points without an interval"
    return f"{value} points [{signed(difference.low)}, {signed(difference.high)}]"


def _pays(table: SweepTable) -> str:
    families = dict(table.families())
    if "trainable" not in families:
        return "no network was trained"
    if "frozen" not in families:
        return "no frozen method was measured that a trained network would have to beat"
    found = pays_from(table)
    if found is None:
        if table.seeds < 2:
            return "with one seed there is no interval that could say whether training a network pays"
        return "the intervals show at no number of labels that training a network pays"
    method, labels = found
    against = f"{_gain(table, method, labels)}, the strongest frozen method there"
    return f"training a network ({method}) pays from {labels:,} labels on ({against})"


def _gain(table: SweepTable, method: str, labels: int) -> str:
    """The difference from the strongest frozen method, and which that is."""
    seen = _against_frozen(table, method, labels)
    assert seen is not None  # it pays against something
    return f"{_points(seen[1])} against {seen[0]}"


def _pays_where(known: Sequence[SweepTable]) -> str:
    tried = [table for table in known if len(table.families()) == 2]
    if not tried:
        return (
            "no network was trained"
            if all("trainable" not in dict(t.families()) for t in known)
            else "no frozen method was measured"
        )
    found = [(table, pays) for table in tried if (pays := pays_from(table)) is not None]
    if not found:
        return "the intervals show nowhere that training a network pays"
    named = ", ".join(
        f"{_where(table, known)} from {labels:,} labels on ({method}, {_gain(table, method, labels)})"
        for table, (method, labels) in found
    )
    return f"training a network pays on {len(found)} of {len(tried)}: {named}"


def _often(known: Sequence[SweepTable], place: int) -> str:
    counts = Counter(best for table in known if (best := table.best(table.labels[place])) is not None)
    return " and ".join(f"{method} on {count}" for method, count in counts.most_common(3)) or "none"


def _where(table: SweepTable, known: Sequence[SweepTable]) -> str:
    """The data set, with its backbone where there are several."""
    several = len({each.place.model for each in known}) > 1
    return f"{table.place.dataset}, {table.place.model}" if several else table.place.dataset
