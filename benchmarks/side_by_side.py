"""Two ways of doing one thing, measured in turn in one process. Shared by the benchmarks; not one itself.

The order is ours, peer, peer, ours, ours, peer... so that a machine that slows down or a busy neighbour meets both alike. The
figures are medians over the runs; the ratio is the median of each run's own ratio. `*_mib` is the peak resident memory of the
whole process meanwhile: its libraries (the same for both) are in it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from keepsight.evaluate.cost import measured


@dataclass(slots=True)
class Side:
    """One side's runs."""

    seconds: list[float] = field(default_factory=list)
    mib: float = 0.0

    def run(self, work: Callable[[], Any]) -> None:
        """Time it once."""
        with measured() as cost:
            start = time.perf_counter()
            work()
            self.seconds.append(time.perf_counter() - start)
        self.mib = max(self.mib, cost.peak_mib)


def alternate(
    name: str,
    size: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    runs: int,
    *,
    unit: str = "s",
    amount: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    """Measure both in turn and print one JSON line.

    Args:
        name: What is measured.
        size: At what size.
        ours: Ours.
        peer: The peer's.
        runs: Times each is run.
        unit: "s" (less is better) or a rate such as "images/s" (more is better).
        amount: For a rate: how many units one run does.
        more: Further figures for the line; a function is called when the runs are over.

    Returns:
        The line; `ratio` is how many times faster ours is.
    """
    sides = Side(), Side()
    for run in range(runs):
        for side in (0, 1) if run % 2 == 0 else (1, 0):
            sides[side].run((ours, peer)[side])
    medians = [statistics.median(side.seconds) for side in sides]
    ratio = statistics.median(b / a for a, b in zip(sides[0].seconds, sides[1].seconds, strict=True))
    figures = medians if unit == "s" else [amount / seconds for seconds in medians]
    return say(
        name=name,
        size=size,
        ours=figures[0],
        peer=figures[1],
        unit=unit,
        ratio=ratio,
        ours_mib=sides[0].mib,
        peer_mib=sides[1].mib,
        runs=runs,
        **{key: value() if callable(value) else value for key, value in more.items()},
    )


def say(**line: Any) -> dict[str, Any]:
    """Print one JSON line to stdout."""
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in line.items()}
    print(json.dumps(rounded), flush=True)
    return rounded


def table(title: str, lines: list[dict[str, Any]]) -> None:
    """The lines as a table on stderr."""
    shown = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(key for line in lines for key in line))
    for name in names:
        shown.add_column(name, justify="left" if name in ("name", "size", "unit") else "right")
    for line in lines:
        shown.add_row(*(str(line.get(name, "")) for name in names))
    Console(file=sys.stderr, width=None if sys.stderr.isatty() else 160).print(shown)
