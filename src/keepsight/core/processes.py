"""The processes of one job (torchrun): which one this is, and what they exchange. One process needs nothing started.

Whoever starts the group (Accelerate, in `train` and `features`) chooses the backend; here is only what works with any.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

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


def any_true(value: bool, device: torch.device | None = None) -> bool:
    """Whether it is true on some process: one number is exchanged."""
    if not distributed.is_initialized():
        return value
    flag = torch.tensor(float(value), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())
