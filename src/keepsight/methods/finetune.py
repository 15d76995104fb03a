"""Fine-tuning with labels alone: all weights that the readout reaches (`full`), or LoRA; the head starts from the probe."""

from __future__ import annotations

from typing import Literal

from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from keepsight.adapters.freeze import freeze_all, train_reached
from keepsight.adapters.lora import LoraConfig, add_lora, check_lora_gradients, merge_lora
from keepsight.core import Backbone, Batch, Config, Method, Readout
from keepsight.heads.linear import LinearHead
from keepsight.objectives.classification import cross_entropy

Adapter = Literal["full", "lora"]


class FinetuneConfig(Config):
    """What fine-tuning minimises.

    Attributes:
        label_smoothing: Share of the uniform distribution in the target.
        lora: Rank, alpha and targets of LoRA.
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    lora: LoraConfig = LoraConfig()


class Finetune(Method):
    """Cross-entropy through backbone and linear head.

    Args:
        backbone: Changed in place.
        readout: What the head sees (blocks already resolved).
        head: Starts where the probe ended; trained too.
        adapter: "full" or "lora".
        config: See `FinetuneConfig`.
    """

    def __init__(
        self, backbone: Backbone, readout: Readout, head: LinearHead, adapter: Adapter, config: FinetuneConfig
    ) -> None:
        super().__init__()
        freeze_all(backbone)
        self._peft: list[PeftModel] = []  # a list hides it from nn.Module: its weights are the backbone's own
        if adapter == "lora":
            self._peft.append(add_lora(backbone, readout, config.lora))
        else:
            train_reached(backbone, readout)
        self.backbone, self.head = backbone, head
        self.head.requires_grad_(True)
        self._readout, self._config = readout, config

    def logits(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        logits: Tensor = self.head(self._readout.read(self.backbone(inputs, self._readout.blocks)))
        return logits

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """{"cross_entropy"}: `objectives.classification.cross_entropy` on the labelled images."""
        del phase, step
        return {"cross_entropy": cross_entropy(self.logits(batch.inputs), batch.labels, self._config.label_smoothing)}

    def after_first_step(self) -> None:
        """Every adapter must have a gradient, and the head too."""
        for peft_model in self._peft:
            check_lora_gradients(peft_model)

    def train(self, mode: bool = True) -> Finetune:
        """Batch-norm statistics of the backbone stay as pretrained: few labels would ruin them."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def merge(self) -> None:
        """Add LoRA into the weights, so that the backbone is an ordinary one again; nothing to do for full."""
        for peft_model in self._peft:
            merge_lora(self.backbone, peft_model)
        self._peft.clear()
