"""Any timm model as a `Backbone`: features of any of its blocks. Knows nothing of where weights come from."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any, final

import timm
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from keepsight.core import Backbone, Features, Preprocessing, UserError

TimmArgs = dict[str, JsonValue]
"""Extra keyword arguments of a timm architecture, such as ``{"depth": 2}``."""


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
    ) -> None:
        super().__init__()
        self.name = name
        self.architecture = architecture
        self.preprocessing = preprocessing
        self.timm_args = dict(timm_args or {})
        self.cls_tokens = cls_tokens
        self.network = _create(architecture, preprocessing.size, self.timm_args)
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
        for name in ("blocks", "stages"):
            modules = getattr(self._timm, name, None)
            if isinstance(modules, nn.Sequential | nn.ModuleList) and len(modules) == self._taps:
                return tuple(modules)
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
            cls_BC = self._cls(tokens_BPD) if prefix else self._timm.forward_head(final, pre_logits=True)
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
        """See `Backbone.weights_hash`; covers the dtypes, too."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def spec(self) -> dict[str, str | int | bool]:
        """See `Backbone.spec`; `build_backbone` reads it."""
        return {
            "library": "timm",
            "name": self.name,
            "architecture": self.architecture,
            "timm_args": json.dumps(self.timm_args, sort_keys=True),
            "cls_tokens": json.dumps(self.cls_tokens),
            "preprocessing": self.preprocessing.model_dump_json(),
        }


def build_backbone(spec: dict[str, str | int | bool]) -> TimmBackbone:
    """The architecture that `TimmBackbone.spec` described, with random weights and in eval mode; reaches no network.

    The caller fills it (``backbone.load_state_dict(state, strict=True)``).
    """
    return TimmBackbone(
        name=str(spec["name"]),
        architecture=str(spec["architecture"]),
        preprocessing=Preprocessing.model_validate_json(str(spec["preprocessing"])),
        timm_args=json.loads(str(spec["timm_args"])),
        cls_tokens=tuple(json.loads(str(spec["cls_tokens"]))),
    ).eval()


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
    _check_size(architecture, network, size)
    _make_wrappable(network)
    return network


def _with_dynamic_size(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(architecture, dynamic_img_size=True, **arguments)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        network = timm.create_model(architecture, **arguments)
    return network


def _check_size(architecture: str, network: nn.Module, size: int) -> None:
    """timm would cut off what does not fill a patch, or fail at the first image."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", 1)
    side = patch if isinstance(patch, int) else int(patch[0])
    if size % side:
        below, above = size // side * side, -(-size // side) * side
        nearest = f"{below} or {above}" if below else str(above)
        raise UserError(f"Size {size} is not a multiple of the patch size {side} of {architecture}: use {nearest}.")


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
