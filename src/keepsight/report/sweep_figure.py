"""The figure of a sweep: error against the number of labels, one panel a data set. Draws with matplotlib, without a display."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from keepsight.core import UserError
from keepsight.report.sweep_table import OURS, SweepTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUPERVISED = ("probe", "finetune-lora")
"""What the paper's figure has beside content-style: one frozen and one trainable method that use the labelled images alone."""

# Okabe and Ito's palette (all kinds of colour vision tell its colours apart), without its yellow, which is pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*XdpH"

_STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a name with a dollar is a name
    "svg.hashsalt": "keepsight",  # the same figure gives the same file
}


def check_matplotlib() -> None:
    """UserError if figures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "The figures of a sweep need the package matplotlib: install it with pip install 'keepsight[figures]'."
        ) from error


def paper_methods(methods: Sequence[str]) -> list[str]:
    """Those of the paper's figure: supervised and content-style in all its variants; none where there is no content-style.

    Example:
        >>> paper_methods(["knn", "probe", "content-style", "content-style-lora"])
        ['probe', 'content-style', 'content-style-lora']
        >>> paper_methods(["knn", "probe"])
        []
    """
    if not any(m.startswith(OURS) for m in methods):
        return []
    return [m for m in methods if m in SUPERVISED or m.startswith(OURS)]


def draw(tables: Sequence[SweepTable], methods: Sequence[str], kind: Literal["png", "svg"]) -> bytes:
    """The figure of one backbone at one size as a PNG (1,280 px wide or more) or SVG file.

    Args:
        tables: One a panel.
        methods: The lines; colour and marker of a method depend on its place among the methods of the sweep, and on nothing else.
        kind: The format.
    """
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(tables), 2)
    rows = math.ceil(len(tables) / columns)
    file = BytesIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks shows as boxes
        figure = Figure(figsize=(8, 3.9 * rows + 0.55 + 0.3 * math.ceil(len(methods) / 3)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for table, axis in zip(tables, axes, strict=False):
            _panel(axis, table, methods)
        for axis in axes[len(tables) :]:
            axis.set_visible(False)
        _legend(figure, axes, tables[0].place.model)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
    return file.getvalue()


def _panel(axis: Any, table: SweepTable, methods: Sequence[str]) -> None:
    # Those of the paper's figure come first, so that no two of them share a colour.
    paper = paper_methods(list(table.facts.families))
    order = [*paper, *(m for m in table.facts.families if m not in paper)]
    shown = [m for m in methods if any(table.summary(m, labels) for labels in table.labels)]
    for number, method in enumerate(shown):
        found = [r for labels in table.labels if (r := table.summary(method, labels))]
        # Side by side on the logarithmic axis, so that intervals do not cover each other.
        aside = 1.035 ** (number - (len(shown) - 1) / 2)
        x, y = [r.labels * aside for r in found], [100 * r.value for r in found]
        below = [100 * (r.value - r.ci_low) for r in found]
        above = [100 * (r.ci_high - r.value) for r in found]
        place = order.index(method)
        trainable = table.facts.families[method] == "trainable"
        axis.errorbar(
            x,
            y,
            yerr=[below, above],
            label=f"{_plain(method)} ({table.facts.families[method]})",
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            linestyle="--" if trainable else "-",
            markerfacecolor="white" if trainable else None,
            markersize=6,
            linewidth=1.8,
            elinewidth=1.2,
            capsize=2.5,
        )
    axis.set_xscale("log")
    axis.set_xticks(table.labels, [f"{n:,}" for n in table.labels])
    axis.minorticks_off()
    axis.set_xlim(min(table.labels) / 1.35, max(table.labels) * 1.35)
    axis.set_ylim(bottom=0)
    axis.grid(axis="y", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_title(_plain(table.place.dataset), fontsize=13, loc="left")
    axis.set_xlabel("labelled images")
    axis.set_ylabel("test error, %")


def _legend(figure: Figure, axes: Any, title: str) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.suptitle(_plain(title), fontsize=13, x=0.01, ha="left")
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="outside lower center", ncols=2, frameon=False, fontsize=11
        )


def _plain(text: str) -> str:
    """One line of printable characters, not too long for a title."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 60 else f"{line[:57]}..."
