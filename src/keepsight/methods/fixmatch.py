"""FixMatch: the confident prediction for an image as it is becomes the target for an augmented version of it.

Knows batches only: on cached tokens the augmented version is a cached view (or noise, where there is none), with images it is one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from keepsight.core import Batch, Config, Method, processes
from keepsight.heads.mlp import MLPHead
from keepsight.heads.reduction import Reduction
from keepsight.methods.encoder import CachedFeatures, Encoder
from keepsight.objectives.classification import cross_entropy


class FixMatchConfig(Config):
    """Settings of `FixMatch`.

    Attributes:
        hidden: Width of the head.
        dropout: Share of the hidden layer that is left out at random, except where pseudo-labels are made.
        noise: Standard deviation of what is added to the tokens there, in units of a token's root mean square entry.
        blank: Share of a token's entries that is left out of it where no augmented views are.
        weight: Of the pseudo-labels' cross-entropy.
        temperature: Pseudo-labels are p^(1/temperature), normalised.
        threshold: Smallest probability, after sharpening, of a pseudo-label that is used.
        warmup: Steps over which `weight` rises from zero.
        momentum: Of the running mean of predictions; their share of each class is brought to that of the labels (distribution
            alignment, ReMixMatch). None leaves it out.
    """

    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    noise: float = Field(default=0.3, ge=0)
    blank: float = Field(default=0.3, ge=0, lt=1)
    weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.3, gt=0)
    threshold: float = Field(default=0.8, ge=0, le=1)
    warmup: int = Field(default=50, ge=0)
    momentum: float | None = Field(default=0.95, ge=0, lt=1)


class FixMatch(Method):
    """Cross-entropy on labelled images, and on unlabelled ones whose plain version is predicted with confidence.

    Sohn et al. 2020 (arXiv 2001.07685), with soft pseudo-labels of a temperature and with distribution alignment.

    Args:
        encoder: From inputs to features; `CachedFeatures` says that the inputs are tokens already.
        reduction: From features to tokens.
        labels_L: Class indices of all labelled images; their counts plus one are the prior.
        num_classes: K.
        config: See `FixMatchConfig`.
        seed: Of the weights at the start, and of what is drawn.
    """

    uses_unlabelled = True
    average_K: Tensor
    prior_K: Tensor

    def __init__(
        self,
        encoder: Encoder,
        reduction: Reduction,
        labels_L: Tensor,
        num_classes: int,
        config: FixMatchConfig,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            features, reduced = reduction.axes_FD.shape
            self.head = MLPHead(features, reduced, num_classes, config.hidden)
        self.head.reduction.load_state_dict(reduction.state_dict())
        counts_K = torch.bincount(labels_L.cpu(), minlength=num_classes).float() + 1
        self.register_buffer("prior_K", counts_K / counts_K.sum())
        self.register_buffer("average_K", counts_K / counts_K.sum())
        self._config, self._seed = config, seed

    def logits(self, inputs: Tensor) -> Tensor:
        """Class logits [B, K] of tokens [B, D], or of images [B, 3, H, W]."""
        return self.head.of_token(self._token(inputs))

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """The encoder's."""
        return self.encoder.lr_scales()

    def after_first_step(self) -> None:
        """Every adapter must have a gradient."""
        self.encoder.after_first_step()

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """{"cross_entropy", "pseudo_labels"}, the second one weighted."""
        del phase
        config, views = self._config, len(batch.strong) > 0
        strong = batch.strong if views else batch.unlabelled
        # One pass through the encoder: distributed wrappers want one.
        z_BD = self._token(torch.cat([batch.inputs, strong]))
        labelled_BD, strong_UD = z_BD[: len(batch.inputs)], z_BD[len(batch.inputs) :]
        if not views:
            strong_UD = strong_UD * self._kept(strong_UD, strong_UD.shape[1], config.blank, (step, 2))
        loss = cross_entropy(self._noisy_logits(labelled_BD, step, 0), batch.labels)
        target_UK, used_U = self._pseudo_labels(batch.unlabelled)
        logits_UK = self._noisy_logits(strong_UD, step, 1)
        pseudo_U = -(target_UK * F.log_softmax(logits_UK, dim=1)).sum(dim=1)
        weight = config.weight * min(1.0, (step + 1) / (config.warmup + 1))
        # With an empty stream the sum is zero, and still part of the graph.
        pseudo = (pseudo_U * used_U).sum() / max(len(used_U), 1)
        return {"cross_entropy": loss, "pseudo_labels": weight * pseudo}

    @torch.no_grad()
    def _pseudo_labels(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Sharpened, aligned predictions [U, K] for the plain images, and which are used [U], 0 or 1."""
        config = self._config
        p_UK = torch.softmax(self.head.of_token(self._token(inputs)).float(), dim=1)
        if config.momentum is not None and len(p_UK):
            mean_K = p_UK.mean(dim=0)
            if distributed.is_initialized():
                distributed.all_reduce(mean_K)
                mean_K /= processes.count()
            if self.training:
                self.average_K.lerp_(mean_K.to(self.average_K), 1 - config.momentum)
            p_UK = p_UK * (self.prior_K / self.average_K.clamp(min=1e-6))
            p_UK = p_UK / p_UK.sum(dim=1, keepdim=True)
        sharp_UK = torch.softmax(p_UK.clamp(min=1e-12).log() / config.temperature, dim=1)
        return sharp_UK, (sharp_UK.amax(dim=1) >= config.threshold).float()

    def _token(self, inputs: Tensor) -> Tensor:
        z = self.encoder(inputs)
        return z if isinstance(self.encoder, CachedFeatures) else self.head.token(z)

    def _noisy_logits(self, z_BD: Tensor, step: int, stream: int) -> Tensor:
        """Logits [B, K] with noise on the token and dropout in the hidden layer."""
        generator = self._generator(step, stream, 0)
        noise_BD = torch.randn(len(z_BD) * processes.count(), z_BD.shape[1], generator=generator)
        z_BD = z_BD + self._config.noise * self._own(noise_BD, z_BD)
        return self.head.of_token(z_BD, self._kept(z_BD, self._config.hidden, self._config.dropout, (step, stream)))

    def _kept(self, like_BD: Tensor, width: int, share: float, key: tuple[int, int]) -> Tensor:
        """[B, width]: zero with probability `share`, else 1 / (1 - share)."""
        uniform = torch.rand(len(like_BD) * processes.count(), width, generator=self._generator(*key, 1))
        return (self._own(uniform, like_BD) >= share).to(like_BD) / (1 - share)

    def _generator(self, *key: int) -> torch.Generator:
        """What is drawn is a function of (seed, step, what for): a resumed run repeats it."""
        state = np.random.SeedSequence((self._seed, *key)).generate_state(1)
        return torch.Generator().manual_seed(int(state[0]))

    @staticmethod
    def _own(whole: Tensor, like: Tensor) -> Tensor:
        """This process's rows of what was drawn for the whole batch: the number of processes changes nothing.

        Micro-batches of one step share a draw.
        """
        return whole[processes.index() :: processes.count()].to(like)
