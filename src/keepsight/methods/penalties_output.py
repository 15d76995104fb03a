"""Penalties on what the network answers: recorded predictions, predictions under noise, and features of masked images."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Penalty, Seen, UserError, processes
from keepsight.methods.draws import Draws
from keepsight.methods.penalty_parts import About, RetentionConfig, enough, precise
from keepsight.objectives import smoothness
from keepsight.objectives.distillation import prediction_distance
from keepsight.objectives.invariance import feature_distance
from keepsight.objectives.pairs import centred

R3F_STREAM, PDR_STREAM, MASK_STREAM = 4, 5, 6
"""Streams of `Draws`, apart from those of the methods' phases."""


class LwfConfig(RetentionConfig):
    """Settings of `Lwf`.

    Attributes:
        temperature: Of both predictions.
    """

    name: Literal["lwf"] = "lwf"
    temperature: float = Field(default=2.0, gt=0)


class Lwf(Penalty):
    """The predictions of the head that the training started from stay what they were, through a frozen copy of it (LwF).

    A pretrained backbone has no head of its own. The one at the start is the probe's unless the method starts at random: then its
    predictions say nothing, and neither does this.

    Args:
        config: See `LwfConfig`.
        about: The head.
    """

    def __init__(self, config: LwfConfig, about: About) -> None:
        super().__init__()
        if about.head is None:
            raise UserError("The penalty lwf holds a head's predictions, but this method has no head to start from.")
        self.config = config
        self.head0 = copy.deepcopy(about.head).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lwf:
        """The copy of the head never trains."""
        super().train(mode)
        self.head0.eval()
        return self

    def forward(self, seen: Seen) -> Tensor:
        """T^2 KL, for any number of images."""
        logits_BK, logits0_BK = self.head0(seen.x_BF), self.head0(seen.x0_BF)
        return processes.averaged(prediction_distance(precise(logits_BK), precise(logits0_BK), self.config.temperature))


class R3fConfig(RetentionConfig):
    """Settings of `R3f`.

    Attributes:
        noise: Standard deviation of what is added to the input, in units of the input's root mean square. The paper's 1e-5 (on word
            embeddings) moves predictions by less than float32 rounds.
        distribution: Of the noise; "uniform" has the same standard deviation.
    """

    name: Literal["r3f"] = "r3f"
    noise: float = Field(default=0.1, gt=0)
    distribution: Literal["normal", "uniform"] = "normal"


class R3f(Penalty):
    """Predictions do not jump under noise on the input: symmetric KL(p(e + z), p(e)) (R3F). It looks at no reference.

    Positive where nothing changed too.

    Args:
        config: See `R3fConfig`.
        about: The seed.
    """

    uses_reference = False

    def __init__(self, config: R3fConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self._seed = about.seed

    def forward(self, seen: Seen) -> Tensor:
        """The divergence, for any number of images; one more forward pass."""
        draws = Draws(self._seed, seen.step, R3F_STREAM)
        noisy = _noisy(seen.inputs, self.config.noise, draws, self.config.distribution)
        logits_BK, noisy_BK = seen.logits(seen.x_BF), seen.logits(seen.now(noisy))
        return processes.averaged(smoothness.symmetric_kl(precise(noisy_BK), precise(logits_BK)))


class R4fConfig(RetentionConfig):
    """Settings of `R4f`.

    Attributes:
        noise: As for r3f.
        distribution: As for r3f.
        bound: How steep the head may be: logits a standard deviation of the features (root mean square over them), for free.
        steepness: Weight of relu(spectral norm - bound)^2.
        power_steps: Of power iteration; 0 takes an SVD.
    """

    name: Literal["r4f"] = "r4f"
    noise: float = Field(default=0.1, gt=0)
    distribution: Literal["normal", "uniform"] = "normal"
    bound: float = Field(default=1.0, ge=0)
    steepness: float = Field(default=0.01, ge=0)
    power_steps: int = Field(default=0, ge=0)


class R4f(Penalty):
    """R3F, and a head of bounded spectral norm.

    The paper bounds it by spectral normalisation, which would change the head; here what is above the bound costs its square (a
    reconstruction). The head is taken as linear: its matrix is what it makes of unit vectors less what it makes of zero.

    Args:
        config: See `R4fConfig`.
        about: The seed.
    """

    uses_reference = False

    def __init__(self, config: R4fConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self.r3f = R3f(R3fConfig(noise=config.noise, distribution=config.distribution), about)

    def forward(self, seen: Seen) -> Tensor:
        """The sum, for any number of images; one more forward pass."""
        x_BF = processes.gathered(precise(seen.x_BF.detach()))
        eye_FF = torch.eye(x_BF.shape[1], dtype=seen.x_BF.dtype, device=x_BF.device)
        w_FK = precise(seen.logits(eye_FF) - seen.logits(torch.zeros_like(eye_FF[:1])))
        unit = centred(x_BF).square().mean().sqrt()
        norm = smoothness.largest_singular_value(w_FK.T * unit, self.config.power_steps or None)
        steep = F.relu(norm - self.config.bound).square()
        total: Tensor = self.r3f(seen) + self.config.steepness * steep
        return total


class PdrConfig(RetentionConfig):
    """Settings of `Pdr`.

    Attributes:
        divergence: Jensen-Shannon, squared Hellinger, or KL (clean || noisy).
        noise: As for r3f, normal.
    """

    name: Literal["pdr"] = "pdr"
    divergence: Literal["jensen-shannon", "hellinger", "kl"] = "jensen-shannon"
    noise: float = Field(default=0.1, gt=0)


class Pdr(Penalty):
    """Posterior differential regularisation: an f-divergence of posteriors of clean and noisy input, random noise.

    It looks at no reference; positive where nothing changed too.

    Args:
        config: See `PdrConfig`.
        about: The seed.
    """

    uses_reference = False

    def __init__(self, config: PdrConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self._seed = about.seed

    def forward(self, seen: Seen) -> Tensor:
        """The divergence, for any number of images; one more forward pass."""
        divergence = {
            "jensen-shannon": smoothness.jensen_shannon,
            "hellinger": smoothness.squared_hellinger,
            "kl": smoothness.kl_divergence,
        }[self.config.divergence]
        noisy = _noisy(seen.inputs, self.config.noise, Draws(self._seed, seen.step, PDR_STREAM), "normal")
        logits_BK, noisy_BK = seen.logits(seen.x_BF), seen.logits(seen.now(noisy))
        return processes.averaged(divergence(precise(logits_BK), precise(noisy_BK)))


def _noisy(inputs: Tensor, noise: float, draws: Draws, distribution: Literal["normal", "uniform"]) -> Tensor:
    """inputs + z, z of this standard deviation in units of the inputs' root mean square over all processes' images."""
    if distribution == "normal":
        z = draws.normal(*inputs.shape)
    else:
        z = (2 * draws.uniform(*inputs.shape) - 1) * 3**0.5
    rms = processes.averaged(precise(inputs.detach()).square().mean()).sqrt()
    return inputs + (noise * rms * z.to(rms)).to(inputs)


class MaskedCounterfactualConfig(RetentionConfig):
    """Settings of `MaskedCounterfactual`.

    Attributes:
        share: Of the cells that are masked.
        cells: The image is cut into cells x cells of them.
    """

    name: Literal["masked-counterfactual"] = "masked-counterfactual"
    weight: float = Field(default=32.0, ge=0)
    share: float = Field(default=0.5, gt=0, lt=1)
    cells: int = Field(default=7, ge=2)


class MaskedCounterfactual(Penalty):
    """Feature distillation on images of which cells are masked out: the untouched network's features of the same masked images.

    After Xiao et al. 2023 (arXiv 2303.03052), with random cells set to zero (the mean pixel). The paper also chooses cells by
    class activation and fills them from other images.

    Args:
        config: See `MaskedCounterfactualConfig`.
        about: The seed.
    """

    def __init__(self, config: MaskedCounterfactualConfig, about: About) -> None:
        super().__init__()
        self.config = config
        self._seed = about.seed

    def masked(self, images_BCHW: Tensor, step: int) -> Tensor:
        """The images with this step's cells at zero."""
        cells = self.config.cells
        places_BM = Draws(self._seed, step, MASK_STREAM).uniform(len(images_BCHW), cells * cells)
        hidden = min(max(round(self.config.share * cells * cells), 1), cells * cells - 1)
        kept_BM = places_BM.argsort(dim=1).argsort(dim=1) >= hidden
        kept = F.interpolate(kept_BM.float().reshape(-1, 1, cells, cells), size=images_BCHW.shape[2:], mode="nearest")
        return images_BCHW * kept.to(images_BCHW)

    def forward(self, seen: Seen) -> Tensor:
        """`invariance.feature_distance` on the masked images; UserError with fewer than two; a forward pass of both networks."""
        if seen.inputs.ndim != 4 or seen.inputs.shape[1] != 3:
            raise UserError(
                "The penalty masked-counterfactual masks images, but this training starts from states behind frozen blocks: "
                "choose first_block=1."
            )
        images = self.masked(seen.inputs, seen.step)
        x_BF = processes.gathered(precise(seen.now(images)))
        x0_BF = processes.gathered(precise(seen.before(images).detach()))
        enough(len(x_BF), self.config.name, 2)
        return feature_distance(x_BF, x0_BF)
