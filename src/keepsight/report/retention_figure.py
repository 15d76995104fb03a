"""The Pareto picture of a comparison of retention: accuracy on the task against what the suite lost. Draws with matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Literal

from keepsight.core import Result
from keepsight.report.retention_records import MEAN, PLAIN, UNTOUCHED
from keepsight.report.sweep_figure import COLOURS, MARKERS, check_matplotlib

CURVE = "wise-ft:"
"""What the names of the points of one curve begin with."""

HEADS = (("accuracy", "trained head"), ("refitted_accuracy", "refitted probe"))
_STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a name with a dollar is a name
    "svg.hashsalt": "keepsight",  # the same figure gives the same file
}


def pareto(records: Sequence[Result], kind: Literal["png", "svg"]) -> bytes:
    """One row of panels a method, one column a head: to the right is better on the task, upwards is better elsewhere.

    The points of WiSE-FT are joined to a curve. Lines through points are 95 % intervals.
    """
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(r.method for r in records if r.method != UNTOUCHED))
    named = list(dict.fromkeys(r.retain or "" for r in records if r.method != UNTOUCHED))
    single = [name for name in named if not name.startswith(CURVE)]
    file = BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks shows as boxes
        figure = Figure(
            figsize=(9.5, 3.7 * len(methods) + 0.3 * math.ceil(len(single) / 4) + 0.4), layout="constrained"
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(methods), len(HEADS), squeeze=False, sharey="row")
        for row, method in zip(axes, methods, strict=True):
            for axis, (metric, head) in zip(row, HEADS, strict=True):
                _panel(axis, [r for r in records if r.method == method], single, metric)
                _start(axis, records, metric)
                axis.set_title(f"{_plain(method)}, {head}", loc="left", fontsize=11)
                axis.set_xlabel("accuracy on the task, %")
            row[0].set_ylabel("change of the suite's\nmean probe accuracy, points")
        handles: dict[str, Any] = {}
        for axis in axes.ravel():
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False, fontsize=9
        )
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()


def _panel(axis: Any, records: Sequence[Result], named: Sequence[str], metric: str) -> None:
    axis.axhline(0, color="#bbbbbb", linewidth=0.8)
    across = {r.retain: r for r in records if r.metric == metric and r.split == "test"}
    up = {
        r.retain: r for r in records if (r.metric, r.dataset, r.against) == ("probe_accuracy_change", MEAN, UNTOUCHED)
    }
    curve = sorted((name for name in up if name and name.startswith(CURVE) and name in across), key=_alpha)
    if curve:
        axis.plot(
            [100 * across[name].value for name in curve],
            [100 * up[name].value for name in curve],
            color="#555555",
            linewidth=1.2,
            marker=".",
            markersize=5,
            label=f"wise-ft, alpha {' to '.join(dict.fromkeys(f'{_alpha(curve[i]):g}' for i in (0, -1)))}",
            zorder=1,
        )
    for place, name in enumerate(named):
        if name not in across or name not in up:
            continue
        x, y = across[name], up[name]
        axis.errorbar(
            100 * x.value,
            100 * y.value,
            xerr=_reach(x),
            yerr=_reach(y),
            label=_plain(name) if name != PLAIN else "none (plain)",
            color="#000000" if name == PLAIN else COLOURS[place % (len(COLOURS) - 1)],
            marker="*" if name == PLAIN else MARKERS[place % len(MARKERS)],
            markersize=11 if name == PLAIN else 6,
            linestyle="none",
            elinewidth=0.6,
        )
    axis.grid(color="#eeeeee", linewidth=0.8)
    axis.set_axisbelow(True)


def _start(axis: Any, records: Sequence[Result], metric: str) -> None:
    """The untouched backbone, which lost nothing."""
    for r in records:
        if (r.method, r.metric, r.split) == (UNTOUCHED, metric, "test"):
            axis.plot(100 * r.value, 0, marker="D", color="#999999", markersize=7, linestyle="none", label="untouched")


def _reach(r: Result) -> list[list[float]]:
    return [[100 * max(r.value - r.ci_low, 0.0)], [100 * max(r.ci_high - r.value, 0.0)]]


def _alpha(name: str | None) -> float:
    return float((name or "").removeprefix(CURVE))


def _plain(text: str) -> str:
    """One line of printable characters, not too long for a legend."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 40 else f"{line[:37]}..."
