"""Any timm model as a `Backbone`: features of any of its blocks. Knows nothing of where weights come from."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any, final

import timm
import torch
from torch import Tensor, nn

from keepsight.backbones.config import TimmArgs, check_size
from keepsight.backbones.weights import hash_weights
from keepsight.core import Backbone, Features, Preprocessing, UserError


@final
class TimmBackbone(Backbone):
    """A timm model, without its classifier.

    A block is a transformer block, or a stage of a CNN or of a hierarchical transformer (where a convolution stands
    between the last stage and the pooling, its output is one more block). The class token is the first prefix token;
    register tokens are dropped. A model without a class token gives on its last block what its own pooling gives
    (attention pooling in SigLIP, the normed mean in ConvNeXt), on the other blocks the mean of the patches.

    Attributes:
        architecture: timm's name, with or without a tag.
        timm_args: Extra arguments of the architecture.
        cls_tokens: Which prefix tokens are concatenated to `Features.cls`; RADIO has several summary tokens.
        own_pooling: Give on the last block what the network's own pooling gives, class token or not.

    `network` wraps a timm model that somebody else has built (a trunk in an open_clip tower); it must be of `architecture`.

    Raises:
        UserError: The architecture does not take the size or the arguments.
    """

    def __init__(
        self,
        *,
        name: str,
        architecture: str,
        preprocessing: Preprocessing,
        timm_args: TimmArgs | None = None,
        cls_tokens: tuple[int, ...] = (0,),
        network: nn.Module | None = None,
        own_pooling: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.timm_args = dict(timm_args or {})
        self.cls_tokens = cls_tokens
        self.own_pooling = own_pooling
        self.network = _create(architecture, preprocessing.size, self.timm_args) if network is None else network
        _make_wrappable(self.network)
        self._taps = len(self._timm.feature_info)
        widths = self._timm.num_features, self._timm.feature_info[-1]["num_chs"]
        self.depth = self._taps + (widths[0] != widths[1])
        parameters = inspect.signature(self._timm.forward_intermediates).parameters
        self._has_prefix = "return_prefix_tokens" in parameters and self._timm.num_prefix_tokens > 0

    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        """See `Backbone.forward`. Images are normalised as `preprocessing` says; ValueError for a block it lacks."""
        if not blocks or not all(1 <= b <= self.depth for b in blocks):
            raise ValueError(f"blocks {blocks} are not among 1 to {self.depth}")
        last = self.depth in blocks
        taps = sorted({min(b, self._taps) for b in blocks})
        prefix: dict[str, bool] = {"return_prefix_tokens": True} if self._has_prefix else {}
        result = self._timm.forward_intermediates(
            images_BCHW, indices=[t - 1 for t in taps], stop_early=not last, intermediates_only=not last, **prefix
        )
        final, outputs = result if last else (None, result)
        features = {tap: self._intermediate(output) for tap, output in zip(taps, outputs, strict=True)}
        if final is not None:
            features[self.depth] = self._last(final, features[self._taps].grid)
        return tuple(features[b] for b in blocks)

    def block_modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone.block_modules`: transformer blocks (ViT, EVA, BEiT), or stages (ConvNeXt)."""
        if self.depth != self._taps:
            return ()
        # A CNN may call its stages blocks, too, but gives its features after other layers: timm says which they are.
        taps = [info["module"] for info in self._timm.feature_info]
        for name in ("blocks", "stages"):
            if taps == [f"{name}.{number}" for number in range(self.depth)]:
                modules = tuple(self.network.get_submodule(name).children())
                return modules if len(modules) == self.depth else ()
        return ()

    def _intermediate(self, output: Any) -> Features:
        """A map [B, D, h, w], or the pair of it and the prefix tokens [B, P, D]."""
        map_BDhw, prefix_BPD = output if self._has_prefix else (output, None)
        patches_BND = map_BDhw.flatten(2).transpose(1, 2)
        cls_BC = patches_BND.mean(dim=1) if prefix_BPD is None else self._cls(prefix_BPD)
        return Features(cls_BC, patches_BND, (map_BDhw.shape[2], map_BDhw.shape[3]))

    def _last(self, final: Tensor, grid: tuple[int, int]) -> Features:
        """What the network's own head would get: tokens [B, P + N, D], or a map."""
        if final.ndim == 3:
            prefix = self._timm.num_prefix_tokens
            tokens_BPD = self._unpooled_norm()(final)
            pooled = not prefix or self.own_pooling
            cls_BC = self._timm.forward_head(final, pre_logits=True) if pooled else self._cls(tokens_BPD)
            return Features(cls_BC, tokens_BPD[:, prefix:], grid)
        channels_last = getattr(self._timm, "output_fmt", "NCHW") == "NHWC"
        map_BDhw = final.permute(0, 3, 1, 2) if channels_last else final
        patches_BND = map_BDhw.flatten(2).transpose(1, 2)
        pooled = self._timm.forward_head(final, pre_logits=True)
        cls_BC = pooled if pooled.ndim == 2 else patches_BND.mean(dim=1)
        return Features(cls_BC, patches_BND, (map_BDhw.shape[2], map_BDhw.shape[3]))

    def _cls(self, tokens_BPD: Tensor) -> Tensor:
        return torch.cat([tokens_BPD[:, i] for i in self.cls_tokens], dim=1)

    def _unpooled_norm(self) -> nn.Module:
        """Models that pool the patches (EVA02, BEiT) keep their final norm behind the pooling; tokens need it too."""
        fc_norm: nn.Module | None = getattr(self._timm, "fc_norm", None)
        moved = isinstance(self._timm.norm, nn.Identity)
        return fc_norm if moved and fc_norm is not None else nn.Identity()

    @property
    def _timm(self) -> Any:
        """The network, with the attributes that timm's models share and that nn.Module does not declare."""
        return self.network

    def weights_hash(self) -> str:
        """See `Backbone.weights_hash`; covers the dtypes and the summary tokens, too."""
        weights = hash_weights(self.network)
        if self.cls_tokens == (0,):
            return weights
        return hashlib.sha256(f"{weights} {self.cls_tokens}".encode()).hexdigest()

    def spec(self) -> dict[str, str | int | bool]:
        """See `Backbone.spec`; `TimmBackbone.from_spec` reads it."""
        return {
            "library": "timm",
            "name": self.name,
            "architecture": self.architecture,
            "timm_args": json.dumps(self.timm_args, sort_keys=True),
            "cls_tokens": json.dumps(self.cls_tokens),
            "preprocessing": self.preprocessing.model_dump_json(),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, str | int | bool]) -> TimmBackbone:
        """The architecture that `spec` described, with random weights; reaches no network."""
        return cls(
            name=str(spec["name"]),
            architecture=str(spec["architecture"]),
            preprocessing=Preprocessing.model_validate_json(str(spec["preprocessing"])),
            timm_args=json.loads(str(spec["timm_args"])),
            cls_tokens=tuple(json.loads(str(spec["cls_tokens"]))),
        )


def _create(architecture: str, size: int, timm_args: TimmArgs) -> nn.Module:
    """The network with random weights, for inputs of `size` and, where the architecture can, of other sizes too."""
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": 0, **timm_args}
    if timm.get_pretrained_cfg(architecture).fixed_input_size:
        arguments["img_size"] = size
    try:
        network = _with_dynamic_size(architecture, arguments)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The architecture {architecture} cannot be built with size={size} and timm_args={timm_args} "
            f"({_first_line(error)}): change one of them."
        ) from error
    if not callable(getattr(network, "forward_intermediates", None)):
        raise UserError(f"The architecture {architecture} gives no features of its blocks: choose another one.")
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    check_size(architecture, patch if isinstance(patch, int) else int(patch[0]), size)
    return network


def _with_dynamic_size(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(architecture, dynamic_img_size=True, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        network = timm.create_model(architecture, **arguments)
    return network


def _make_wrappable(network: nn.Module) -> None:
    """Let attention call its qkv layer as a layer.

    With biases apart from the fused qkv layer (EVA, BEiT, Swin v2), timm by default calls F.linear on its weight,
    so that an adapter wrapped around the layer would be bypassed without a word. The outputs are the same either way.
    """
    for module in network.modules():
        if "qkv_bias_separate" in vars(module):
            vars(module)["qkv_bias_separate"] = True


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
