"""Fine-tuning with labels alone: all weights that the readout reaches (`full`), LoRA, or biases (BitFit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from keepsight.adapters.freeze import (
    block_of_parameters,
    checkpoint_blocks,
    freeze_all,
    plain_blocks,
    train_biases,
    train_reached,
)
from keepsight.adapters.lora import LoraConfig, add_lora, check_lora_gradients, merge_lora
from keepsight.backbones.cut import resume
from keepsight.core import Backbone, Batch, Config, Method, Readout
from keepsight.heads.linear import LinearHead
from keepsight.objectives.classification import cross_entropy

Adapter = Literal["full", "lora", "bitfit"]


class FinetuneConfig(Config):
    """What fine-tuning minimises.

    Attributes:
        label_smoothing: Share of the uniform distribution in the target.
        lora: Rank, alpha and targets of LoRA.
        head_start: "probe" starts the head from the logistic probe on the frozen features. With `full` this is LP-FT (Kumar et al.
            2022, arXiv 2202.10054): a head that fits already does not distort the features in the first steps. "random"
            starts it from normal weights of standard deviation 0.01, which is plain fine-tuning.
        first_block: Blocks below this one (counted from 1) and the embedding stay frozen.
        layer_decay: Layer-wise learning-rate decay (BEiT, arXiv 2106.08254, appendix): block b of a readout at block B learns with
            lr * layer_decay^(B + 1 - b), what comes before the first block counts as block 0; the head learns with lr.
        checkpoint_blocks: Gradient checkpointing: less memory, about a third more time.
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    lora: LoraConfig = LoraConfig()
    head_start: Literal["probe", "random"] = "probe"
    first_block: int = Field(default=1, ge=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    checkpoint_blocks: bool = False


class Finetune(Method):
    """Cross-entropy through backbone and linear head.

    Args:
        backbone: Changed in place.
        readout: What the head sees (blocks already resolved).
        head: Where the probe ended; trained too.
        adapter: "full", "lora" or "bitfit".
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
        freeze_all(backbone)
        self._peft: list[PeftModel] = []  # a list hides it from nn.Module: its weights are the backbone's own
        if adapter == "lora":
            self._peft.append(add_lora(backbone, readout, config.lora, config.first_block))
        elif adapter == "bitfit":
            train_biases(backbone, readout, config.first_block)
        else:
            train_reached(backbone, readout, config.first_block)
        if config.checkpoint_blocks:
            checkpoint_blocks(backbone)
        self.backbone, self.head = backbone, head
        self.head.requires_grad_(True)
        if config.head_start == "random":
            nn.init.normal_(self.head.weight_KF, std=0.01)
            nn.init.zeros_(self.head.bias_K)
        self._readout, self._config, self._from_states = readout, config, from_states

    @property
    def peft_model(self) -> PeftModel | None:
        """The adapters, until they are merged."""
        return self._peft[0] if self._peft else None

    def logits(self, inputs: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, K]."""
        logits: Tensor = self.head(self._readout.read(self.backbone(inputs, self._readout.blocks)))
        return logits

    def _training_logits(self, inputs: Tensor) -> Tensor:
        """`logits`, of images or of states [B, ...]."""
        if not self._from_states:
            return self.logits(inputs)
        features = resume(self.backbone, inputs, self._config.first_block - 1, self._readout.blocks)
        logits: Tensor = self.head(self._readout.read(features))
        return logits

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Layer-wise decay of the backbone's trained weights."""
        if self._config.layer_decay == 1:
            return {}
        block_of, top = block_of_parameters(self.backbone), max(self._readout.blocks)
        return {
            p: self._config.layer_decay ** max(top + 1 - block_of[name], 0)
            for name, p in self.backbone.network.named_parameters()
            if p.requires_grad
        }

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """{"cross_entropy"}: `objectives.classification.cross_entropy` on the labelled images."""
        del phase, step
        logits_BK = self._training_logits(batch.inputs)
        return {"cross_entropy": cross_entropy(logits_BK, batch.labels, self._config.label_smoothing)}

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
        """Make the backbone an ordinary one again: LoRA is added into the weights, checkpointing is undone."""
        if self._config.checkpoint_blocks:
            plain_blocks(self.backbone)
        for peft_model in self._peft:
            merge_lora(self.backbone, peft_model)
        self._peft.clear()
