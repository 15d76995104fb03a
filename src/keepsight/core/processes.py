"""The processes of one job (torchrun): which one this is, and what they exchange. One process needs nothing started.

Whoever starts the group (Accelerate, in `train` and `features`) chooses the backend; here is only what works with any.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_gather, all_reduce

from keepsight.core.errors import UserError

T = TypeVar("T")


def count() -> int:
    """Processes of this job; 1 without a launcher."""
    return distributed.get_world_size() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return index() == 0


def wait() -> None:
    """Return when every process is here."""
    if distributed.is_initialized():
        distributed.barrier()


def everyone(value: T) -> list[T]:
    """The value of every process, in order; a small object that pickles (ours alone: nothing comes from a file)."""
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def mine(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's share of the indices: every count()-th one; shares may differ in length by one."""
    return indices[index() :: count()]


def joined(rows: NDArray[Any]) -> NDArray[Any]:
    """Undo `mine`: rows [n, ...] of every process, put back in the order of the whole; equal on every process."""
    parts: Sequence[NDArray[Any]] = everyone(rows)
    if len(parts) == 1:
        return rows
    whole = np.empty((sum(len(part) for part in parts), *rows.shape[1:]), rows.dtype)
    for number, part in enumerate(parts):
        whole[number :: len(parts)] = part
    return whole


class SharedError(UserError):
    """What the main process said already: the others stop with it and need not say it again."""


def from_main(make: Callable[[], T]) -> T:
    """The main process's value (a small object that pickles) on every process; its UserError is everybody's."""
    found: list[T] = []
    with main_writes():
        if is_main():
            found.append(make())
    return everyone(found)[0][0]


@contextlib.contextmanager
def main_writes() -> Iterator[None]:
    """Around what the main process alone does, under ``if is_main()``; all wait for its end, and share its UserError.

    Without this a process that fails leaves the others waiting until the launcher's timeout.
    """
    failed: UserError | None = None
    try:
        yield
    except UserError as error:
        failed = error
    _share(failed)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Around what every process does, but the main one before the others (a download into a shared cache)."""
    if is_main():
        with main_writes():
            yield
    else:
        _share(None)
        yield


def _share(failed: UserError | None) -> None:
    said = [message for message in everyone(str(failed) if failed else None) if message]
    if failed:
        raise failed
    if said:
        raise SharedError(said[0])


def averaged(value: Tensor) -> Tensor:
    """The mean of a tensor over the processes, with gradients: statistics of the global batch from equal shares of it."""
    if not distributed.is_initialized() or count() == 1:
        return value
    total: Tensor = all_reduce(value)  # type: ignore[no-untyped-call]
    return total / count()


def gathered(rows: Tensor) -> Tensor:
    """The rows [B, ...] of all processes [P B, ...], in order, with gradients; shares must be equally long.

    Where every process computes the same loss of the gathered rows, averaged gradients (DDP) are those of that loss.
    """
    if not distributed.is_initialized() or count() == 1:
        return rows
    parts: tuple[Tensor, ...] = all_gather(rows)  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def largest(value: int, device: torch.device | None = None) -> int:
    """The greatest of the processes' numbers: one number is exchanged."""
    if not distributed.is_initialized():
        return value
    number = torch.tensor(value, device=device)
    distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
    return int(number.item())


def any_true(value: bool, device: torch.device | None = None) -> bool:
    """Whether it is true on some process: one number is exchanged."""
    if not distributed.is_initialized():
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
