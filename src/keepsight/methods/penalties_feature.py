"""Penalties on read-out features: of a batch as a whole (covariance, CKA, Procrustes, BSS), and image by image (distillation).

They know no backbone and no method: a step's features come in `Seen`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from keepsight.core import Penalty, Seen, UserError, processes
from keepsight.core.progress import log
from keepsight.methods.penalty_parts import About, RetentionConfig, enough, global_batch, precise
from keepsight.objectives import invariance
from keepsight.objectives.pairs import full_precision


class RiftCovConfig(RetentionConfig):
    """Settings of `RiftCov`.

    Attributes:
        q: The rotation that is allowed: none ("identity": nothing may turn, as a text tower or a frozen head needs), any ("free":
            only the spectrum is held), or one that is learned with the network ("learned").
        source: Of the pretrained covariance: the same images ("batch"), a running mean over steps of both covariances ("running"),
            or the pool's, once ("cached"). Small batches bias the comparison with "cached": it warns.
        momentum: Of the running mean.
        rotation_speed: A learned rotation moves so many times faster than the optimizer's learning rate says: rates for weights
            turn it too slowly.
    """

    name: Literal["rift-cov"] = "rift-cov"
    weight: float = Field(default=8.0, ge=0)
    q: Literal["identity", "free", "learned"] = "identity"
    source: Literal["batch", "running", "cached"] = "batch"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    rotation_speed: float = Field(default=10.0, gt=0)


class RiftCov(Penalty):
    """Covariances may rotate, and stay otherwise: ||C - Q^T C0 Q||_F^2 / ||C0||_F^2 (RIFT, reconstructed).

    Zero where nothing changed for the sources "batch" and "running"; for "cached", what the batch's sampling adds is left. It does
    not tell images apart: features of another meaning but the same covariance cost nothing.

    Args:
        config: See `RiftCovConfig`.
        about: F and, for "cached", the pool's features.
    """

    c0_FF: Tensor
    running_FF: Tensor
    running0_FF: Tensor
    updates: Tensor

    def __init__(self, config: RiftCovConfig, about: About) -> None:
        super().__init__()
        self.config = config
        size = about.features if config.source == "running" else 0
        self.register_buffer("running_FF", torch.zeros(size, size))
        self.register_buffer("running0_FF", torch.zeros(size, size))
        self.register_buffer("updates", torch.zeros(()))
        # Made again from the pool at every start, so it is not saved.
        self.register_buffer("c0_FF", self._of_pool(about) if config.source == "cached" else torch.empty(0), False)
        learned = config.q == "learned"
        self.skew_FF = nn.Parameter(torch.zeros(about.features, about.features)) if learned else None
        self._checked_batch = config.source != "cached"
        self.uses_reference = config.source != "cached"

    @staticmethod
    def _of_pool(about: About) -> Tensor:
        if about.pool_NF is None or len(about.pool_NF) < 2:
            raise UserError(
                "The penalty rift-cov with source=cached takes the covariance of the pool's features, but there are none: "
                "use source=batch or source=running."
            )
        c0_FF = invariance.covariance(precise(about.pool_NF.detach()))
        share = _sampling_share(c0_FF, len(about.pool_NF))
        if share > 0.1 and processes.is_main():
            log.warning(
                "rift-cov: the covariance of %d features is estimated from %d images of the pool, and its squared error is about "
                "%.2g of its squared norm; source=batch compares the same images and has no such error",
                about.features,
                len(about.pool_NF),
                share,
            )
        return c0_FF

    def _check_batch(self, images: int) -> None:
        """Say once that a batch's own sampling error will outweigh what is to be seen."""
        share = _sampling_share(self.c0_FF, images)
        self._checked_batch = True
        if share > 0.1 and processes.is_main():
            log.warning(
                "rift-cov: a covariance of %d features from a step's %d images misses even an unchanged one by about %.2g (in the "
                "penalty's own unit), which rewards shrinking features; use source=batch or source=running, or larger batches",
                len(self.c0_FF),
                images,
                share,
            )

    def _q(self) -> Tensor | None:
        return None if self.skew_FF is None else invariance.rotation(self.config.rotation_speed * self.skew_FF)

    def _covariances(self, x_BF: Tensor, x0_BF: Tensor) -> tuple[Tensor, Tensor]:
        """C with the gradient of this batch, and C0."""
        c_FF = invariance.covariance(x_BF)
        if self.config.source == "cached":
            return c_FF, self.c0_FF.to(c_FF)
        c0_FF = invariance.covariance(x0_BF)
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.running_FF.lerp_(c_FF.to(self.running_FF), 1 - self.config.momentum)
                self.running0_FF.lerp_(c0_FF.to(self.running_FF), 1 - self.config.momentum)
                self.updates += 1
        if self.updates == 0:
            return c_FF, c0_FF
        known = 1 - self.config.momentum**self.updates
        # The running mean says how far the covariance is off, and this batch which way it moves: the gradient of the squared gap.
        c_FF = (self.running_FF / known).to(c_FF) + (c_FF - c_FF.detach())
        return c_FF, (self.running0_FF / known).to(c_FF)

    def forward(self, seen: Seen) -> Tensor:
        """The gap; UserError with fewer than two images."""
        if self.config.source == "cached":
            x_BF = x0_BF = processes.gathered(precise(seen.x_BF))
            enough(len(x_BF), self.config.name, 2)
        else:
            x_BF, x0_BF = global_batch(seen, self.config.name, 2)
        if not self._checked_batch:
            self._check_batch(len(x_BF))
        q_FF = self._q()
        if self.config.source == "batch":
            if self.config.q == "free":
                return invariance.feature_spectrum_gap(x_BF, x0_BF)
            if q_FF is not None:
                with full_precision(x0_BF):
                    x0_BF = x0_BF @ q_FF.to(x0_BF)
            return invariance.feature_covariance_gap(x_BF, x0_BF)
        c_FF, c0_FF = self._covariances(x_BF, x0_BF)
        if self.config.q == "free":
            return invariance.spectrum_gap(c_FF, c0_FF)
        return invariance.covariance_gap(c_FF, c0_FF, None if q_FF is None else q_FF.to(c_FF))


def _sampling_share(c_FF: Tensor, images: int) -> float:
    """E||C_n - C||^2 / ||C||^2 for n normal rows of this covariance."""
    return (invariance.effective_rank(c_FF).item() + 1) / max(images - 1, 1)


class CkaConfig(RetentionConfig):
    """Settings of `Cka`.

    Attributes:
        debiased: The estimate whose expectation is zero for independent features; needs four images a step.
    """

    name: Literal["cka"] = "cka"
    weight: float = Field(default=2.0, ge=0)
    debiased: bool = True


class Cka(Penalty):
    """1 - linear CKA of the batch: which images are alike may not change; rotation and scale may. About 1 where all is lost.

    Args:
        config: See `CkaConfig`.
        about: Nothing of it.
    """

    def __init__(self, config: CkaConfig, about: About) -> None:
        super().__init__()
        del about
        self.config = config

    def forward(self, seen: Seen) -> Tensor:
        """The gap; UserError with fewer than four images (three for the biased estimate: two always agree)."""
        x_BF, x0_BF = global_batch(seen, self.config.name, 4 if self.config.debiased else 3)
        return invariance.cka_gap(x_BF, x0_BF, self.config.debiased)


class ProcrustesConfig(RetentionConfig):
    """Settings of `Procrustes`."""

    name: Literal["procrustes"] = "procrustes"
    weight: float = Field(default=8.0, ge=0)


class Procrustes(Penalty):
    """What no rotation of the batch's features explains, in units of their variance.

    Args:
        config: See `ProcrustesConfig`.
        about: Nothing of it.
    """

    def __init__(self, config: ProcrustesConfig, about: About) -> None:
        super().__init__()
        del about
        self.config = config

    def forward(self, seen: Seen) -> Tensor:
        """The gap; UserError with fewer than two images."""
        return invariance.procrustes_gap(*global_batch(seen, self.config.name, 2))


class DistillConfig(RetentionConfig):
    """Settings of `Distill`."""

    name: Literal["distill"] = "distill"
    weight: float = Field(default=2.0, ge=0)


class Distill(Penalty):
    """Every image's feature stays where it was: mean ||x - x0||^2 over the batch's variance of x0.

    Args:
        config: See `DistillConfig`.
        about: Nothing of it.
    """

    def __init__(self, config: DistillConfig, about: About) -> None:
        super().__init__()
        del about
        self.config = config

    def forward(self, seen: Seen) -> Tensor:
        """The distance; UserError with fewer than two images, of which there is no variance."""
        return invariance.feature_distance(*global_batch(seen, self.config.name, 2))


class BssConfig(RetentionConfig):
    """Settings of `Bss`.

    Attributes:
        k: How many of the smallest singular values are suppressed.
    """

    name: Literal["bss"] = "bss"
    weight: float = Field(default=0.1, ge=0)
    k: int = Field(default=1, ge=1)


class Bss(Penalty):
    """The weakest directions of the batch's features are suppressed: against negative transfer, not against change.

    It looks at no reference, and is positive where nothing changed too.

    Args:
        config: See `BssConfig`.
        about: Nothing of it.
    """

    uses_reference = False

    def __init__(self, config: BssConfig, about: About) -> None:
        super().__init__()
        del about
        self.config = config

    def forward(self, seen: Seen) -> Tensor:
        """`invariance.batch_spectral_shrinkage`; UserError with fewer than two images."""
        x_BF = processes.gathered(precise(seen.x_BF))
        enough(len(x_BF), self.config.name, 2)
        return invariance.batch_spectral_shrinkage(x_BF, self.config.k)
