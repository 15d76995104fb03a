"""Progress with rate and time left: a bar in a terminal, plain lines elsewhere. Everything a run says goes through here."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
log = logging.getLogger("keepsight")

LINE_EVERY = 10.0
"""Seconds between plain progress lines."""


class Track:
    """Progress of one loop; use as a context manager and call `advance`.

    Example:
        >>> with Track("reading", total=2, unit="images") as track:
        ...     track.advance(2)
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._done = 0
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Track:
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(self.what, total=self.total, rate="", note="")
            self._bar.start()
        return self

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count `by` more units done."""
        self._done += by
        now = time.monotonic()
        rate = self._done / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:.1f} {self.unit}/s", note=note)
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            left = (self.total - self._done) / rate
            log.info(
                "%s: %d/%d %s, %.1f/s, %.0f s left %s", self.what, self._done, self.total, self.unit, rate, left, note
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
