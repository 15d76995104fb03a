"""Fine-tuning with labels alone: all weights that the readout reaches (`full`), one of the adapters, or biases (BitFit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from keepsight.core import Backbone, Batch, Method, Readout
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter, AdapterConfig, TunedBackbone
from keepsight.objectives.classification import binary_cross_entropy, cross_entropy


class FinetuneConfig(AdapterConfig):
    """What fine-tuning minimises, and which weights it trains.

    Attributes:
        label_smoothing: Share of the uniform distribution (of one half, in multi-label data) in the target.
        head_start: "probe" starts the head from the logistic probe on the frozen features. With `full` this is LP-FT (Kumar et al.
            2022, arXiv 2202.10054): a head that fits already does not distort the features in the first steps. "random"
            starts it from normal weights of standard deviation 0.01, which is plain fine-tuning.
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    head_start: Literal["probe", "random"] = "probe"


class Finetune(Method):
    """Cross-entropy through backbone and linear head; in multi-label data the binary cross-entropy of every class.

    Args:
        backbone: Changed in place.
        readout: What the head sees (blocks already resolved).
        head: Where the probe ended; trained too.
        adapter: See `TunedBackbone`.
        config: See `FinetuneConfig`.
        from_states: `losses` gets states after block `config.first_block` - 1 (`backbones.cut.prefix`) in place of images.
    """

    def __init__(
        self,
        backbone: Backbone,
        readout: Readout,
        head: LinearHead,
        adapter: Adapter,
        config: FinetuneConfig,
        from_states: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = TunedBackbone(backbone, readout, adapter, config, from_states)
        self.head = head
        self.head.requires_grad_(True)
        if config.head_start == "random":
            nn.init.normal_(self.head.weight_KF, std=0.01)
            nn.init.zeros_(self.head.bias_K)
        self._config = config

    def logits(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        logits: Tensor = self.head(self.encoder.read(inputs))
        return logits

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Layer-wise decay of the backbone's trained weights."""
        return self.encoder.lr_scales()

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """{"cross_entropy"}: `objectives.classification.cross_entropy` (or `binary_cross_entropy`) on the labelled images."""
        del phase, step
        logits_BK = self.head(self.encoder(batch.inputs))
        of = cross_entropy if batch.labels.ndim == 1 else binary_cross_entropy
        return {"cross_entropy": of(logits_BK, batch.labels, self._config.label_smoothing)}

    def after_first_step(self) -> None:
        """Every adapter must have a gradient."""
        self.encoder.after_first_step()
