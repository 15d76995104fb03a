"""The table of `keepsight evaluate` in a terminal, from `Result` records."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keepsight.core import Result
from keepsight.report.summary import percent

ClassRow = tuple[str, int, float, float | None, float]
"""Name, images, recall, precision (None where nothing was predicted as it), F1."""


def print_evaluation(records: Sequence[Result], classes: Sequence[ClassRow], out: Console) -> None:
    """Print a column a model (and one of their difference), a row a metric; then a row a class, where any are given."""
    r = records[0]
    measured = f"{r.dataset}, {r.split} images, n = {r.n:,}, {r.backbone}, readout {r.readout}"
    title = f"{measured}; % [95 % interval, bootstrap over images]"
    table = Table(title=escape(title), title_justify="left", title_style="", header_style="bold")
    table.add_column("metric")
    metrics = [m for m in dict.fromkeys(r.metric for r in records) if not m.endswith("_difference")]
    columns = [records[i : i + len(metrics)] for i in range(0, len(records), len(metrics))]
    for column in columns:
        is_difference = column[0].metric.endswith("_difference")
        heading = "difference" if is_difference else column[0].method
        table.add_column(escape(heading), justify="right")
    for i, metric in enumerate(metrics):
        texts = [f"{percent(c[i].value)} [{percent(c[i].ci_low)}, {percent(c[i].ci_high)}]" for c in columns]
        table.add_row(metric.replace("_", " "), *texts)
    out.print(table)
    if classes:
        out.print(_class_table(classes))


def _class_table(classes: Sequence[ClassRow]) -> Table:
    table = Table(header_style="bold")
    for heading in ("class", "images", "recall %", "precision %", "F1 %"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, images, recall, precision, f1 in classes:
        said = "-" if precision is None else percent(precision)
        table.add_row(escape(name), f"{images:,}", percent(recall), said, percent(f1))
    return table
