"""LoRA on the query and value projections, through PEFT. Knows no method.

timm's attention has one fused ``qkv`` layer; LoRA on it would also adapt the key and share one A between the three. It is
split into three layers first (`split_qkv`), so that PEFT adapts q and v themselves, and fused again after merging.
"""

from __future__ import annotations

import re
import warnings

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.adapters.freeze import trainable_names
from keepsight.core import Backbone, Config, Readout, UserError


class LoraConfig(Config):
    """Low-rank update W + (alpha / rank) B A of each adapted projection (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Attributes:
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the input of A while training.
        targets: Regular expression over full module names, or None for q and v of every attention layer that the readout
            reaches.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | None = None


class Projection(nn.Linear):
    """One of q, k and v: a Linear that returns what `SplitQKV` has computed for it, once, where there is such a thing."""

    given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        given, self.given = self.given, None
        return super().forward(x) if given is None else given


class SplitQKV(nn.Module):
    """The same map as a fused Linear [D -> 3D], as three layers q, k, v that can be adapted one by one.

    The matrix product stays one: three of a third of the size took a quarter more time for a whole training step on a CPU.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        weights, has_bias = fused.weight.chunk(3), fused.bias is not None
        biases = fused.bias.chunk(3) if has_bias else (None, None, None)
        layers = []
        for weight, bias in zip(weights, biases, strict=True):
            layer = Projection(fused.in_features, fused.out_features // 3, bias=has_bias, device=weight.device)
            with torch.no_grad():
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)
            layer.requires_grad_(fused.weight.requires_grad)
            layers.append(layer)
        self.q, self.k, self.v = layers

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., 3D]."""
        layers = [
            layer for module in (self.q, self.k, self.v) for layer in module.modules() if isinstance(layer, Projection)
        ]
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        outputs = F.linear(x, torch.cat([layer.weight for layer in layers]), bias)
        for layer, output in zip(layers, outputs.chunk(3, dim=-1), strict=True):
            layer.given = output
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)

    def fused(self) -> nn.Linear:
        """One Linear again."""
        layer = nn.Linear(
            self.q.in_features, 3 * self.q.out_features, bias=self.q.bias is not None, device=self.q.weight.device
        )
        with torch.no_grad():
            layer.weight.copy_(torch.cat([self.q.weight, self.k.weight, self.v.weight]))
            if self.q.bias is not None:
                layer.bias.copy_(torch.cat([self.q.bias, self.k.bias, self.v.bias]))
        return layer


def split_qkv(network: nn.Module) -> list[str]:
    """Replace every fused ``qkv`` Linear in place by `SplitQKV`; return the names of the replaced modules."""
    names = [
        name
        for name, module in network.named_modules()
        if name.rsplit(".", 1)[-1] == "qkv" and isinstance(module, nn.Linear) and module.out_features % 3 == 0
    ]
    for name in names:
        fused = network.get_submodule(name)
        assert isinstance(fused, nn.Linear)
        network.set_submodule(name, SplitQKV(fused))
    return names


def fuse_qkv(network: nn.Module) -> None:
    """Undo `split_qkv`, in place."""
    for name in [name for name, module in network.named_modules() if isinstance(module, SplitQKV)]:
        split = network.get_submodule(name)
        assert isinstance(split, SplitQKV)
        network.set_submodule(name, split.fused())


def _targets(backbone: Backbone, readout: Readout, config: LoraConfig, first_block: int) -> list[str]:
    reached = {name.rpartition(".")[0] for name in trainable_names(backbone, readout, first_block)}
    linear = [name for name, module in backbone.network.named_modules() if isinstance(module, nn.Linear)]
    if config.targets is not None:
        pattern = re.compile(config.targets)
        chosen = [name for name in linear if pattern.search(name) and name in reached]
    else:
        chosen = [name for name in linear if re.search(r"(^|\.)(qkv\.[qv]|[qv]_proj)$", name) and name in reached]
    if not chosen:
        wanted = config.targets or "query and value projections of attention layers"
        raise UserError(
            f"LoRA found nothing to adapt in {backbone.name}: no layer that the readout '{readout}' reaches matches {wanted}; "
            "name layers with lora.targets=REGEX, or use finetune-full."
        )
    return chosen


def add_lora(backbone: Backbone, readout: Readout, config: LoraConfig, first_block: int = 1) -> PeftModel:
    """Freeze the backbone and put LoRA into its blocks from `first_block` on, in place.

    The output does not change until a step is taken (B = 0).

    Raises:
        UserError: Nothing matched.
    """
    backbone.requires_grad_(False)
    split_qkv(backbone.network)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_targets(backbone, readout, config, first_block),
        bias="none",
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # PEFT asks models of transformers by a name they are about to drop
        return get_peft_model(backbone.network, settings)


def check_lora_gradients(peft_model: PeftModel) -> None:
    """Raise RuntimeError unless every adapter has a non-zero gradient (called after the first backward pass).

    B starts at zero, so A's first gradient is zero by construction; an adapter is dead if neither has one.
    """
    alive: dict[str, bool] = {}
    for name, p in peft_model.named_parameters():
        if match := re.match(r"(.*)\.lora_[AB]\.", name):
            alive[match[1]] = alive.get(match[1], False) or (p.grad is not None and bool(p.grad.any()))
    dead = [name for name, lives in alive.items() if not lives]
    if dead or not alive:
        raise RuntimeError(
            f"{len(dead)} of {len(alive)} LoRA adapters got no gradient in the first step ({', '.join(dead[:3])}): this model "
            "bypasses the wrapped layers, and training would silently change nothing."
        )


def merge_lora(backbone: Backbone, peft_model: PeftModel) -> None:
    """Add the updates into the weights and restore the network's own layout, in place."""
    peft_model.merge_and_unload()
    fuse_qkv(backbone.network)
    backbone.requires_grad_(False)
