"""This process's device, and its place among the processes that a launcher (torchrun) started. Knows no model."""

from __future__ import annotations

import functools

import torch
from accelerate import PartialState

from keepsight.core import processes


@functools.cache
def start_processes() -> PartialState:
    """Join the other processes of this job, if there are any: NCCL between GPUs, gloo on CPUs. Further calls change nothing."""
    if processes.count() > 1 and not torch.accelerator.is_available():
        return PartialState(cpu=True)  # without being told, Accelerate takes a job without GPUs for single processes
    return PartialState()


def this_device() -> torch.device:
    """Where this process computes."""
    device: torch.device = start_processes().device
    return device
