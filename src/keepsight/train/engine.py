"""What the loop runs on: processes, precision, sharding and memory, all through Accelerate. Knows no method by name."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import register_fsdp_forward_method

from keepsight.core import Backbone, Batch, Method, Trainable, UserError, processes
from keepsight.features.device import start_processes, this_device
from keepsight.train.batches import BatchSource
from keepsight.train.checkpoint import load_trained_state

Precision = Literal["auto", "no", "bf16", "fp16"]
Sharding = Literal["none", "fsdp"]

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)


@functools.cache
def _launched_as() -> DistributedType:
    """The kind of job, before any training has changed it."""
    kind: DistributedType = start_processes().distributed_type
    return kind


def precision_of(wanted: Precision) -> str:
    """ "auto" is bf16 on a GPU that has it, else float32.

    Raises:
        UserError: fp16 without a GPU.
    """
    if wanted == "fp16" and not torch.cuda.is_available():
        raise UserError("precision=fp16 needs a GPU, and there is none here: use precision=auto, bf16 or no.")
    if wanted != "auto":
        return wanted
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


class Engine:
    """One training's accelerator, with the method and its optimizers prepared by `prepare`.

    Args:
        precision: See `precision_of`.
        sharding: "none" keeps a whole copy on every process (DDP); "fsdp" cuts parameters, gradients and optimizer
            states into one share a process (FSDP2), gathered one backbone block at a time.
        phases: Of the method.
    """

    def __init__(self, precision: Precision, sharding: Sharding, phases: tuple[str, ...]) -> None:
        # A phase leaves the other phases' parameters without gradients, which DDP must be told.
        distributed = DistributedDataParallelKwargs(find_unused_parameters=len(phases) > 1)
        plugin = None
        if sharding == "fsdp":
            if processes.count() == 1:
                raise UserError("sharding=fsdp needs several processes: start with torchrun, or use sharding=none.")
            plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
            )
        # Accelerate keeps one precision and one kind of job a process; every training has its own.
        kind = _launched_as()
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = kind
        self.accelerator = Accelerator(
            cpu=this_device().type == "cpu",
            mixed_precision=precision_of(precision),
            kwargs_handlers=[distributed],
            fsdp_plugin=plugin,
        )
        self.sharded = plugin is not None
        if plugin is not None and not self.accelerator.is_fsdp2:
            # Accelerate offers FSDP on accelerators only. On a CPU the same code runs (gloo), which is how it is tested.
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.accelerator.state.fsdp_plugin = plugin
        self._plugin = plugin

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        device: torch.device = self.accelerator.device
        return device

    def prepare(
        self, method: Trainable, optimizers: dict[str, torch.optim.Optimizer]
    ) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
        """The wrapped method and optimizers; `method` itself stays usable for evaluation."""
        accelerator = self.accelerator
        if self._plugin is not None:
            blocks = [b for m in method.modules() if isinstance(m, Backbone) for b in m.block_modules()]
            self._plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})
            model, *prepared = accelerator.prepare(method, *optimizers.values())
            if isinstance(method, Method):
                register_fsdp_forward_method(model, "logits")
            return model, dict(zip(optimizers, prepared, strict=True))
        model = accelerator.prepare_model(method)
        return model, {phase: accelerator.prepare_optimizer(optimizer) for phase, optimizer in optimizers.items()}

    def optimizer_state(self, method: nn.Module, optimizer: Any) -> dict[str, Any]:
        """Whole, on the CPU, whatever the sharding; every process must call it."""
        inner: torch.optim.Optimizer = optimizer.optimizer
        if not self.sharded:
            return inner.state_dict()
        return get_optimizer_state_dict(method, inner, options=_WHOLE)

    def load_optimizer_state(self, method: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
        """Undo `optimizer_state`."""
        if self.sharded:
            set_optimizer_state_dict(method, optimizer.optimizer, state, options=_WHOLE)
        else:
            optimizer.optimizer.load_state_dict(state)

    def load_weights(self, method: nn.Module, state: dict[str, Tensor]) -> None:
        """Put a `trained_state` back, into shares where the method is sharded."""
        if self.sharded:
            set_model_state_dict(method, dict[str, Any](state), options=_WHOLE)
        else:
            load_trained_state(method, state)


class Prefetch:
    """Loads the next micro-batches in a thread while a GPU computes the current ones; batches are pure, so order is free.

    On a CPU they are loaded in between, by the same thread: torch's operations in a second one get OpenMP threads of their own, and
    a step that takes 0.24 s took 0.36 s (2 cores, loading alone 0.02 s).
    """

    def __init__(self, source: BatchSource, device: torch.device, accumulate: int) -> None:
        self._source, self._device = source, device
        self._total = accumulate * processes.count()
        self._shares = [processes.index() + processes.count() * m for m in range(accumulate)]
        self._pool = ThreadPoolExecutor(1)
        self._loading: tuple[int, list[Future[Batch]]] = (-1, [])

    def _start(self, step: int) -> list[Future[Batch]]:
        return [self._pool.submit(self._source, step, share, self._total) for share in self._shares]

    def step(self, step: int, is_last: bool) -> list[Batch]:
        """This process's micro-batches of a step; those of the next one begin to load."""
        if self._device.type == "cpu":
            return [self._source(step, share, self._total) for share in self._shares]
        ready = self._loading[1] if self._loading[0] == step else self._start(step)
        batches = [future.result() for future in ready]
        if not is_last:
            self._loading = (step + 1, self._start(step + 1))
        return [batch.to(self._device) for batch in batches]

    def close(self) -> None:
        """Stop loading."""
        self._pool.shutdown(cancel_futures=True)


def fitting_accumulation(
    method: Trainable, batches: BatchSource, engine: Engine, free: Callable[[], None] = torch.cuda.empty_cache
) -> int:
    """The smallest number of micro-batches (a power of two) with which a step fits into memory on every process.

    Tries the first batch forwards and backwards before anything is wrapped, and doubles while memory runs out. The global batch,
    and so the gradient, stays the same.

    Raises:
        UserError: Not even the smallest share fits.
    """
    accumulate = 1
    while True:
        total = accumulate * processes.count()
        try:
            batch = batches(0, processes.index(), total).to(engine.device)
            failed = not _fits(method, batch, engine)
        except UserError as error:
            if accumulate == 1:
                raise
            raise UserError(
                f"A step does not fit into memory even with {accumulate // 2} micro-batches: choose a smaller size, a smaller "
                "backbone, or objective.checkpoint_blocks=true."
            ) from error
        if not processes.any_true(failed, engine.device):
            return accumulate
        gc.collect()
        free()
        accumulate *= 2


def _fits(method: Trainable, batch: Batch, engine: Engine) -> bool:
    random = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        for phase in method.phases:
            with engine.accelerator.autocast():
                losses = method(batch, phase, 0)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            method.zero_grad(set_to_none=True)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        method.zero_grad(set_to_none=True)
        torch.set_rng_state(random[0])
        if random[1]:
            torch.cuda.set_rng_state_all(random[1])
    return True
