"""The one loop: batches in, `Method.losses` summed, backward, step, validate, save. Knows no method by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from pydantic import Field
from torch import Tensor, nn

from keepsight.core import Batch, Config, Method, UserError
from keepsight.core.progress import Track, log
from keepsight.train.batches import BatchSource
from keepsight.train.checkpoint import (
    last_good_checkpoint,
    load_trained_state,
    random_states,
    restore_random_states,
    save_checkpoint,
    trained_state,
)
from keepsight.train.optim import OptimConfig, lr_factor, make_optimizer, set_lr


class TrainConfig(Config):
    """The loop.

    Attributes:
        optim: Optimizer of every phase.
        accumulate: Micro-batches a step; the gradient equals that of the whole batch.
        precision: Mixed precision of the forward pass ("auto": bf16 on a GPU that has it, else float32).
        validate_every: Steps between validations, where there is a validation function.
        patience: Validations without improvement before stopping early; 0 never stops early.
        checkpoint_seconds: Seconds between checkpoints (one more is written at every improvement on validation).
        checkpoint_steps: Steps between checkpoints, in place of seconds.
    """

    optim: OptimConfig = OptimConfig()
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    validate_every: int = Field(default=50, ge=1)
    patience: int = Field(default=5, ge=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)


@dataclass(slots=True)
class Outcome:
    """What training ended with; the method itself holds the selected weights.

    Attributes:
        steps: Steps taken.
        selected_step: The step whose weights were kept.
        selection: "last", or "validation" where a validation function chose.
        validation: (step, score) in order; higher is better.
    """

    steps: int
    selected_step: int
    selection: Literal["last", "validation"]
    validation: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class _Progress:
    """The part of the trainer's state that checkpoints carry beside weights, optimizers and random states."""

    step: int = 0
    best_step: int = -1
    best_score: float = float("-inf")
    validation: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = False

    def improved(self, score: float) -> bool:
        self.validation.append((self.step, score))
        if score > self.best_score:
            self.best_step, self.best_score = self.step, score
            return True
        return False

    def out_of_patience(self, patience: int) -> bool:
        since = [step for step, _ in self.validation if step > self.best_step]
        return patience > 0 and len(since) >= patience


def _precision(config: TrainConfig) -> str:
    if config.precision != "auto":
        return config.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


class _Prefetch:
    """Loads the next micro-batch in a thread while the current one is computed; batches are pure, so order is free."""

    def __init__(self, source: BatchSource, accelerator: Accelerator, accumulate: int) -> None:
        self._source, self._device = source, accelerator.device
        self._total = accumulate * accelerator.num_processes
        self._shares = [accelerator.process_index + accelerator.num_processes * m for m in range(accumulate)]
        self._pool = ThreadPoolExecutor(1)
        self._loading: tuple[int, list[Future[Batch]]] = (-1, [])

    def _start(self, step: int) -> list[Future[Batch]]:
        return [self._pool.submit(self._source, step, share, self._total) for share in self._shares]

    def step(self, step: int, is_last: bool) -> list[Batch]:
        """This process's micro-batches of a step; those of the next one begin to load."""
        ready = self._loading[1] if self._loading[0] == step else self._start(step)
        batches = [future.result() for future in ready]
        if not is_last:
            self._loading = (step + 1, self._start(step + 1))
        to = self._device
        return [Batch(b.inputs.to(to), b.labels.to(to), b.unlabelled.to(to)) for b in batches]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _check_finite(losses: dict[str, Tensor], step: int, checkpoints: Path) -> None:
    if all(bool(torch.isfinite(v)) for v in losses.values()):
        return
    last = last_good_checkpoint(checkpoints)
    kept = f"the last good checkpoint is {last.path} (step {last.step})" if last else "there is no checkpoint before it"
    values = ", ".join(f"{name} = {v.item():g}" for name, v in losses.items())
    raise UserError(
        f"Training stopped at step {step}: the loss is not finite ({values}); {kept}; a lower learning rate usually helps."
    )


def _resume(
    checkpoints: Path, method: Method, optimizers: dict[str, torch.optim.Optimizer], config_text: str
) -> _Progress:
    last = last_good_checkpoint(checkpoints)
    if last is None:
        return _Progress()
    weights, state = last.read()
    if state["config"] != config_text:
        raise UserError(
            f"The checkpoint {last.path} was made with another training configuration: finish it with that one, or choose "
            "another output directory."
        )
    load_trained_state(method, weights)
    for phase, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][phase])
    restore_random_states(state["random"])
    log.info("resuming from %s", last.path)
    return _Progress(**state["progress"])


def train(
    method: Method,
    batches: BatchSource,
    steps: int,
    config: TrainConfig,
    checkpoints: Path,
    validate: Callable[[], float] | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
    name: str = "training",
) -> Outcome:
    """Train `method` in place and return what happened; resumes from `checkpoints` if there is one.

    A run that was killed and resumed ends with the same weights, bit for bit on a CPU: batches, schedules and augmentation
    are functions of the step, and a checkpoint holds everything else.

    Args:
        method: What to train.
        batches: Data, as a pure function of the step.
        steps: Optimizer steps.
        config: The loop's settings.
        checkpoints: Folder of the checkpoints.
        validate: Score of the method now (higher is better) on validation images; never on test images. With it, the best
            validated weights are kept; without it, the last ones.
        report: Gets (step, named figures).
        name: What the progress bar says.

    Raises:
        UserError: The loss is not finite, or the checkpoint belongs to another configuration.
        RuntimeError: A method's own check after the first backward pass failed (dead adapters).
    """
    # A phase leaves the other phases' parameters without gradients, which DDP must be told.
    distributed = DistributedDataParallelKwargs(find_unused_parameters=len(method.phases) > 1)
    accelerator = Accelerator(mixed_precision=_precision(config), kwargs_handlers=[distributed])
    optimizers = {phase: make_optimizer(method.parameters_of(phase), config.optim) for phase in method.phases}
    method.to(accelerator.device)
    config_text = f"{steps} {config.model_dump_json()}"
    progress = _resume(checkpoints, method, optimizers, config_text)
    first = progress.step
    model: nn.Module = accelerator.prepare_model(method)
    prepared = {phase: accelerator.prepare_optimizer(optimizer) for phase, optimizer in optimizers.items()}
    prefetch = _Prefetch(batches, accelerator, config.accumulate)
    last_save = time.monotonic()

    def save() -> None:
        nonlocal last_save
        if accelerator.is_main_process:
            state: dict[str, Any] = {
                "config": config_text,
                "optimizers": {phase: optimizer.state_dict() for phase, optimizer in optimizers.items()},
                "random": random_states(),
                "progress": {name: getattr(progress, name) for name in _Progress.__slots__},
            }
            save_checkpoint(checkpoints, progress.step, trained_state(method), state)
        accelerator.wait_for_everyone()
        last_save = time.monotonic()

    with contextlib.closing(prefetch), Track(name, steps, "steps") as track:
        track.advance(first)
        while progress.step < steps and not progress.stopped:
            step = progress.step
            method.train()
            figures = _one_step(
                model,
                method,
                prepared,
                prefetch.step(step, is_last=step + 1 == steps),
                accelerator,
                config,
                config.optim.lr * lr_factor(config.optim, step, steps),
                step,
                lambda losses: _check_finite(losses, progress.step, checkpoints),
            )
            progress.step += 1
            if validate is not None and (progress.step % config.validate_every == 0 or progress.step == steps):
                method.eval()
                score = validate()
                figures["validation"] = score
                if progress.improved(score):
                    progress.best = {k: v.clone() for k, v in trained_state(method).items()}
                progress.stopped = progress.out_of_patience(config.patience)
            if report is not None and accelerator.is_main_process:
                report(progress.step, figures)
            track.advance(1, note=f"loss {figures['loss']:.3f}")
            due = (
                progress.step % config.checkpoint_steps == 0
                if config.checkpoint_steps
                else time.monotonic() - last_save >= config.checkpoint_seconds
            )
            if due and progress.step < steps:
                save()
    method.eval()
    if validate is not None and progress.best:
        load_trained_state(method, progress.best)
        return Outcome(progress.step, progress.best_step, "validation", progress.validation)
    return Outcome(progress.step, progress.step, "last", progress.validation)


def _one_step(
    model: nn.Module,
    method: Method,
    optimizers: dict[str, Any],
    micro: list[Batch],
    accelerator: Accelerator,
    config: TrainConfig,
    lr: float,
    step: int,
    check: Callable[[dict[str, Tensor]], None],
) -> dict[str, float]:
    """One step of every phase over the same micro-batches; returns the mean losses and the learning rate."""
    figures: dict[str, float] = {"lr": lr, "loss": 0.0}
    for phase, optimizer in optimizers.items():
        set_lr(optimizer, lr)
        for i, batch in enumerate(micro):
            is_last = i == len(micro) - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                losses: dict[str, Tensor] = model(batch, phase, step)
                check(losses)
                total = torch.stack(list(losses.values())).sum()
                accelerator.backward(total / len(micro))
            for name, value in losses.items():
                figures[name] = figures.get(name, 0.0) + value.item() / len(micro)
            figures["loss"] += total.item() / len(micro)
        if step == 0:
            method.after_first_step()
        if config.optim.clip is not None:
            figures["gradient_norm"] = float(
                accelerator.clip_grad_norm_(method.parameters_of(phase), config.optim.clip)
            )
        optimizer.step()
        method.zero_grad(set_to_none=True)
    return figures
