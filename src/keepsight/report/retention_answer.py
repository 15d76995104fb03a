"""What a comparison of retention says in a sentence: what keeps most without a loss on the task, and against what.

From records alone. Two variants are told apart where their intervals do not overlap, which asks for more than 95 % does.
"""

from __future__ import annotations

from dataclasses import dataclass

from keepsight.core import Result
from keepsight.report.retention_records import MEAN, PLAIN, UNTOUCHED
from keepsight.report.retention_table import Figures, percent, points

INTERPOLATED = "wise-ft"
"""What the names of mixtures of the plain training's two ends begin with."""

ENDS = ("wise-ft:0", "wise-ft:1")
"""The backbone before the training and the plain training: no mixtures."""

CONTROL = "unlabelled-control"
"""The same steps without labels."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one method.

    Attributes:
        method: Which.
        best: The variant that keeps most without a sure loss on the task, if any keeps surely something.
        short: A clause without its full stop.
        sentences: The same in full, and what limits it.
    """

    method: str
    best: str | None
    short: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Variant:
    """Both figures of a variant against plain training."""

    name: str
    kept: Result
    task: Result

    @property
    def said(self) -> str:
        return f"{points(self.kept)} points on other data and {points(self.task)} on the task"


def methods_of(figures: Figures) -> list[str]:
    """The methods that were trained, in order."""
    return list(dict.fromkeys(method for method, _ in figures.rows if method != UNTOUCHED))


def base_of(variant: str) -> str:
    """The name of a variant without its strength.

    Example:
        >>> base_of("wise-ft:0.5"), base_of("procrustes")
        ('wise-ft', 'procrustes')
    """
    return variant.partition(":")[0]


def verdict(figures: Figures, method: str) -> Verdict:
    """What is said of one method."""
    lost = figures.of((method, PLAIN), "probe_accuracy_change", "suite", MEAN, UNTOUCHED)
    if lost is None:
        said = f"{method} without retention has no result, so that nothing can be compared with it"
        return Verdict(method, None, said, (f"{said}.",))
    if lost.ci_high >= 0:
        said = (
            f"{method} without retention lost nothing on other data that can be told from zero ({points(lost)} points), so that "
            f"there is nothing to keep"
        )
        return Verdict(method, None, said, (f"{said}.",))
    names = [variant for of, variant in figures.rows if of == method and variant != PLAIN]
    found = [variant for name in names if (variant := _variant(figures, method, name)) is not None]
    ways = [v for v in found if base_of(v.name) not in (INTERPOLATED, CONTROL)]
    best = _most(ways)
    mixed = _most([v for v in found if base_of(v.name) == INTERPOLATED and v.name not in ENDS])
    control = next((v for v in found if v.name == CONTROL), None)
    worth = _worth(figures, method)
    if best is None:
        short = _without(method, ways, mixed)
        more = (*_sentences([short, *worth]), *_against(None, mixed, control))
        return Verdict(method, None, "; ".join([short, *worth]), more)
    share = figures.of((method, best.name), "share_kept", "suite", MEAN, PLAIN)
    kept = () if share is None else (f"{best.name} keeps {percent(share, 0)} % of what {method} loses without it.",)
    gained = f"{best.said} against plain tuning"
    clause = f"with {method}, {best.name} keeps most without a loss on the task that shows: {gained}"
    short = "; ".join([clause, *_short_against(best, mixed, control), *worth])
    picked = (
        f"{best.name} is the best of {len(ways)} variants, picked on the figures that it is shown with: "
        "it looks a little better than it is.",
    )
    return Verdict(
        method,
        best.name,
        short,
        (*kept, *_against(best, mixed, control), *_sentences(worth), *(picked if len(ways) > 1 else ())),
    )


def retention_answer(figures: Figures) -> str:
    """One sentence for all methods."""
    clauses = [verdict(figures, method).short for method in methods_of(figures)]
    if not clauses:
        return "No method has come to a result."
    text = "; ".join(clauses)
    # Names begin a clause as they are; only a word of ours is made a capital.
    return f"W{text[1:]}." if text.startswith("with ") else f"{text}."


def _variant(figures: Figures, method: str, name: str) -> _Variant | None:
    kept = figures.of((method, name), "probe_accuracy_change", "suite", MEAN, PLAIN)
    task = figures.of((method, name), "accuracy_change", "test", against=PLAIN)
    return None if kept is None or task is None else _Variant(name, kept, task)


def _most(variants: list[_Variant]) -> _Variant | None:
    """The one that keeps most among those that keep surely something and lose nothing on the task that is surely more than zero."""
    able = [v for v in variants if v.task.ci_high >= 0 and v.kept.ci_low > 0]
    return max(able, key=lambda v: v.kept.value, default=None)


def _without(method: str, ways: list[_Variant], mixed: _Variant | None) -> str:
    if not ways:
        said = f"with {method}, nothing but WiSE-FT and controls was compared"
    else:
        said = f"with {method}, no variant keeps surely more than plain training without a sure loss on the task"
    return said if mixed is None else f"{said}; WiSE-FT keeps {mixed.said} ({mixed.name})"


def _worth(figures: Figures, method: str) -> list[str]:
    """Whether tuning was worth anything on the task at all."""
    gain = figures.of((method, PLAIN), "accuracy_change", "test", against=UNTOUCHED)
    if gain is None or gain.ci_low > 0:
        return []
    how = "is worse on the task than" if gain.ci_high < 0 else "gains nothing on the task that is surely more than"
    return [f"plain tuning {how} a probe on the untouched backbone ({points(gain)} points), which forgets nothing"]


def _sentences(clauses: list[str]) -> list[str]:
    """As sentences; only a word of ours is made a capital: names stay as they are."""
    return [f"{c[0].upper()}{c[1:]}." if c.startswith(("with ", "plain ")) else f"{c}." for c in clauses]


def _short_against(best: _Variant, mixed: _Variant | None, control: _Variant | None) -> list[str]:
    said = []
    if mixed is not None:
        relation = _relation(best, mixed)
        said.append(
            {
                "more": f"more than WiSE-FT ({mixed.name}: {points(mixed.kept)})",
                "less": f"less than WiSE-FT ({mixed.name}: {points(mixed.kept)})",
                "alike": f"none beats WiSE-FT ({mixed.name}: {points(mixed.kept)})",
            }[relation]
        )
    if control is not None and _relation(best, control) != "more":
        said.append(f"tuning without labels keeps as much ({points(control.kept)})")
    return said


def _against(best: _Variant | None, mixed: _Variant | None, control: _Variant | None) -> tuple[str, ...]:
    said = []
    if best is not None and mixed is not None:
        said.append(
            {
                "more": f"{best.name} keeps more than the best mixture of WiSE-FT, {mixed.name}: their intervals do not overlap.",
                "less": f"The best mixture of WiSE-FT, {mixed.name}, keeps more than {best.name} and takes no training.",
                "alike": f"{best.name} and the best mixture of WiSE-FT, {mixed.name}, cannot be told apart: their intervals "
                f"overlap, and WiSE-FT takes no training of its own.",
            }[_relation(best, mixed)]
        )
    if control is not None:
        said.append(
            f"The control, as many steps without labels, keeps {control.said}: what keeps no more than that shows no "
            f"merit of its own."
        )
    return tuple(said)


def _relation(one: _Variant, other: _Variant) -> str:
    if one.kept.ci_low > other.kept.ci_high:
        return "more"
    return "less" if other.kept.ci_low > one.kept.ci_high else "alike"
