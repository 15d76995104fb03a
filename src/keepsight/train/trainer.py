"""The one loop: batches in, `Method.losses` summed, backward, step, validate, save. Knows no method by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from keepsight.core import Backbone, Batch, Config, Trainable, UserError, processes
from keepsight.core.progress import Track, log
from keepsight.train.average import Average
from keepsight.train.batches import BatchSource
from keepsight.train.checkpoint import (
    Checkpoint,
    last_good_checkpoint,
    random_states,
    restore_random_states,
    save_checkpoint,
    trained_state,
)
from keepsight.train.engine import Engine, Precision, Prefetch, Sharding, fitting_accumulation
from keepsight.train.optim import OptimConfig, lr_factor, make_optimizer, set_lr


class TrainConfig(Config):
    """The loop.

    Attributes:
        optim: Optimizer of every phase.
        accumulate: Micro-batches a step; the gradient equals that of the whole batch. 0 on a GPU: as many as it takes to fit
            into its memory, found before the first step; elsewhere (and with sharding) 1.
        precision: Mixed precision of the forward pass ("auto": bf16 on a GPU that has it, else float32).
        sharding: "none", or "fsdp" under several processes for backbones that do not fit on one device.
        compile: Compile the backbone's forward pass (`torch.compile`); the first steps take minutes.
        ema: Decay of the weights' moving average (see `train.average`), which then is what is validated and kept; None for none.
        validate_every: Steps between validations, where there is a validation function.
        patience: Validations without improvement before stopping early; 0 never stops early.
        checkpoint_seconds: Seconds between checkpoints (one more is written at every improvement on validation).
        checkpoint_steps: Steps between checkpoints, in place of seconds.
    """

    optim: OptimConfig = OptimConfig()
    accumulate: int = Field(default=0, ge=0)
    precision: Precision = "auto"
    sharding: Sharding = "none"
    compile: bool = False
    ema: float | None = Field(default=None, gt=0, lt=1)
    validate_every: int = Field(default=50, ge=1)
    patience: int = Field(default=5, ge=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    checkpoint_steps: int | None = Field(default=None, ge=1)

    @field_validator("precision", mode="before")
    @classmethod
    def _precision(cls, given: Any) -> Any:
        return "no" if given is False else given  # YAML's word for no


@dataclass(slots=True)
class Outcome:
    """What training ended with; the method itself holds the selected weights.

    Attributes:
        steps: Steps taken.
        selected_step: The step whose weights were kept.
        selection: "last", or "validation" where a validation function chose.
        state: The selected weights, whole and on the CPU also where the method is sharded.
        validation: (step, score) in order; higher is better.
    """

    steps: int
    selected_step: int
    selection: Literal["last", "validation"]
    state: dict[str, Tensor]
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


def _check_finite(losses: dict[str, Tensor], step: int, checkpoints: Path, device: torch.device) -> None:
    """Every process stops if one has a loss that is not finite: the others would wait for its gradients for ever."""
    bad = not bool(torch.isfinite(torch.stack([v.detach().float() for v in losses.values()])).all())
    if not processes.any_true(bad, device):
        return
    last = last_good_checkpoint(checkpoints)
    kept = f"the last good checkpoint is {last.path} (step {last.step})" if last else "there is no checkpoint before it"
    values = ", ".join(f"{name} = {v.item():g}" for name, v in losses.items()) if bad else "on another process"
    raise UserError(
        f"Training stopped at step {step}: the loss is not finite ({values}); {kept}; a lower learning rate usually helps."
    )


def _last_checkpoint(
    checkpoints: Path, config_text: str
) -> tuple[Checkpoint, dict[str, Tensor], dict[str, Any]] | None:
    last = last_good_checkpoint(checkpoints)
    steps = processes.everyone(last.step if last else -1)
    if len(set(steps)) > 1:
        raise UserError(
            f"The processes see different checkpoints in {checkpoints} (steps {steps}): the run folder must lie on a disk that all "
            "of them share."
        )
    if last is None:
        return None
    weights, state = last.read()
    if state["config"] != config_text:
        raise UserError(
            f"The checkpoint {last.path} was made with another training configuration: finish it with that one, or choose "
            "another output directory."
        )
    return last, weights, state


class _Training:
    """One training: the method, what it runs on, and where it stands; every process has one."""

    def __init__(
        self, method: Trainable, batches: BatchSource, steps: int, config: TrainConfig, checkpoints: Path
    ) -> None:
        self.method, self.config, self.checkpoints = method, config, checkpoints
        self.engine = Engine(config.precision, config.sharding, method.phases)
        self.config_text = f"{steps} {config.model_dump_json()}"
        self.progress = _Progress()
        if not self.engine.sharded:  # a sharded one is moved block by block, never whole
            method.to(self.engine.device)
        if config.compile:
            for module in method.modules():
                if isinstance(module, Backbone):
                    module.compile()
        self.accumulate = config.accumulate or self._fitting(batches)
        optimizers = {
            phase: make_optimizer(
                method.parameters_of(phase), config.optim, method.lr_scales(), fused=not self.engine.sharded
            )
            for phase in method.phases
        }
        self.model, self.optimizers = self.engine.prepare(method, optimizers)
        # Listed once: walking through all modules at every step took a twentieth of it.
        self._parameters = {phase: method.parameters_of(phase) for phase in method.phases}
        self._trainable = [p for p in method.parameters() if p.requires_grad]
        self.average = None if config.ema is None else Average(self._trainable, config.ema)
        if processes.count() > 1:
            torch.manual_seed(torch.initial_seed() + 1_000_003 * processes.index())  # dropout differs between processes
        self._resume()

    def _fitting(self, batches: BatchSource) -> int:
        if self.engine.device.type != "cuda" or self.engine.sharded:
            return 1
        self.method.train()
        return fitting_accumulation(self.method, batches, self.engine)

    def _resume(self) -> None:
        found = _last_checkpoint(self.checkpoints, self.config_text)
        if found is None:
            return
        last, weights, state = found
        if self.average is not None:
            self.engine.load_weights(self.method, state["average"])
            self.average = Average(self._trainable, float(self.config.ema or 0))
        self.engine.load_weights(self.method, weights)
        for phase, optimizer in self.optimizers.items():
            self.engine.load_optimizer_state(self.method, optimizer, state["optimizers"][phase])
        restore_random_states(state["random"][processes.index() % len(state["random"])])
        self.progress = _Progress(**state["progress"])
        log.info("resuming from %s", last.path)

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights that count: the average where there is one."""
        with self.average.applied() if self.average else contextlib.nullcontext():
            return {name: tensor.clone() for name, tensor in trained_state(self.method).items()}

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        weights = trained_state(self.method)
        state: dict[str, Any] = {
            "config": self.config_text,
            "optimizers": {p: self.engine.optimizer_state(self.method, o) for p, o in self.optimizers.items()},
            "random": processes.everyone(random_states()),
            "progress": {name: getattr(self.progress, name) for name in _Progress.__slots__},
        }
        if self.average is not None:
            state["average"] = self.state()
        with processes.main_writes():
            if processes.is_main():
                save_checkpoint(self.checkpoints, self.progress.step, weights, state)

    def validated(self, validate: Callable[[], float]) -> float:
        """Score of the weights that count; the best ones are kept."""
        self.method.eval()
        with self.average.applied() if self.average else contextlib.nullcontext():
            score = validate()
        if self.progress.improved(score):
            self.progress.best = self.state()
        self.progress.stopped = self.progress.out_of_patience(self.config.patience)
        return score

    def shown(self, look: Callable[[int], None]) -> None:
        """Look at the weights that count."""
        self.method.eval()
        with self.average.applied() if self.average else contextlib.nullcontext():
            look(self.progress.step)

    def one_step(self, micro: list[Batch], lr: float) -> dict[str, float]:
        """One step of every phase over the same micro-batches; returns the mean losses and the learning rate."""
        config, accelerator, step = self.config, self.engine.accelerator, self.progress.step
        figures: dict[str, float] = {"lr": lr, "loss": 0.0}
        for phase, optimizer in self.optimizers.items():
            set_lr(optimizer, lr)
            for i, batch in enumerate(micro):
                is_last = i == len(micro) - 1
                with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
                    losses: dict[str, Tensor] = self.model(batch, phase, step)
                    _check_finite(losses, step, self.checkpoints, self.engine.device)
                    total = torch.stack(list(losses.values())).sum()
                    accelerator.backward(total / len(micro))
                for name, value in losses.items():
                    figures[name] = figures.get(name, 0.0) + value.item() / len(micro)
                figures["loss"] += total.item() / len(micro)
            if step == 0 and phase == self.method.phases[-1]:
                self.method.after_first_step()
            if config.optim.clip is not None:
                norm = accelerator.clip_grad_norm_(self._parameters[phase], config.optim.clip)
                figures["gradient_norm"] = float(norm)
            self.method.before_update(phase)
            optimizer.step()
            self.method.after_update(phase)
            for parameter in self._trainable:
                parameter.grad = None
        if self.average is not None:
            self.average.update(step)
        return figures


def train(
    method: Trainable,
    batches: BatchSource,
    steps: int,
    config: TrainConfig,
    checkpoints: Path,
    validate: Callable[[], float] | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
    name: str = "training",
    look: Callable[[int], None] | None = None,
) -> Outcome:
    """Train `method` in place and return what happened; resumes from `checkpoints` if there is one.

    A run that was killed and resumed ends with the same weights, bit for bit on a CPU: batches, schedules and augmentation
    are functions of the step, and a checkpoint holds everything else. Under several processes (torchrun) every process calls
    this with the same arguments, and each takes its share of every batch.

    Args:
        method: What to train.
        batches: Data, as a pure function of the step.
        steps: Optimizer steps.
        config: The loop's settings.
        checkpoints: Folder of the checkpoints; all processes must see it.
        validate: Score of the method now (higher is better) on validation images, equal on all processes; never on test
            images. With it, the best validated weights are kept; without it, the last ones.
        report: Gets (step, named figures), on the main process; losses are this process's own.
        name: What the progress bar says.
        look: Gets the step wherever `config.validate_every` validates, and at the end, with the weights that count in place and the
            method in evaluation mode; every process calls it. A resumed training looks again at what comes after its checkpoint.

    Raises:
        UserError: The loss is not finite, the checkpoint belongs to another configuration, or memory does not suffice.
        RuntimeError: A method's own check after the first backward pass failed (dead adapters).
    """
    training = _Training(method, batches, steps, config, checkpoints)
    progress = training.progress
    prefetch = Prefetch(batches, training.engine.device, training.accumulate)
    with contextlib.closing(prefetch), Track(name, steps, "steps") as track:
        track.advance(progress.step)
        for figures in _steps(training, prefetch, steps, validate, look):
            if report is not None and processes.is_main():
                report(progress.step, figures)
            track.advance(1, note=f"loss {figures['loss']:.3f}")
    method.eval()
    if validate is not None and progress.best:
        training.engine.load_weights(method, progress.best)
        return Outcome(progress.step, progress.best_step, "validation", progress.best, progress.validation)
    if training.average is not None:
        training.average.keep()
    return Outcome(progress.step, progress.step, "last", trained_state(method), progress.validation)


def _steps(
    training: _Training,
    prefetch: Prefetch,
    steps: int,
    validate: Callable[[], float] | None,
    look: Callable[[int], None] | None,
) -> Iterator[dict[str, float]]:
    """Steps, validations and checkpoints until the end; yields the figures of each step."""
    config, progress, last_save = training.config, training.progress, time.monotonic()
    training.method.train()
    while progress.step < steps and not progress.stopped:
        step = progress.step
        micro = prefetch.step(step, is_last=step + 1 == steps)
        figures = training.one_step(micro, config.optim.lr * lr_factor(config.optim, step, steps))
        progress.step += 1
        if progress.step % config.validate_every == 0 or progress.step == steps:
            if validate is not None:
                figures["validation"] = training.validated(validate)
            if look is not None:
                training.shown(look)
            training.method.train()
        yield figures
        if config.checkpoint_steps:
            due = progress.step % config.checkpoint_steps == 0
        else:
            due = processes.any_true(time.monotonic() - last_save >= config.checkpoint_seconds, training.engine.device)
        if due and progress.step < steps:
            training.save()
            last_save = time.monotonic()
