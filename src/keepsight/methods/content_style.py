"""Content-style semi-supervised fine-tuning: the token is split into content (the label) and style, so that unlabelled images help.

After Drozdova et al., "Semi-Supervised Fine-Tuning of Vision Foundation Models with Content-Style Decomposition" (2024). The
paper's
equations, weights and tables are not public to us: network sizes and weights here are a reconstruction. Propagated targets,
agreement of neighbours and of views are not of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Batch, Config, Method, processes
from keepsight.heads.content_style import ContentStyleHead, Perceptron
from keepsight.methods.draws import Draws
from keepsight.methods.encoder import CachedFeatures, Encoder
from keepsight.methods.guide import Guide
from keepsight.objectives.adversarial import critic_loss, fooling_loss, gradient_penalty
from keepsight.objectives.agreement import (
    divergence_from_prior,
    neighbour_agreement,
    reconstruction,
    sharpened,
    soft_cross_entropy,
)
from keepsight.objectives.classification import cross_entropy


class ContentStyleConfig(Config):
    """Networks, and the weight of every loss; a weight of zero leaves the loss (and its network) out.

    Attributes:
        hidden, style, style_hidden, decoder_hidden, linear: See `ContentStyleHead`.
        critic_hidden: Width of the critics' two layers.
        dropout: In the content network.
        noise: Standard deviation of normal noise on the token before the content network (its entries have a mean square of one).
        plain: Share of the unlabelled images that are seen plain and not in an augmented view.
        supervised: Cross-entropy on the labelled images.
        label_smoothing: Of that cross-entropy.
        content_prior: The content fools a critic whose real samples are one-hot classes drawn from the prior.
        style_prior: The style fools a critic whose real samples are N(0, I).
        token_prior: The decoded token fools a critic whose real samples are tokens.
        reconstruction: The token from content and style, on all images; its target is detached.
        reconstruction_kind: "mse" or "cosine".
        content: What the decoder sees of the content: the probabilities ("soft"), a Gumbel-softmax sample of them ("gumbel"),
            or that sample made one-hot with straight-through gradients ("hard").
        temperature: Of the Gumbel-softmax.
        real_smoothing: Share of the uniform distribution in the one-hot real samples.
        critic_noise: Standard deviation of normal noise on what the critics see, real and fake.
        critic_penalty: Weight of `gradient_penalty`.
        propagated: Cross-entropy to the guide's posteriors (label propagation), on all images.
        power: The posteriors are sharpened to this power.
        neighbours: `neighbour_agreement` with one random neighbour of the guide's graph.
        marginal: `divergence_from_prior` of the batch's mean content.
        consistency: FixMatch: cross-entropy of the augmented view to the plain image's class, where that is sure enough.
        threshold: How sure.
        consistency_start: Share of the steps before `consistency` begins.
    """

    hidden: int = Field(default=256, ge=2)
    style: int = Field(default=16, ge=0)
    style_hidden: int = Field(default=128, ge=1)
    decoder_hidden: int = Field(default=256, ge=2)
    linear: bool = True
    critic_hidden: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)
    noise: float = Field(default=0.3, ge=0)
    plain: float = Field(default=0.5, ge=0, le=1)
    supervised: float = Field(default=1.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    content_prior: float = Field(default=0.0, ge=0)
    style_prior: float = Field(default=0.1, ge=0)
    token_prior: float = Field(default=0.0, ge=0)
    reconstruction: float = Field(default=0.3, ge=0)
    reconstruction_kind: Literal["mse", "cosine"] = "mse"
    content: Literal["soft", "gumbel", "hard"] = "soft"
    temperature: float = Field(default=1.0, gt=0)
    real_smoothing: float = Field(default=0.05, ge=0, lt=1)
    critic_noise: float = Field(default=0.1, ge=0)
    critic_penalty: float = Field(default=0.0, ge=0)
    propagated: float = Field(default=1.0, ge=0)
    power: float = Field(default=2.0, gt=0)
    neighbours: float = Field(default=0.0, ge=0)
    marginal: float = Field(default=0.0, ge=0)
    consistency: float = Field(default=0.0, ge=0)
    threshold: float = Field(default=0.9, ge=0, le=1)
    consistency_start: float = Field(default=0.2, ge=0, le=1)

    @property
    def decomposes(self) -> bool:
        """Whether there is a style."""
        return self.style > 0 and (self.style_prior > 0 or self.reconstruction > 0 or self.token_prior > 0)


class ContentStyle(Method):
    """Content head, style encoder, decoder and critics on one token an image.

    Args:
        encoder: From inputs to tokens (cached ones), or to raw features of a backbone that is tuned.
        head: Its reduction is fitted already; trained otherwise.
        guide: Prior, targets and neighbours.
        config: See `ContentStyleConfig`.
        steps: Of the whole training.
        seed: Of noise, dropout and real samples.
    """

    uses_unlabelled = True
    guide: Guide
    bank_NK: Tensor
    prior_K: Tensor
    running_K: Tensor

    def __init__(
        self, encoder: Encoder, head: ContentStyleHead, guide: Guide, config: ContentStyleConfig, steps: int, seed: int
    ) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self._config, self._steps, self._seed = config, steps, seed
        self._classes = classes = len(guide.prior_K)
        self.guide = guide
        width, token = config.critic_hidden, head.reduction.axes_FD.shape[1]
        inputs = {
            "content": classes if config.content_prior else 0,
            "style": config.style if config.decomposes and config.style_prior else 0,
            "token": token if config.decomposes and config.token_prior else 0,
        }
        self.critics = nn.ModuleDict({name: Perceptron(size, width, width, 1) for name, size in inputs.items() if size})
        self.phases = ("critic", "model") if self.critics else ("model",)
        # The last prediction for every image, as its neighbours see it.
        self.register_buffer("bank_NK", guide.posteriors_NK.clone() if config.neighbours else torch.empty(0, classes))
        self.register_buffer("prior_K", guide.prior_K.clone())
        self.register_buffer("running_K", guide.prior_K.clone())

    def tokens(self, inputs: Tensor) -> Tensor:
        """Tokens [B, D] of inputs [B, ...]."""
        found: Tensor = self.encoder(inputs)
        return found if isinstance(self.encoder, CachedFeatures) else self.head.token(found)

    def logits(self, inputs: Tensor) -> Tensor:
        """Class logits [B, K]."""
        return self.head.content_logits(self.tokens(inputs))

    def parameters_of(self, phase: str) -> list[nn.Parameter]:
        """The critics' in their phase; everything else that is trained in the other."""
        if phase == "critic":
            return list(self.critics.parameters())
        mine = {id(p) for p in self.critics.parameters()}
        return [p for p in self.parameters() if p.requires_grad and id(p) not in mine]

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Those of the encoder."""
        return self.encoder.lr_scales()

    def after_first_step(self) -> None:
        """Every adapter must have a gradient."""
        self.encoder.after_first_step()

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """The critics' losses, or all the others (see `ContentStyleConfig`)."""
        draws = Draws(self._seed, step, self.phases.index(phase))
        if phase == "critic":
            return self._critic_losses(batch, draws)
        return self._model_losses(batch, step, draws)

    def _content_logits(self, z_BD: Tensor, draws: Draws) -> Tensor:
        """With noise and dropout, as long as the module is in training mode."""
        config = self._config
        if not self.training:
            return self.head.content_logits(z_BD)
        if config.noise:
            z_BD = z_BD + config.noise * draws.normal(*z_BD.shape).to(z_BD)
        return self.head.content_logits(z_BD, lambda x: draws.dropped(x, config.dropout))

    def _shown_content(self, logits_BK: Tensor, draws: Draws) -> Tensor:
        """What the decoder sees of the content."""
        config = self._config
        if config.content == "soft":
            return torch.softmax(logits_BK, dim=1)
        uniform_BK = draws.uniform(*logits_BK.shape).to(logits_BK).clamp(1e-6, 1 - 1e-6)
        gumbel_BK = -torch.log(-torch.log(uniform_BK))
        soft_BK = torch.softmax((logits_BK + gumbel_BK) / config.temperature, dim=1)
        if config.content == "gumbel":
            return soft_BK
        hard_BK = F.one_hot(soft_BK.argmax(dim=1), self._classes).to(soft_BK)
        return hard_BK + soft_BK - soft_BK.detach()

    def _fakes(self, z_BD: Tensor, logits_BK: Tensor, draws: Draws) -> tuple[dict[str, Tensor], Tensor | None]:
        """What each critic judges, and the decoded token."""
        config = self._config
        fakes: dict[str, Tensor] = {}
        if config.content_prior:
            fakes["content"] = torch.softmax(logits_BK, dim=1)
        if not config.decomposes:
            return fakes, None
        style_BS = self.head.style(z_BD)
        if config.style_prior:
            fakes["style"] = style_BS
        if not (config.reconstruction or config.token_prior):
            return fakes, None
        made_BD = self.head.decode(self._shown_content(logits_BK, draws), style_BS)
        if config.token_prior:
            fakes["token"] = made_BD
        return fakes, made_BD

    def _reals(self, z_BD: Tensor, draws: Draws) -> dict[str, Tensor]:
        config, count = self._config, len(z_BD)
        reals: dict[str, Tensor] = {}
        if "content" in self.critics:
            drawn_B = draws.classes(count, self.guide.prior_K)
            one_hot_BK = F.one_hot(drawn_B, self._classes).float()
            smooth = config.real_smoothing
            reals["content"] = ((1 - smooth) * one_hot_BK + smooth / self._classes).to(z_BD)
        if "style" in self.critics:
            reals["style"] = draws.normal(count, config.style).to(z_BD)
        if "token" in self.critics:
            reals["token"] = z_BD.detach()
        return reals

    def _judged(self, name: str, x: Tensor, draws: Draws) -> Tensor:
        """A critic's logits [B]."""
        if self._config.critic_noise:
            x = x + self._config.critic_noise * draws.normal(*x.shape).to(x)
        scores: Tensor = self.critics[name](x)
        return scores[:, 0]

    def _student(self, batch: Batch, draws: Draws) -> Tensor:
        """The unlabelled images as they are learnt from: some plain, the others in an augmented view, where there is one."""
        if not len(batch.strong):
            return batch.unlabelled
        is_plain_U = (draws.uniform(len(batch.strong)) < self._config.plain).to(batch.strong.device)
        return torch.where(is_plain_U.view(-1, *[1] * (batch.strong.ndim - 1)), batch.unlabelled, batch.strong)

    def _critic_losses(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        with torch.no_grad():
            z_UD = self.tokens(self._student(batch, draws))
            fakes, _ = self._fakes(z_UD, self._content_logits(z_UD, draws), draws)
        losses = {}
        for name, real in self._reals(z_UD, draws).items():
            judged = critic_loss(self._judged(name, real, draws), self._judged(name, fakes[name], draws))
            losses[f"{name}_critic"] = judged
            if self._config.critic_penalty:
                penalty = gradient_penalty(self.critics[name], real)
                losses[f"{name}_critic_penalty"] = self._config.critic_penalty * penalty
        return losses

    def _model_losses(self, batch: Batch, step: int, draws: Draws) -> dict[str, Tensor]:
        config, labelled = self._config, len(batch.inputs)
        z_LD = self.tokens(batch.inputs)
        z_UD = self.tokens(self._student(batch, draws))
        z_BD = torch.cat([z_LD, z_UD])
        logits_BK = self._content_logits(z_BD, draws)
        logits_UK = logits_BK[labelled:]
        losses = {}
        if config.supervised:
            supervised = cross_entropy(logits_BK[:labelled], batch.labels, config.label_smoothing)
            losses["supervised"] = config.supervised * supervised
        losses.update(self._guided(logits_UK, batch.rows, draws))
        if config.consistency and len(batch.strong) and step >= config.consistency_start * self._steps:
            losses["consistency"] = config.consistency * self._consistency(batch.unlabelled, logits_UK)
        fakes, made_UD = self._fakes(z_UD, logits_UK, draws)
        weights = {"content": config.content_prior, "style": config.style_prior, "token": config.token_prior}
        for name, fake in fakes.items():
            losses[f"{name}_prior"] = weights[name] * fooling_loss(self._judged(name, fake, draws))
        if made_UD is not None and config.reconstruction:
            losses["reconstruction"] = config.reconstruction * reconstruction(made_UD, z_UD, config.reconstruction_kind)
        return losses

    def _guided(self, logits_UK: Tensor, rows_U: Tensor, draws: Draws) -> dict[str, Tensor]:
        """The losses that look at the guide: propagated targets, neighbours, prior."""
        config, guide, losses = self._config, self.guide, dict[str, Tensor]()
        if config.propagated and len(guide.posteriors_NK):
            target_UK = sharpened(guide.posteriors_NK[rows_U.cpu()].to(logits_UK), config.power)
            losses["propagated"] = config.propagated * soft_cross_entropy(logits_UK, target_UK)
        chance_UK = torch.softmax(logits_UK, dim=1)
        if config.neighbours and guide.neighbours_Nk.numel():
            rows = rows_U.cpu()
            column_U = (draws.uniform(len(rows)) * guide.neighbours_Nk.shape[1]).long()
            neighbour_UK = self.bank_NK[guide.neighbours_Nk[rows, column_U].to(self.bank_NK.device)]
            losses["neighbours"] = config.neighbours * neighbour_agreement(chance_UK, neighbour_UK)
            self._remember(rows, chance_UK.detach())
        if config.marginal:
            mean_K = processes.averaged(chance_UK.mean(dim=0))
            losses["marginal"] = config.marginal * divergence_from_prior(mean_K, self.prior_K)
        return losses

    def _remember(self, rows_U: Tensor, chance_UK: Tensor) -> None:
        """Put the predictions for these images, of all processes, where their neighbours look."""
        gathered = processes.everyone((rows_U, chance_UK.cpu()))
        rows = torch.cat([rows for rows, _ in gathered]).to(self.bank_NK.device)
        chance = torch.cat([chance for _, chance in gathered]).to(self.bank_NK)
        # An image that a batch holds twice (at the end of an epoch) is remembered by its mean, whatever the order.
        seen, place_U, times = torch.unique(rows, return_inverse=True, return_counts=True)
        total = torch.zeros(len(seen), chance.shape[1]).to(chance).index_add_(0, place_U, chance)
        self.bank_NK[seen] = total / times[:, None]

    def _consistency(self, plain: Tensor, logits_UK: Tensor) -> Tensor:
        """FixMatch (Sohn et al. 2020) with distribution alignment (Berthelot et al. 2020) to the estimated prior."""
        with torch.no_grad():
            chance_UK = torch.softmax(self.head.content_logits(self.tokens(plain)), dim=1)
            self.running_K.lerp_(processes.averaged(chance_UK.mean(dim=0)), 0.1)
            aligned_UK = chance_UK * (self.prior_K / self.running_K.clamp(min=1e-6))
            sure_U, class_U = (aligned_UK / aligned_UK.sum(dim=1, keepdim=True)).max(dim=1)
            kept_U = (sure_U >= self._config.threshold).to(logits_UK)
        return (F.cross_entropy(logits_UK, class_U, reduction="none") * kept_U).mean()
