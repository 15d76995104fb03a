"""From a method's inputs to the features its head works on: a backbone that is tuned, or features that are cached already."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from keepsight.adapters.adaptformer import AdaptFormerConfig
from keepsight.adapters.blocks import check_gradients, chosen_blocks, switched_off
from keepsight.adapters.freeze import (
    block_of_parameters,
    checkpoint_blocks,
    freeze_all,
    plain_blocks,
    train_biases,
    train_reached,
)
from keepsight.adapters.kept import KeptAdapters, kept_adapters
from keepsight.adapters.lora import LoraConfig, add_lora, check_lora_gradients, merge_lora, name_of, reduce_intruders
from keepsight.adapters.orthogonal import OftConfig, OsfConfig, add_oft, add_osf
from keepsight.adapters.prompts import VptConfig
from keepsight.backbones.cut import resume
from keepsight.core import Backbone, Config, Features, Readout
from keepsight.core.progress import log

Adapter = Literal["full", "lora", "bitfit", "adaptformer", "vpt", "oft", "osf"]


class AdapterConfig(Config):
    """Which of the backbone's weights are trained, and how.

    Attributes:
        lora: Rank, alpha, variant and targets of LoRA.
        adaptformer: Bottleneck and scale of AdaptFormer.
        vpt: Number and depth of prompts.
        oft: Block size of the rotations.
        osf: Share of the singular directions that stay.
        first_block: Blocks below this one (counted from 1) and the embedding stay frozen.
        layer_decay: Layer-wise learning-rate decay (BEiT, arXiv 2106.08254, appendix): block b of a readout at block B learns with
            lr * layer_decay^(B + 1 - b), what comes before the first block counts as block 0; the head learns with lr.
        checkpoint_blocks: Gradient checkpointing: less memory, about a third more time.
        lr_scale: Factor on the learning rate of everything in the backbone; the head learns with the optimizer's own.
    """

    lora: LoraConfig = LoraConfig()
    adaptformer: AdaptFormerConfig = AdaptFormerConfig()
    vpt: VptConfig = VptConfig()
    oft: OftConfig = OftConfig()
    osf: OsfConfig = OsfConfig()
    first_block: int = Field(default=1, ge=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    checkpoint_blocks: bool = False
    lr_scale: float = Field(default=1.0, gt=0)


class Encoder(nn.Module, ABC):
    """Inputs [B, ...] -> features [B, F]."""

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Features [B, F] of a training batch."""

    def after_first_step(self) -> None:
        """Check that everything trained has a gradient."""

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Factors on the learning rate; see `Method.lr_scales`."""
        return {}


class CachedFeatures(Encoder):
    """The inputs are features of a frozen backbone already."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs themselves."""
        return inputs


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a watched `TunedBackbone`: its inputs, read-out features [B, F] and `Features` of the watched blocks."""

    inputs: Tensor
    x_BF: Tensor
    layers: dict[int, Features]


class TunedBackbone(Encoder):
    """A backbone, read out, of which some weights are trained.

    Args:
        backbone: Changed in place.
        readout: What the head sees (blocks already resolved).
        adapter: What is trained: all weights, PEFT's adapters (lora, oft, osf), parts beside the blocks (adaptformer, vpt), or
            biases.
        config: See `AdapterConfig`.
        from_states: `forward` gets states after block `config.first_block` - 1 (`backbones.cut.prefix`) in place of images.
    """

    def __init__(
        self,
        backbone: Backbone,
        readout: Readout,
        adapter: Adapter,
        config: AdapterConfig,
        from_states: bool = False,
    ) -> None:
        super().__init__()
        freeze_all(backbone)
        self._peft: list[PeftModel] = []  # a list hides it from nn.Module: its weights are the backbone's own
        if adapter == "lora":
            self._peft.append(add_lora(backbone, readout, config.lora, config.first_block))
        elif adapter == "oft":
            self._peft.append(add_oft(backbone, readout, config.oft, config.first_block))
        elif adapter == "osf":
            self._peft.append(add_osf(backbone, readout, config.osf, config.first_block))
        elif adapter == "adaptformer":
            blocks = chosen_blocks(backbone, readout, config.first_block)
            KeptAdapters(blocks=blocks, adaptformer=config.adaptformer).add(backbone)
        elif adapter == "vpt":
            blocks = chosen_blocks(backbone, readout, config.first_block)
            KeptAdapters(blocks=blocks, vpt=config.vpt).add(backbone)
        elif adapter == "bitfit":
            train_biases(backbone, readout, config.first_block)
        else:
            train_reached(backbone, readout, config.first_block)
        if config.checkpoint_blocks:
            checkpoint_blocks(backbone)
        self.backbone = backbone
        self.readout = readout
        self._config, self._from_states = config, from_states
        self._watched: tuple[int, ...] | None = None
        self._passes: list[Pass] = []

    @property
    def has_adapters(self) -> bool:
        """Whether the untouched network is this one with its adapters off."""
        return bool(self._peft) or kept_adapters(self.backbone) is not None

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Within the block the adapters are off: the network is the one it came from, bit for bit."""
        with contextlib.ExitStack() as off:
            for peft_model in self._peft:
                off.enter_context(peft_model.disable_adapter())
            off.enter_context(switched_off(self.backbone))
            yield

    @property
    def peft_model(self) -> PeftModel | None:
        """PEFT's adapters, until they are merged."""
        return self._peft[0] if self._peft else None

    def read(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features [B, F]."""
        return self.readout.read(self.backbone(images, self.readout.blocks))

    def forward(self, inputs: Tensor) -> Tensor:
        """Images, or states [B, ...], -> features [B, F]; kept for `passes` where it is watched and has gradients."""
        return self.readout.read(self.see(inputs))

    def see(self, inputs: Tensor) -> tuple[Features, ...]:
        """`Features` of the readout's blocks, in its order; kept like `forward`'s."""
        watched = self._watched if torch.is_grad_enabled() else None
        layers = self.layers(inputs, watched or ())
        seen = tuple(layers[block] for block in self.readout.blocks)
        if watched is not None:
            self._passes.append(Pass(inputs, self.readout.read(seen), {block: layers[block] for block in watched}))
        return seen

    def layers(
        self, inputs: Tensor, blocks: tuple[int, ...] = (), backbone: Backbone | None = None
    ) -> dict[int, Features]:
        """`Features` of the readout's blocks and of these, of this backbone or of another one of its kind."""
        wanted = tuple(dict.fromkeys((*self.readout.blocks, *blocks)))
        network = backbone or self.backbone
        if self._from_states:
            found = resume(network, inputs, self._config.first_block - 1, wanted)
        else:
            found = network(inputs, wanted)
        return dict(zip(wanted, found, strict=True))

    def watch(self, blocks: tuple[int, ...]) -> None:
        """From now on keep what every forward pass with gradients gave, with these blocks beside the readout."""
        self._watched = blocks

    def passes(self) -> list[Pass]:
        """The passes since the last call, which are forgotten."""
        passes, self._passes = self._passes, []
        return passes

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Layer-wise decay of the backbone's trained weights, times `AdapterConfig.lr_scale`."""
        decay, scale = self._config.layer_decay, self._config.lr_scale
        if decay == 1 and scale == 1:
            return {}
        trained = [(name, p) for name, p in self.backbone.network.named_parameters() if p.requires_grad]
        if decay == 1:
            return {p: scale for _, p in trained}
        block_of, top = block_of_parameters(self.backbone), max(self.readout.blocks)
        return {p: scale * decay ** max(top + 1 - block_of[name], 0) for name, p in trained}

    def after_first_step(self) -> None:
        """Every adapter must have a gradient."""
        for peft_model in self._peft:
            check_lora_gradients(peft_model)
        if kept_adapters(self.backbone) is not None:
            check_gradients(self.backbone)

    def after_training(self) -> None:
        """Call it after the last step, before `merge`: intruder dimensions are reduced where `LoraConfig.intruders` asks for it."""
        for peft_model in self._peft:
            if self._config.lora.intruders is not None and name_of(peft_model) == "LORA":
                for line in reduce_intruders(peft_model, self._config.lora.intruders):
                    log.debug("%s", line)

    def train(self, mode: bool = True) -> TunedBackbone:
        """Batch-norm statistics of the backbone stay as pretrained: few labels would ruin them."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def merge(self) -> None:
        """Make the backbone an ordinary one again: PEFT's adapters are added into the weights, checkpointing is undone.

        AdaptFormer and prompts cannot be merged: they stay, frozen, as parts of the network.
        """
        if self._config.checkpoint_blocks:
            plain_blocks(self.backbone)
        for peft_model in self._peft:
            merge_lora(self.backbone, peft_model)
        self._peft.clear()
        if kept_adapters(self.backbone) is not None:
            freeze_all(self.backbone)
