"""The image tower of an open_clip model as a `Backbone`. Knows nothing of names and of where weights come from.

open_clip's transformers use `nn.MultiheadAttention`, which calls F.linear on a fused weight: an adapter around a layer would be
bypassed. Each is replaced by `FusedAttention`, with the same numbers in a ``qkv`` layer and the same outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, final

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.backbones.config import BackboneConfig, check_size, refuse_timm_args
from keepsight.backbones.open_clip_names import OpenClipModel, describe, is_supported, require_open_clip
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.backbones.weights import fill, hash_weights
from keepsight.core import Backbone, Features, Preprocessing, UserError
from keepsight.core.progress import log

OURS, NATIVE = re.compile(r"(resblocks\.\d+\.attn\.)qkv\."), re.compile(r"(resblocks\.\d+\.attn\.)in_proj_")
"""The names that differ from open_clip's: the fused weights of self-attention."""

NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
"""The smallest text tower: open_clip builds both, and only the image tower is kept."""


class FusedAttention(nn.Module):
    """The same map as a self-attending `nn.MultiheadAttention`, with q, k and v in one Linear layer that can be wrapped."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        width = attention.embed_dim
        self.heads = attention.num_heads
        self.dropout = attention.dropout
        self.qkv = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None)
        self.qkv.weight = attention.in_proj_weight
        if attention.in_proj_bias is not None:
            self.qkv.bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self,
        query_BLD: Tensor,
        key_BLD: Tensor,
        value_BLD: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """The signature of `nn.MultiheadAttention`; key and value are the query, as in self-attention."""
        assert key_BLD is query_BLD
        assert value_BLD is query_BLD
        assert not need_weights
        b, length, width = query_BLD.shape
        q, k, v = (
            part.reshape(b, length, self.heads, -1).transpose(1, 2) for part in self.qkv(query_BLD).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask, self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).reshape(b, length, width)), None


@final
class OpenClipBackbone(Backbone):
    """The image tower of an open_clip model: its own VisionTransformer, or a timm model inside it (SigLIP, ConvNeXt...).

    The class token of the last block is what the network pools (class token, mean or attention), after its final norm:
    `project` makes the embedding of it that texts are compared with. The other blocks give the class token as it is.

    Attributes:
        model: open_clip's embed_dim, vision_cfg and quick_gelu.

    Raises:
        UserError: open_clip is not installed, or the architecture or the size will not do.
    """

    def __init__(self, *, name: str, model: dict[str, Any], preprocessing: Preprocessing) -> None:
        super().__init__()
        require_open_clip(name)
        self.name = name
        self.preprocessing = preprocessing
        self.model = _image_only(model, preprocessing.size)
        self.network = _create(name, self.model)
        # In a tuple: the same trunk must not be a part of this module twice.
        self._inner = (_timm_tower(name, self.model, preprocessing, self.network),)
        self.depth = self._inner[0].depth if self._inner[0] else len(self._visual.transformer.resblocks)

    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        """See `Backbone.forward`; ValueError for a block it lacks."""
        (inner,) = self._inner
        if inner is not None:
            return inner(images_BCHW, blocks)  # type: ignore[no-any-return]
        if not blocks or not all(1 <= b <= self.depth for b in blocks):
            raise ValueError(f"blocks {blocks} are not among 1 to {self.depth}")
        chosen = sorted(set(blocks))
        found = self._visual.forward_intermediates(
            images_BCHW,
            indices=[b - 1 for b in chosen],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patch = self._visual.patch_size
        grid = (images_BCHW.shape[2] // patch[0], images_BCHW.shape[3] // patch[1])
        outputs = zip(chosen, found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        features = {b: self._features(b, cls_B1D, patches_BND, grid) for b, cls_B1D, patches_BND in outputs}
        return tuple(features[b] for b in blocks)

    def _features(self, block: int, cls_B1D: Tensor, patches_BND: Tensor, grid: tuple[int, int]) -> Features:
        if block < self.depth:
            return Features(cls_B1D[:, 0], patches_BND, grid)
        pooled_BC, _ = self._visual._pool(torch.cat([cls_B1D, patches_BND], dim=1))
        # With attention pooling (CoCa) the final norm comes after it and is of another width: patches have none.
        normed_BND = self._visual.ln_post(patches_BND) if self._visual.attn_pool is None else patches_BND
        return Features(pooled_BC, normed_BND, grid)

    def project(self, cls_BC: Tensor) -> Tensor:
        """The embedding [B, E] of the last block's `Features.cls`, as `encode_image` of open_clip gives it (no unit length)."""
        (inner,) = self._inner
        if inner is not None:
            trunk: Any = inner.network
            return self._visual.head(trunk.get_classifier()(cls_BC))  # type: ignore[no-any-return]
        return cls_BC if self._visual.proj is None else cls_BC @ self._visual.proj

    def block_modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone.block_modules`."""
        (inner,) = self._inner
        return tuple(self._visual.transformer.resblocks) if inner is None else inner.block_modules()

    @property
    def _visual(self) -> Any:
        """The tower, with the attributes that nn.Module does not declare."""
        return self.network

    def weights_hash(self) -> str:
        """See `Backbone.weights_hash`; covers the dtypes, too."""
        return hash_weights(self.network)

    def native_state_dict(self) -> dict[str, Tensor]:
        """The weights under open_clip's own names (of `model.visual`)."""
        return {OURS.sub(r"\1in_proj_", name): tensor for name, tensor in self.network.state_dict().items()}

    def spec(self) -> dict[str, str | int | bool]:
        """See `Backbone.spec`; `OpenClipBackbone.from_spec` reads it."""
        return {
            "library": "open_clip",
            "name": self.name,
            "model": json.dumps(self.model, sort_keys=True),
            "preprocessing": self.preprocessing.model_dump_json(),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, str | int | bool]) -> OpenClipBackbone:
        """The architecture that `spec` described, with random weights; reaches no network."""
        return cls(
            name=str(spec["name"]),
            model=json.loads(str(spec["model"])),
            preprocessing=Preprocessing.model_validate_json(str(spec["preprocessing"])),
        )


def load_open_clip(config: BackboneConfig) -> OpenClipBackbone:
    """The filled image tower that the config asks for.

    Raises:
        UserError: See `load_backbone`.
    """
    source = describe(config)
    check_supported(source.model)
    # Read first: what is missing is said before a large network is built.
    weights = None if config.weights == "random" else source.weights()
    backbone = empty_image_tower(config, source)
    if weights is not None:
        fill_image_tower(backbone, *weights, allow_partial=config.allow_partial)
    return backbone


def empty_image_tower(config: BackboneConfig, source: OpenClipModel) -> OpenClipBackbone:
    """The image tower with random weights."""
    refuse_timm_args(config.model_copy(update={"architecture": None}))
    return OpenClipBackbone(name=config.name, model=source.model, preprocessing=config.adjusted(source.preprocessing))


def fill_image_tower(backbone: OpenClipBackbone, content: dict[str, Any], source: str, *, allow_partial: bool) -> None:
    """Copy the ``visual.`` part of a CLIP state dict, or the state dict of an image tower alone, into the backbone."""
    convert = partial(_converted, network=backbone.network)
    report = fill(backbone.network, backbone.name, content, source=source, allow_partial=allow_partial, convert=convert)
    log.info("%s: loaded %s", source, report)


def check_supported(model: dict[str, Any]) -> None:
    """Raise UserError unless the image tower gives features block by block."""
    if not is_supported(model):
        raise UserError(
            "CLIP's own ResNets (RN50 and its like) and attention-pooled CNNs of open_clip give no features block by block: "
            "choose a ViT, SigLIP or ConvNeXt."
        )


def _image_only(model: dict[str, Any], size: int) -> dict[str, Any]:
    check_supported(model)
    vision = model["vision_cfg"] | {"image_size": size, "timm_model_pretrained": False}
    if "timm_model_name" not in vision:
        vision.pop("timm_model_pretrained")
    return {"embed_dim": model["embed_dim"], "vision_cfg": vision, "quick_gelu": bool(model.get("quick_gelu", False))}


def _create(name: str, model: dict[str, Any]) -> nn.Module:
    """The tower with random weights; attention in layers that can be wrapped."""
    import open_clip

    vision = model["vision_cfg"]
    if "timm_model_name" not in vision:
        check_size(name, int(vision.get("patch_size", 16)), int(vision["image_size"]))
    try:
        network: nn.Module = open_clip.CLIP(**model, text_cfg=NO_TEXT).visual
        if "timm_model_name" in vision:
            _resize_trunk(name, network, int(vision["image_size"]))
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"The image tower of {name} cannot be built at size={vision['image_size']} ({reason}): change the size or the name."
        ) from error
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and ".resblocks." in path:
            network.set_submodule(path, FusedAttention(module))
    return network


def _resize_trunk(name: str, network: Any, size: int) -> None:
    """A timm trunk is built for its own size; one with positions is told another size, one without takes any."""
    patch = getattr(getattr(network.trunk, "patch_embed", None), "patch_size", 1)
    check_size(name, patch if isinstance(patch, int) else int(patch[0]), size)
    resize = getattr(network.trunk, "set_input_size", None)
    if callable(resize):
        resize(img_size=size)


def _timm_tower(name: str, model: dict[str, Any], preprocessing: Preprocessing, network: Any) -> TimmBackbone | None:
    """The timm model inside the tower, if there is one, as a backbone."""
    architecture = model["vision_cfg"].get("timm_model_name")
    if architecture is None:
        return None
    return TimmBackbone(
        name=name, architecture=architecture, preprocessing=preprocessing, network=network.trunk, own_pooling=True
    )


def _converted(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """One reading of a file under our names, its positions resampled to the network's grid."""
    if any(name.startswith("visual.") for name in tensors):
        return {}  # both towers: the next reading is the image tower alone, and the text tower has some of the same names
    renamed = {NATIVE.sub(r"\1qkv.", name): tensor for name, tensor in tensors.items()}
    for name, resample in RESAMPLED.items():
        wanted = network.state_dict().get(name)
        if wanted is not None and name in renamed and renamed[name].shape != wanted.shape:
            renamed[name] = resample(renamed[name], network)
    return renamed


def _resampled(positions_ND: Tensor, network: Any) -> Tensor:
    import open_clip

    state = {"visual.positional_embedding": positions_ND}
    open_clip.model.resize_pos_embed(state, SimpleNamespace(visual=network))
    return state["visual.positional_embedding"]


def _resampled_trunk(positions_1ND: Tensor, network: Any) -> Tensor:
    trunk = network.trunk
    prefix = 0 if getattr(trunk, "no_embed_class", False) else trunk.num_prefix_tokens
    resampled: Tensor = timm.layers.resample_abs_pos_embed(
        positions_1ND, new_size=list(trunk.patch_embed.grid_size), num_prefix_tokens=prefix
    )
    return resampled


RESAMPLED: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "positional_embedding": _resampled,
    "trunk.pos_embed": _resampled_trunk,
}
"""Position grids, which depend on the size of the input."""
