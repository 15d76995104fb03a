"""LoRA and DoRA on the query and value projections, through PEFT. Knows no method.

timm's attention has one fused ``qkv`` layer; LoRA on it would also adapt the key and share one A between the three. It is
split into three layers first (`split_qkv`), so that PEFT adapts q and v themselves, and fused again after merging.
"""

from __future__ import annotations

import re
import warnings
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.osf.layer import Linear as OsfLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from keepsight.adapters.freeze import trainable_names
from keepsight.core import Backbone, Config, Readout, UserError


class IntruderConfig(Config):
    """Reduction of intruder dimensions after training (Shuttleworth et al. 2024, arXiv 2410.21228), as PEFT does it.

    An intruder is one of the largest left singular vectors of a tuned weight that is like none of the pretrained weight's.

    Attributes:
        largest: Singular vectors that are looked at.
        threshold: Largest absolute cosine, over the pretrained ones, of an intruder.
        kept: Share of an intruder that stays; 1 changes nothing.
    """

    largest: int = Field(default=10, ge=1)
    threshold: float = Field(default=0.5, ge=0, le=1)
    kept: float = Field(default=0.75, ge=0, le=1)


class LoraConfig(Config):
    """Low-rank update W + (alpha / rank) B A of each adapted projection (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    Attributes:
        variant: "dora" trains the length of each row of the updated weight apart from its direction (Liu et al. 2024,
            arXiv 2402.09353).
        rank: Rank of the update.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the input of A while training.
        targets: Regular expression over full module names, or None for q and v of every attention layer that the readout
            reaches.
        intruders: Reduction of intruder dimensions when training has ended; None for none. Not with "dora".
    """

    variant: Literal["plain", "dora"] = "plain"
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: str | None = None
    intruders: IntruderConfig | None = None

    @model_validator(mode="after")
    def _plain_intruders(self) -> LoraConfig:
        if self.intruders is not None and self.variant != "plain":
            raise ValueError("intruders are reduced in plain LoRA alone: leave out variant or intruders")
        return self


class Projection(nn.Linear):
    """One of q, k and v: a Linear that returns what `SplitQKV` has computed for it, once, where there is such a thing."""

    given: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        given, self.given = self.given, None
        return super().forward(x) if given is None else given


class SplitQKV(nn.Module):
    """The same map as a fused Linear [D -> 3D], as three layers q, k, v that can be adapted one by one.

    The products stay as few as with one layer, which on a CPU is an eighth of a whole training step: one for the weights, and,
    where the adapters are plain LoRA, one for all A and one for all B. Anything else that PEFT offers goes through its own layers;
    what changes the input of a projection (OFT) gets no common product for the weights.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        # Parts of one tensor, so that they are one matrix again without a copy.
        weights = fused.weight.detach().clone().chunk(3)
        biases = (None, None, None) if fused.bias is None else fused.bias.detach().clone().chunk(3)
        layers = []
        for weight, bias in zip(weights, biases, strict=True):
            layer = Projection(fused.in_features, fused.out_features // 3, bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight, fused.weight.requires_grad)
            if bias is not None:
                layer.bias = nn.Parameter(bias, fused.weight.requires_grad)
            layers.append(layer)
        self.q, self.k, self.v = layers

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., 3D]."""
        parts = (self.q, self.k, self.v)
        if not all(_keeps_input(part) for part in parts):
            return torch.cat([part(x) for part in parts], dim=-1)
        layers = [layer for part in parts for layer in part.modules() if isinstance(layer, Projection)]
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        outputs = F.linear(x, _stacked([layer.weight for layer in layers]), bias)
        if all(isinstance(part, Projection) or _is_plain(part, x) for part in parts):
            return _with_plain_lora(x, outputs, parts)
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


def _stacked(weights: list[Tensor]) -> Tensor:
    """[D, C] three times -> [3D, C]; a view where they are frozen and still parts of one tensor (not after a move to a device)."""
    first = weights[0]
    if not torch.compiler.is_compiling() and not any(w.requires_grad or isinstance(w, DTensor) for w in weights):
        places = [(w.untyped_storage()._cdata, w.storage_offset()) for w in weights]
        storage, start = places[0]
        if first.is_contiguous() and places == [(storage, start + i * first.numel()) for i in range(len(weights))]:
            return first.detach().as_strided((len(weights) * first.shape[0], first.shape[1]), first.stride())
    return torch.cat(weights)


def _keeps_input(part: nn.Module) -> bool:
    """Whether its `Projection` gets what the part gets, so that it can be computed beforehand."""
    return isinstance(part, Projection | LoraLinear | OsfLinear) or (
        isinstance(part, BaseTunerLayer) and part.disable_adapters
    )


def _is_plain(part: nn.Module, x: Tensor) -> bool:
    """Whether PEFT would add (alpha / rank) B A x and nothing else."""
    return (
        isinstance(part, LoraLinear)
        and not part.disable_adapters
        and not part.merged
        and part.active_adapters == ["default"]
        and not part.lora_variant
        and not part.lora_bias["default"]
        and isinstance(part.lora_dropout["default"], nn.Identity)
        and part.lora_A["default"].weight.dtype == x.dtype
    )


def _with_plain_lora(x: Tensor, outputs: Tensor, parts: tuple[nn.Module, ...]) -> Tensor:
    """outputs [..., 3D] + B A x, with A [R, D] of all adapted parts and B [3D, R] in blocks: a part's rows see its own columns."""
    adapted = {i: part for i, part in enumerate(parts) if isinstance(part, LoraLinear)}
    if not adapted:
        return outputs
    a = torch.cat([part.lora_A["default"].weight for part in adapted.values()])
    rows, first = [], 0
    for i in range(len(parts)):
        if i in adapted:
            b = adapted[i].lora_B["default"].weight * adapted[i].scaling["default"]
            rows.append(F.pad(b, (first, len(a) - first - b.shape[1])))
            first += b.shape[1]
        else:
            rows.append(outputs.new_zeros(outputs.shape[-1] // len(parts), len(a)))
    # One product that adds to the outputs: no second tensor of their size.
    added = torch.addmm(outputs.flatten(0, -2), F.linear(x, a).flatten(0, -2), torch.cat(rows).T)
    return added.view_as(outputs)


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


def adapted_layers(
    backbone: Backbone, readout: Readout, targets: str | None, first_block: int, method: str
) -> list[str]:
    """Names of the linear layers that the readout reaches from `first_block` on and that match `targets`, by default q and v.

    Raises:
        UserError: There are none; it names the method, such as "LoRA".
    """
    reached = {name.rpartition(".")[0] for name in trainable_names(backbone, readout, first_block)}
    linear = [name for name, module in backbone.network.named_modules() if isinstance(module, nn.Linear)]
    pattern = re.compile(r"(^|\.)(qkv\.[qv]|[qv]_proj)$" if targets is None else targets)
    chosen = [name for name in linear if pattern.search(name) and name in reached]
    if not chosen:
        wanted = targets or "query and value projections of attention layers"
        raise UserError(
            f"{method} found nothing to adapt in {backbone.name}: no layer that the readout '{readout}' reaches matches {wanted}; "
            f"name layers with {method.lower()}.targets=REGEX, or use finetune-full."
        )
    return chosen


def wrapped(backbone: Backbone, settings: Any) -> PeftModel:
    """PEFT's model around the network, which it changes in place."""
    with warnings.catch_warnings():
        # PEFT asks models of transformers by a name they are about to drop.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(backbone.network, settings)


def add_lora(backbone: Backbone, readout: Readout, config: LoraConfig, first_block: int = 1) -> PeftModel:
    """Freeze the backbone and put LoRA into its blocks from `first_block` on, in place.

    The output does not change until a step is taken (B = 0; with DoRA up to rounding).

    Raises:
        UserError: Nothing matched.
    """
    backbone.requires_grad_(False)
    split_qkv(backbone.network)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=adapted_layers(backbone, readout, config.targets, first_block, "LoRA"),
        bias="none",
        use_dora=config.variant == "dora",
    )
    return wrapped(backbone, settings)


def check_lora_gradients(peft_model: PeftModel) -> None:
    """Raise RuntimeError unless every adapter has a non-zero gradient (called after the first backward pass); any of PEFT's.

    B starts at zero, so A's first gradient is zero by construction; an adapter is dead if none of its weights has one.
    """
    alive: dict[str, bool] = {}
    for name, p in peft_model.named_parameters():
        if match := re.match(r"(.*?)\.(lora|oft|osf)_", name):
            alive[match[1]] = alive.get(match[1], False) or (p.grad is not None and bool(p.grad.any()))
    dead = [name for name, lives in alive.items() if not lives]
    if dead or not alive:
        kind = name_of(peft_model).replace("LORA", "LoRA")
        raise RuntimeError(
            f"{len(dead)} of {len(alive)} {kind} adapters got no gradient in the first step ({', '.join(dead[:3])}): this model "
            "bypasses the wrapped layers, and training would silently change nothing."
        )


def name_of(peft_model: PeftModel) -> str:
    """PEFT's name of the kind of adapter: LORA, OFT or OSF."""
    return str(peft_model.peft_config["default"].peft_type.value)


def reduce_intruders(peft_model: PeftModel, config: IntruderConfig) -> list[str]:
    """Reduce the intruder dimensions of a trained LoRA, in place and in its rank; returns what PEFT says about each layer."""
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    said: list[str] = []
    reduce_intruder_dimension(
        peft_model,
        new_adapter_name="reduced",
        top_k=config.largest,
        threshold_epsilon=config.threshold,
        mitigation_lambda=config.kept,
        logging_sink=said.append,
    )
    with torch.no_grad():
        for layer in peft_model.modules():
            if isinstance(layer, LoraLinear):
                layer.lora_A["default"].weight.copy_(layer.lora_A["reduced"].weight)
                layer.lora_B["default"].weight.copy_(layer.lora_B["reduced"].weight)
    peft_model.set_adapter("default")
    peft_model.delete_adapter("reduced")
    return said


def merge_lora(backbone: Backbone, peft_model: PeftModel) -> None:
    """Add the updates of any of PEFT's adapters into the weights and restore the network's own layout, in place."""
    peft_model.merge_and_unload()
    fuse_qkv(backbone.network)
    backbone.requires_grad_(False)
