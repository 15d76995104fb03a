"""TensorBoard events of one fit. Knows no method.

Written by the caller's own thread: the usual writer has a thread that prints a traceback when the disk is full and raises the
error at some later step. A curve is not worth a run: if it cannot be written, that is said once and training goes on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import final

from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

from keepsight.core.progress import log


@final
class Events:
    """Scalars over steps in one event file; use as a function (step, named figures) and as a context manager.

    Args:
        folder: Where the file goes; one folder a curve.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: RecordWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{time.time_ns()}.{os.uname().nodename}.{os.getpid()}"
            self._writer = RecordWriter((folder / name).open("wb"))
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        except OSError as error:
            self._give_up(error)

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        """Add the figures of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        if self._writer is not None:
            try:
                self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
            except OSError as error:
                self._give_up(error)

    def _write(self, event: Event) -> None:
        assert self._writer is not None
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def _give_up(self, error: OSError) -> None:
        self.close()
        log.warning("TensorBoard events in %s cannot be written (%s): going on without", self._folder, error.strerror)

    def close(self) -> None:
        """Close the file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:  # what the last flush could not write
                log.debug("closing the events failed (%s)", error.strerror)

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
