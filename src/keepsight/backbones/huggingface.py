"""Vision models of transformers as `Backbone`s: features of any block. Executes no code of a repository, ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from keepsight.backbones.config import check_size
from keepsight.backbones.weights import hash_weights
from keepsight.core import Backbone, Features, Preprocessing, UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How the models of one `model_type` are built.

    Attributes:
        model: Class in transformers.
        blocks: Path of the list of blocks.
        norm: Path of the final norm, for tokens; of the pooled vector for a CNN.
        prefix: Tokens before the patches, class token first (registers come on top); None for a CNN.
        head: Path of the attention pooling, for models without a class token.
        arguments: Of the class.
    """

    model: str
    blocks: str
    norm: str
    prefix: int | None = 1
    head: str | None = None
    arguments: tuple[tuple[str, bool], ...] = ()


NO_POOLER = (("add_pooling_layer", False),)
"""The pooler (a dense layer and tanh) is of no use and often not in published weights."""

FAMILIES: dict[str, Family] = {
    "vit": Family(model="ViTModel", blocks="layers", norm="layernorm", arguments=NO_POOLER),
    "vit_mae": Family(model="ViTMAEModel", blocks="layers", norm="layernorm"),
    "deit": Family(model="DeiTModel", blocks="layers", norm="layernorm", prefix=2, arguments=NO_POOLER),
    "beit": Family(model="BeitModel", blocks="layers", norm="layernorm", arguments=NO_POOLER),
    "dinov2": Family(model="Dinov2Model", blocks="encoder.layer", norm="layernorm"),
    "dinov2_with_registers": Family(model="Dinov2WithRegistersModel", blocks="encoder.layer", norm="layernorm"),
    "dinov3_vit": Family(model="DINOv3ViTModel", blocks="model.layer", norm="norm"),
    "clip_vision_model": Family(model="CLIPVisionModel", blocks="encoder.layers", norm="post_layernorm"),
    "siglip_vision_model": Family(
        model="SiglipVisionModel", blocks="encoder.layers", norm="post_layernorm", prefix=0, head="head"
    ),
    "convnext": Family(model="ConvNextModel", blocks="encoder.stages", norm="layernorm", prefix=None),
    "convnextv2": Family(model="ConvNextV2Model", blocks="encoder.stages", norm="layernorm", prefix=None),
}

TWO_TOWERS = ("clip", "siglip")
"""Models of images and texts: their vision_config is taken."""


class _Enough(Exception):  # noqa: N818 - a way out of the network, not an error
    """Raised after the last block that was asked for."""


@final
class TransformersBackbone(Backbone):
    """A vision encoder of transformers, without poolers and heads (but for SigLIP's attention pooling).

    A block is a transformer block, or a stage of ConvNeXt. The class token is the first token; distillation and register tokens
    are dropped. SigLIP gives its attention pooling on the last block, ConvNeXt the normed mean; on the other blocks they give
    the mean of the patches. Positions are interpolated to the size of the images.

    Attributes:
        description: transformers' config of the model, as JSON gives it.

    Raises:
        UserError: transformers is not installed, or the model is of no known family, or the size does not fit.
    """

    def __init__(self, *, name: str, description: dict[str, Any], preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name = name
        self.preprocessing = preprocessing
        self.network = _build(name, description)
        self.description: dict[str, Any] = json.loads(self._hf.config.to_json_string(use_diff=False))
        self.family = family_of(name, self.description)
        self.depth = len(self.block_modules())
        self._patch = 1 if self.family.prefix is None else int(self._hf.config.patch_size)
        check_size(name, self._patch, preprocessing.size)

    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        """See `Backbone.forward`; ValueError for a block it lacks."""
        if not blocks or not all(1 <= b <= self.depth for b in blocks):
            raise ValueError(f"blocks {blocks} are not among 1 to {self.depth}")
        states = self._states(images_BCHW, set(blocks))
        grid = (images_BCHW.shape[2] // self._patch, images_BCHW.shape[3] // self._patch)
        if self.family.prefix is None:
            return tuple(self._map_features(b, states[b]) for b in blocks)
        return tuple(self._token_features(b, states[b], self.family.prefix, grid) for b in blocks)

    def _states(self, images_BCHW: Tensor, blocks: set[int]) -> dict[int, Tensor]:
        """The outputs of the blocks, taken as they go by; the network is left after the highest."""
        states: dict[int, Tensor] = {}

        def take(block: int, output: Any) -> None:
            states[block] = output[0] if isinstance(output, tuple) else output
            if block == max(blocks):
                raise _Enough

        modules = self.block_modules()
        hooks = [
            modules[b - 1].register_forward_hook(lambda _module, _inputs, output, b=b: take(b, output)) for b in blocks
        ]
        try:
            self.network(images_BCHW, **self._inputs(images_BCHW))
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return states

    def _inputs(self, images_BCHW: Tensor) -> dict[str, Any]:
        if self.family.prefix is None:
            return {}
        inputs: dict[str, Any] = {"interpolate_pos_encoding": True}
        if self.description["model_type"] == "vit_mae":
            # It masks patches in the order of this noise: rising noise and a mask ratio of 0 leave all as they are.
            patches = (images_BCHW.shape[2] // self._patch) * (images_BCHW.shape[3] // self._patch)
            rising_N = torch.arange(patches, device=images_BCHW.device, dtype=torch.float32)
            inputs["noise"] = rising_N.expand(len(images_BCHW), patches)
        return inputs

    def _token_features(self, block: int, tokens_BTD: Tensor, prefix: int, grid: tuple[int, int]) -> Features:
        registers = int(getattr(self._hf.config, "num_register_tokens", 0) or 0)
        if block == self.depth:
            tokens_BTD = self._norm()(tokens_BTD)
        patches_BND = tokens_BTD[:, prefix + registers :]
        if prefix:
            return Features(tokens_BTD[:, 0], patches_BND, grid)
        if block == self.depth and self.family.head is not None:
            return Features(self.network.get_submodule(self.family.head)(patches_BND), patches_BND, grid)
        return Features(patches_BND.mean(dim=1), patches_BND, grid)

    def _map_features(self, block: int, map_BDhw: Tensor) -> Features:
        patches_BND = map_BDhw.flatten(2).transpose(1, 2)
        pooled_BD = patches_BND.mean(dim=1)
        if block == self.depth:
            pooled_BD = self._norm()(pooled_BD)
        return Features(pooled_BD, patches_BND, (map_BDhw.shape[2], map_BDhw.shape[3]))

    def _norm(self) -> nn.Module:
        """BEiT with mean pooling keeps its final norm behind the pooling; tokens need it too."""
        if _pools_the_mean(self.description):
            return self.network.get_submodule("pooler.layernorm")
        return self.network.get_submodule(self.family.norm)

    def block_modules(self) -> tuple[nn.Module, ...]:
        """See `Backbone.block_modules`."""
        return tuple(self.network.get_submodule(self.family.blocks).children())

    @property
    def _hf(self) -> Any:
        """The network, with the attributes that nn.Module does not declare."""
        return self.network

    def weights_hash(self) -> str:
        """See `Backbone.weights_hash`; covers the dtypes, too."""
        return hash_weights(self.network)

    def spec(self) -> dict[str, str | int | bool]:
        """See `Backbone.spec`; `TransformersBackbone.from_spec` reads it."""
        return {
            "library": "transformers",
            "name": self.name,
            "description": json.dumps(self.description, sort_keys=True),
            "preprocessing": self.preprocessing.model_dump_json(),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, str | int | bool]) -> TransformersBackbone:
        """The architecture that `spec` described, with random weights; reaches no network."""
        return cls(
            name=str(spec["name"]),
            description=json.loads(str(spec["description"])),
            preprocessing=Preprocessing.model_validate_json(str(spec["preprocessing"])),
        )


def require_transformers(name: str) -> None:
    """Raise UserError if transformers is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{name} needs the package transformers: install it with pip install 'keepsight[transformers]'."
        ) from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block transformers prints neither reports nor bars: our own load report says what was loaded."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def family_of(name: str, description: dict[str, Any]) -> Family:
    """The family of a described model; UserError if it is of none."""
    kind = description.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        known = ", ".join(sorted([*FAMILIES, *TWO_TOWERS]))
        raise UserError(f"{name} is a model of type {kind}, which is not supported: choose one of type {known}.")
    return family


def _pools_the_mean(description: dict[str, Any]) -> bool:
    return description["model_type"] == "beit" and bool(description.get("use_mean_pooling", True))


def _build(name: str, description: dict[str, Any]) -> nn.Module:
    """The network with random weights, in float32."""
    require_transformers(name)
    try:
        model, config, arguments = class_of(name, description)
        with quiet_transformers():
            network: nn.Module = model(config, **arguments)
    except UserError:
        raise
    except Exception as error:  # what somebody else's description can do wrong has no end
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The config.json of {name} describes no model that can be built ({reason}).") from error
    return network


def class_of(name: str, description: dict[str, Any]) -> tuple[Any, Any, dict[str, bool]]:
    """transformers' class, its config, and the other arguments."""
    import transformers

    family = family_of(name, description)
    arguments = dict(family.arguments)
    if _pools_the_mean(description):
        arguments["add_pooling_layer"] = True
    settings = {key: value for key, value in description.items() if key not in ("model_type", "auto_map", "dtype")}
    if description["model_type"] == "vit_mae":
        settings["mask_ratio"] = 0.0
    with quiet_transformers():
        config = transformers.AutoConfig.for_model(description["model_type"], **settings)
    return getattr(transformers, family.model), config, arguments
