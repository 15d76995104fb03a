"""What a model forgot: a table in the terminal from `Result` records. Knows no features and no model."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape as plain
from rich.table import Table

from keepsight.core import Result

TITLES = {
    "probe_accuracy": "linear probe",
    "knn_accuracy": "k-NN",
    "zero_shot_accuracy": "zero-shot",
    "probe_ece": "calibration error",
}
"""Figures of accuracy in the order of what they prove; what the page and the table call them."""


def change_text(before: float, value: float, low: float, high: float) -> str:
    """Before -> after and the change with its interval, in per cent and points.

    Example:
        >>> change_text(0.9, -0.1, -0.12, -0.08)
        '90.0 -> 80.0 (-10.0 [-12.0, -8.0])'
    """
    # Adding zero turns a rounded -0.0 into 0.0.
    change, least, most = (round(100 * v, 1) + 0.0 for v in (value, low, high))
    return f"{100 * before:.1f} -> {100 * (before + value):.1f} ({change:+.1f} [{least:+.1f}, {most:+.1f}])"


def print_forgetting(records: Sequence[Result], out: Console) -> None:
    """Print one row a data set, the mean last: images, and before -> after with the change of each accuracy."""
    changes = [r for r in records if r.metric.endswith("_change")]
    first = changes[0]
    what = f"{first.method} against {first.against}, {first.backbone}, readout {first.readout}"
    title = f"{what}; before -> after, % (points [95 % interval])"
    table = Table(title=plain(title), title_justify="left", title_style="", header_style="bold")
    accuracies = [name for name in TITLES if name.endswith("_accuracy")]
    shown = [name for name in accuracies if any(r.metric == f"{name}_change" for r in changes)]
    table.add_column("data set")
    for heading in ("images", *(TITLES[name] for name in shown)):
        table.add_column(heading, justify="right")
    for dataset in dict.fromkeys(r.dataset for r in changes):
        of = {r.metric.removesuffix("_change"): r for r in changes if r.dataset == dataset}
        texts = [
            change_text(r.before or 0.0, r.value, r.ci_low, r.ci_high) if (r := of.get(name)) is not None else "-"
            for name in shown
        ]
        table.add_row(plain(dataset), f"{next(iter(of.values())).n:,}", *(plain(text) for text in texts))
    out.print(table)
