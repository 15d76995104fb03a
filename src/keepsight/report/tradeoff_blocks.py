"""Gain against forgetting, for the page of a run: every method with both intervals, and what moving weights back changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from keepsight.report.charts import Curve, CurvePoint, Spot, Tradeoff, curves_chart, interval_chart, tradeoff_chart
from keepsight.report.page import Block, Chart, Text
from keepsight.report.run_records import RunRecords
from keepsight.report.summary import MAP

RETAINED = "retained"
"""The folder with what was looked at to keep a limit on forgetting."""

FROZEN = "frozen backbone"


def tradeoff_blocks(run: RunRecords) -> list[Block]:
    """The trade-off where forgetting was measured, the figures of all methods, and the curves of alpha."""
    made = [_tradeoff(run), figures_chart(run), gains_chart(run), *_alphas(run.folder)]
    return [block for block in made if block is not None]


def _tradeoff(run: RunRecords) -> Block | None:
    if run.baseline is None or not any(run.forgot(method) for method in run.methods):
        tuned = [method for method in run.methods if run.is_tuned(method)]
        if not tuned:
            return Text(text="No method changed the backbone, so nothing was forgotten.")
        return Text(text=f"What {', '.join(tuned)} forgot was not measured.")
    points = []
    for method in run.methods:
        own, gain, forgot = run.summary(method), run.gain(method), run.forgot(method)
        at_baseline = method == run.baseline
        if own is None or (gain is None and not at_baseline) or (forgot is None and run.is_tuned(method)):
            continue
        points.append(
            Tradeoff(
                name=method,
                x=100 * forgot.value if forgot else 0.0,
                x_low=100 * forgot.low if forgot else None,
                x_high=100 * forgot.high if forgot else None,
                y=100 * gain.value if gain else 0.0,
                y_low=100 * gain.low if gain else None,
                y_high=100 * gain.high if gain else None,
                group=_group(run, method),
                note=_note(run, method),
            )
        )
    if not points:
        return None
    order = {name: place for place, name in enumerate(_by_alpha(run))}
    points.sort(key=lambda point: order.get(point.name, -1))
    name = _name(run)
    n = next(own.n for method in run.methods if (own := run.summary(method)) is not None)
    return tradeoff_chart(
        "Gain against forgetting",
        points,
        x_axis="change of linear-probe accuracy on other data, points (left: forgotten)",
        y_axis=f"gain in {name} over {run.baseline}, points (up: better)",
        caption=f"Gain: paired difference of test {name} to {run.baseline}, the strongest cheap method on the labelled images; "
        f"n = {n:,} test images. Forgetting: mean over the data sets of the suite, first seed. Bars: 95 % intervals. Methods that "
        "leave the backbone as it is forget nothing, and lie on the line of 0.",
        description=f"For each method its gain in {name} over {run.baseline}, and what its backbone forgot on other data.",
        connected=sorted({point.group for point in points if point.group.endswith(", by alpha")}),
    )


def _by_alpha(run: RunRecords) -> list[str]:
    """Candidates between the start and the end of a training, from the start."""
    known = [c for c in run.ladder.candidates if c.alpha is not None] if run.ladder is not None else []
    plain = {c.method for c in known}
    ends = (
        [c for c in run.ladder.candidates if c.retain is None and c.method in plain] if run.ladder is not None else []
    )
    return [
        *(c.name for c in sorted(known, key=lambda c: (c.method, c.alpha or 0.0))),
        *(c.name for c in ends),
    ]


def _group(run: RunRecords, method: str) -> str:
    if not run.is_tuned(method):
        return FROZEN
    plain = method.partition("+")[0]
    return f"{plain}, by alpha" if method in _by_alpha(run) else plain


def _note(run: RunRecords, method: str) -> str:
    own = run.summary(method)
    chosen = "recommended; " if method == run.method else ""
    return f"{chosen}{own.seconds:.1f} s a fit" if own else chosen


def _name(run: RunRecords) -> str:
    return "mAP" if run.metric == MAP else "error"


def figures_chart(run: RunRecords) -> Chart | None:
    """Error (or mAP) of every method on the test images."""
    known = [(method, own) for method in run.methods if (own := run.summary(method)) is not None]
    if not known:
        return None
    name, own = _name(run), known[0][1]
    seeds = f"{own.seeds} seeds" if own.seeds > 1 else "one seed"
    return interval_chart(
        f"Test {name} of every method",
        [
            Spot(m, 100 * r.value, 100 * r.ci_low, 100 * r.ci_high, note="recommended" if m == run.method else "")
            for m, r in known
        ],
        axis=f"test {name}, %",
        caption=f"{'Lower' if name == 'error' else 'Higher'} is better. n = {own.n:,} test images, {seeds}; lines: 95 % intervals "
        f"over {'seeds and images' if own.seeds > 1 else 'images'}. The recommended method is set off.",
        description=f"Test {name} of {len(known)} methods with 95 % intervals.",
        marked=[run.method],
    )


def gains_chart(run: RunRecords) -> Chart | None:
    """Paired differences of every method to the baseline."""
    known = [(method, gain) for method in run.methods if (gain := run.gain(method)) is not None]
    if not known or run.baseline is None:
        return None
    name = _name(run)
    return interval_chart(
        f"Gain over {run.baseline}",
        [Spot(m, 100 * g.value, 100 * g.low, 100 * g.high) for m, g in known],
        axis=f"gain in test {name}, points",
        caption=f"Above 0 is better than {run.baseline}, the strongest cheap method on the labelled images. Paired: the same test "
        "images and seeds for both, so that what is hard for both cancels; lines: 95 % intervals.",
        description=f"Paired difference of every method to {run.baseline} with 95 % intervals.",
        reference=0.0,
        marked=[run.method],
    )


def _alphas(folder: Path) -> Iterator[Block]:
    """What the limit on forgetting was kept by: alpha, or the weight of penalties."""
    curves: list[Curve] = []
    weights: list[Curve] = []
    limit = 0.0
    for file in sorted((folder / RETAINED).glob("*seed-*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            points = sorted((float(at), float(change)) for at, change in found["changes"].items())
            limit = float(found["limit"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        taken = found.get("alpha", found.get("factor"))
        notes = ["taken" if at == taken else "" for at, _ in points]
        curve = tuple(CurvePoint(at, change, note=note) for (at, change), note in zip(points, notes, strict=True))
        if curve:
            (weights if "factor" in found else curves).append(Curve(file.stem.removesuffix("-weight"), curve))
    end = (
        f"At most {limit:g} points were to be lost; measured on the half of the suite that choices are made on, the other half is "
        "reported below."
    )
    if curves:
        yield curves_chart(
            "Moving weights back towards their start",
            curves,
            x_axis="alpha (0: the start, 1: the end of the training)",
            y_axis="change of linear-probe accuracy, points",
            caption=f"Weights are (1 - alpha) start + alpha end. {end}",
            description="Change of linear-probe accuracy on other data at each alpha that was tried, one line a fit.",
        )
    if weights:
        yield curves_chart(
            "Weight of the penalties",
            weights,
            x_axis="multiple of the given weight",
            y_axis="change of linear-probe accuracy, points",
            caption=end,
            description="Change of linear-probe accuracy on other data at each weight that was tried, one line a fit.",
            log_x=True,
        )
