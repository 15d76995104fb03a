"""ViSFT's two stages as what the trainer trains: a task head on a frozen backbone, then LoRA through frozen heads.

Jiang and others, "Supervised Fine-tuning in turn Improves Visual Foundation Models" (2024). Knows no task and no data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from keepsight.core import TASKS, Batch, Task, TaskHead, Trainable, UserError
from keepsight.core.features import feature_map
from keepsight.methods.encoder import TunedBackbone


class HeadAlone(Trainable):
    """Stage 1: one head on maps [B, C, h, w] of a frozen backbone.

    Args:
        head: Trained in place.
    """

    def __init__(self, head: TaskHead) -> None:
        super().__init__()
        self.head = head

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """The head's; `batch.inputs` are maps."""
        del phase, step
        losses: dict[str, Tensor] = self.head(batch.inputs, batch.targets)
        return losses


class JointTuning(Trainable):
    """Stage 2: weights of the backbone trained through heads that stay as they are, one task a step.

    Args:
        encoder: Its readout's blocks, patch by patch, are the map that the heads were trained on.
        heads: By task.
        dropout_in_heads: Frozen heads in training mode, as in the published code; off, since what they drop is noise.
    """

    def __init__(self, encoder: TunedBackbone, heads: Mapping[Task, TaskHead], dropout_in_heads: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({str(task): head for task, head in heads.items()}).requires_grad_(False)
        self._dropout_in_heads = dropout_in_heads
        self._hashes: dict[str, str] = {task: weights_hash(head) for task, head in heads.items()}

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """Those of the batch's task, through the backbone; `batch.inputs` are images."""
        del phase, step
        if batch.task is None:
            raise ValueError("a batch of stage 2 says its task")
        head = self.heads[batch.task]
        assert isinstance(head, TaskHead)
        return {f"{batch.task}_{name}": loss for name, loss in head(self.map(batch.inputs), batch.targets).items()}

    def map(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] -> the map [B, C, h, w] that the heads see."""
        return feature_map(self.encoder.see(images))

    def train(self, mode: bool = True) -> JointTuning:
        """Heads stay in evaluation mode unless their dropout is wanted."""
        super().train(mode)
        self.heads.train(mode and self._dropout_in_heads)
        return self

    def after_first_step(self) -> None:
        """Every adapter must have a gradient, and no head may have one."""
        self.encoder.after_first_step()
        if any(p.grad is not None for p in self.heads.parameters()):
            raise RuntimeError("a frozen task head got a gradient")

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """The encoder's."""
        return self.encoder.lr_scales()

    def check_heads(self) -> dict[str, str]:
        """The hash of each head's weights, which is what it was before the training.

        Raises:
            RuntimeError: It is not.
        """
        for task, head in self.heads.items():
            assert isinstance(head, TaskHead)
            if weights_hash(head) != self._hashes[task]:
                raise RuntimeError(f"the weights of the frozen head for {task} have changed")
        return dict(self._hashes)


def weights_hash(module: nn.Module) -> str:
    """Sha256 (hex) over names, shapes and bytes of all parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_probabilities(probabilities: Mapping[Task, float], tasks: tuple[Task, ...]) -> dict[Task, float]:
    """How often each task is drawn, over the tasks that there are; they sum to 1.

    Raises:
        UserError: One is negative, or none is positive.

    Example:
        >>> check_probabilities({"captioning": 0.4, "segmentation": 0.3, "detection": 0.3}, ("detection", "segmentation"))
        {'detection': 0.5, 'segmentation': 0.5}
    """
    chosen = {task: probabilities.get(task, 0.0) for task in tasks}
    total = sum(chosen.values())
    if min(chosen.values(), default=0) < 0 or not total > 0:
        raise UserError(
            f"The probabilities of the tasks {', '.join(tasks)} must not be negative, and one must be positive."
        )
    return {task: value / total for task, value in chosen.items()}


def task_of_step(probabilities: Mapping[Task, float], seed: int, step: int) -> Task:
    """The task of a step: a function of (seed, step), so that all processes and a resumed run draw the same.

    Example:
        >>> task_of_step({"detection": 1.0}, seed=0, step=3)
        'detection'
    """
    tasks = [task for task in TASKS if task in probabilities]
    u = np.random.default_rng((seed, 17, step)).random()
    bounds = np.cumsum([probabilities[task] for task in tasks])
    return tasks[int(np.searchsorted(bounds / bounds[-1], u, side="right"))]
