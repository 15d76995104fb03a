"""A process that has imported keepsight once and forks a child for every command it is sent: starting one costs no import.

Run as a program by `conftest.Forked`. It reads one JSON object a line, {argv, env, log, trace, limit}, answers {"pid": ...} at
once, and {"pid": ..., "code": ...} when the child has ended (negative: by a signal). No tensor is made before the fork, so that
no thread runs then.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
from types import FrameType


def stack(frame: FrameType | None) -> str:
    """File and function of every frame, one a line, and an end."""
    lines = []
    while frame is not None:
        lines.append(f"{frame.f_code.co_filename} in {frame.f_code.co_name}\n")
        frame = frame.f_back
    return "".join(lines) + "end\n"


def void(_: object) -> None:
    """Nothing: what a signal handler returns."""


def child(argv: list[str], env: dict[str, str], log: str, trace: str | None, limit: int | None) -> None:
    """The command in this process, with its output in `log`; on SIGUSR1 it appends where it is to `trace`."""
    import random

    import numpy as np
    import torch

    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if trace:
        where = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Python's own handler: it runs between two instructions, where faulthandler's would read frames that are half made.
        signal.signal(signal.SIGUSR1, lambda _, frame: void(os.write(where, stack(frame).encode())))
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores the signal: writes fail with EFBIG
    os.environ.update(env)
    torch.set_num_threads(1)
    # A new process would have random states of its own, not its parent's.
    random.seed()
    np.random.seed()
    torch.seed()
    from keepsight.cli import main

    sys.argv = ["keepsight", *argv]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Fork and report until stdin ends."""
    import torch.utils._pytree  # noqa: F401

    import keepsight.cli
    import keepsight.evaluate.intervals
    import keepsight.recipes.plan
    import keepsight.report.table

    # A thousand draws for each of 48 intervals take longer than all fits of the job; fewer write the same files.
    keepsight.evaluate.intervals.DRAWS = 100
    print("ready", flush=True)
    running: set[int] = set()
    while True:
        if select.select([sys.stdin], [], [], 0.01)[0]:
            line = sys.stdin.readline()
            if not line:
                break
            pid = os.fork()
            if pid == 0:
                child(**json.loads(line))
            running.add(pid)
            print(json.dumps({"pid": pid}), flush=True)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                print(json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
