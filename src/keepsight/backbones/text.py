"""Text towers: sentences in, embeddings of unit length out. Knows no image and no method.

``minilm_l6`` is a sentence encoder that comes through pip. ``open_clip:...`` names give the text tower of a CLIP-like model, whose
embeddings are compared with `OpenClipBackbone.project`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.assets import load_tensors
from keepsight.assets.minilm import DESCRIPTION, TOKENIZER
from keepsight.backbones.config import OPEN_CLIP, BackboneConfig
from keepsight.backbones.hub import hub_file
from keepsight.backbones.huggingface import quiet_transformers, require_transformers
from keepsight.backbones.open_clip_models import OpenClipBackbone, check_supported, empty_image_tower, fill_image_tower
from keepsight.backbones.open_clip_names import DESCRIPTION as OPEN_CLIP_DESCRIPTION
from keepsight.backbones.open_clip_names import OpenClipModel, describe
from keepsight.backbones.weights import fill, hash_weights
from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.core.text import TextTower

MINILM = "minilm_l6"

MINILM_TOKENS = 256
"""Longest text of MiniLM-L6 as published, in tokens; what is longer is cut."""

NO_IMAGE = {"layers": 1, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 16}
"""The smallest image tower: open_clip builds both, and only the text tower is kept."""

OTHER_MODEL = "a model with open_clip's own text tower and tokenizer, such as open_clip:ViT-B-32"


@final
class MiniLM(TextTower):
    """MiniLM-L6 (Wang et al. 2020, arXiv 2002.10957) as the sentence encoder all-MiniLM-L6-v2: mean of the tokens, unit length.

    Args:
        tensors: Weights, tokenizer and description as `keepsight.assets.minilm.read_minilm` gives them.

    Raises:
        UserError: transformers is not installed.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        require_transformers(MINILM)
        import tokenizers
        import transformers

        texts = {name: bytes(tensors[name].numpy()).decode() for name in (TOKENIZER, DESCRIPTION)}
        weights = {name: tensor for name, tensor in tensors.items() if name not in texts}
        with quiet_transformers():
            network, found = transformers.BertModel.from_pretrained(
                None,
                config=transformers.BertConfig.from_dict(json.loads(texts[DESCRIPTION])),
                state_dict=weights,
                dtype=torch.float32,
                output_loading_info=True,
                add_pooling_layer=False,
            )
        if found["missing_keys"] or found["unexpected_keys"]:
            raise RuntimeError(f"the installed transformers does not load {MINILM} as it should: {found}")
        self.name = MINILM
        self.width = int(network.config.hidden_size)
        self.network: nn.Module = network
        self._tokenizer = tokenizers.Tokenizer.from_str(texts[TOKENIZER])
        self._tokenizer.enable_truncation(MINILM_TOKENS)
        self._tokenizer.enable_padding()
        self._told = False

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextTower.encode`: e = m / |m|, m the mean of the last layer's tokens that are not padding."""
        if not texts:
            return torch.empty(0, self.width)
        device = next(self.parameters()).device
        encoded = self._tokenizer.encode_batch(list(texts))
        cut = sum(bool(e.overflowing) for e in encoded)
        self._told = _tell(self.name, cut, len(texts), MINILM_TOKENS, self._told)
        ids_BL = torch.tensor([e.ids for e in encoded], device=device)
        mask_BL = torch.tensor([e.attention_mask for e in encoded], device=device)
        tokens_BLE = self.network(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        weights_BL1 = mask_BL[:, :, None].to(tokens_BLE.dtype)
        mean_BE = (tokens_BLE * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1)
        return F.normalize(mean_BE, dim=1)

    def weights_hash(self) -> str:
        """See `TextTower.weights_hash`."""
        return hash_weights(self.network)


@final
class OpenClipText(TextTower):
    """The text tower of an open_clip model.

    Attributes:
        network: open_clip's model without its image tower.

    Raises:
        UserError: The architecture cannot be built, or its tokenizer cannot be had.
    """

    def __init__(self, source: OpenClipModel) -> None:
        super().__init__()
        self.name = source.name
        self.width = int(source.model["embed_dim"])
        self.network = _text_only(source)
        self._tokenizer = _tokenizer(source)
        self._length = int(source.model["text_cfg"].get("context_length", 77))
        self._told = False

    def encode(self, texts: Sequence[str]) -> Tensor:
        """See `TextTower.encode`: open_clip's own `encode_text`, of unit length."""
        if not texts:
            return torch.empty(0, self.width)
        device = next(self.parameters()).device
        tokens_BL = self._tokenizer(list(texts), context_length=self._length)
        # A text that is cut ends here with the end-of-text token, and with a word where one more token is allowed.
        longer_BL = self._tokenizer(list(texts), context_length=self._length + 1)[:, : self._length]
        cut = int((tokens_BL != longer_BL).any(dim=1).sum())
        self._told = _tell(self.name, cut, len(texts), self._length, self._told)
        network: Any = self.network
        return F.normalize(network.encode_text(tokens_BL.to(device)), dim=1)

    def logit_scale(self) -> float:
        """The factor on cosine similarities before the softmax over texts that the model was trained with."""
        scale: Any = self.network.logit_scale
        return float(scale.detach().exp())

    def weights_hash(self) -> str:
        """See `TextTower.weights_hash`."""
        return hash_weights(self.network)


def load_text_tower(name: str, *, weights: str = "pretrained", allow_partial: bool = False) -> TextTower:
    """A filled text tower in eval mode.

    Args:
        name: ``minilm_l6``, ``open_clip:ARCH/TAG``, ``open_clip:hf-hub:ORG/NAME``, or a directory as open_clip saves models.
        weights: ``pretrained``, ``random`` (open_clip only), or a weight file or directory of a whole CLIP model.
        allow_partial: Accept weights that do not fill the whole tower.

    Raises:
        UserError: Unknown name, unsuitable weights, unreachable hub, or a library that is not installed.
    """
    if name == MINILM:
        if weights != "pretrained":
            raise UserError(f"The text tower {MINILM} has its own weights: leave out weights={weights}.")
        require_transformers(MINILM)
        return MiniLM(load_tensors(MINILM)).eval()
    if not name.startswith(OPEN_CLIP) and not (Path(name) / OPEN_CLIP_DESCRIPTION).is_file():
        raise UserError(f"There is no text tower called {name!r}: use {MINILM}, or {OPEN_CLIP}ARCH/TAG.")
    config = BackboneConfig(name=name, weights=weights, allow_partial=allow_partial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = describe(config)
        found = None if weights == "random" else source.weights()
        tower = OpenClipText(source)
        if found is not None:
            _fill_text(tower, *found, allow_partial=allow_partial)
    return tower.eval()


def load_open_clip_pair(backbone: BackboneConfig | str, **options: Any) -> tuple[OpenClipBackbone, OpenClipText]:
    """Both towers of an open_clip model in eval mode; the weights are read once.

    Args:
        backbone: A config, or the name alone, as for `load_backbone`.
        **options: With a name: the other fields of `BackboneConfig`.

    Raises:
        UserError: See `load_backbone`.
    """
    config = BackboneConfig(name=backbone, **options) if isinstance(backbone, str) else backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        source = describe(config)
        check_supported(source.model)
        found = None if config.weights == "random" else source.weights()
        image, text = empty_image_tower(config, source), OpenClipText(source)
        if found is not None:
            fill_image_tower(image, *found, allow_partial=config.allow_partial)
            _fill_text(text, *found, allow_partial=config.allow_partial)
    return image.eval(), text.eval()


def _text_only(source: OpenClipModel) -> nn.Module:
    """open_clip's model with random weights; its image tower and its caption decoder are thrown away."""
    import open_clip

    model = {key: value for key, value in source.model.items() if key not in ("vision_cfg", "custom_text")}
    model["text_cfg"] = text = dict(model["text_cfg"])
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        hub_file(text["hf_model_name"], ("config.json",), OTHER_MODEL)
    kind = open_clip.CLIP
    if "multimodal_cfg" in model:
        kind = open_clip.CoCa
    elif source.model.get("custom_text") or "hf_model_name" in text:
        kind = open_clip.CustomTextCLIP
    try:
        network: nn.Module = kind(vision_cfg=NO_IMAGE, **model)
    except Exception as error:  # towers of other libraries ask the hub for their description, with errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"The text tower of {source.name} cannot be built ({reason}): choose another model.") from error
    for other in ("visual", "text_decoder"):
        if other in dict(network.named_children()):
            setattr(network, other, nn.Identity())
    return network


def _tokenizer(source: OpenClipModel) -> Any:
    import open_clip

    tokenizer = source.model["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and not source.tokenizer.startswith("local-dir:"):
        # transformers would try for most of a minute before it gave up; this question fails at once.
        hub_file(tokenizer, ("tokenizer_config.json", "tokenizer.json", "config.json"), OTHER_MODEL)
    try:
        return open_clip.get_tokenizer(source.tokenizer)
    except Exception as error:  # tokenizers of other libraries come from the hub, with errors of many kinds
        raise UserError(
            f"The tokenizer of {source.name} cannot be fetched from the model hub ({type(error).__name__}): use "
            f"{OTHER_MODEL}."
        ) from error


def _fill_text(tower: OpenClipText, content: Mapping[str, Any], source: str, *, allow_partial: bool) -> None:
    convert = partial(_converted, network=tower.network)
    report = fill(tower.network, tower.name, content, source=source, allow_partial=allow_partial, convert=convert)
    log.info("%s: loaded %s", source, report)


def _converted(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """One reading of a file under the names of open_clip's model without its image tower."""
    import open_clip

    target = network.state_dict()
    texts = {name: tensor for name, tensor in tensors.items() if not name.startswith(("visual.", "text_decoder."))}
    if not any(name.endswith(("token_embedding.weight", "word_embeddings.weight")) for name in texts):
        return {}  # an image tower alone has some of the same names
    if any(name.startswith("text.") for name in target):
        texts = open_clip.model.convert_to_custom_text_state_dict(texts)
    # Old files have the scale as a scalar, new models may have it as a vector of one.
    return {
        name: tensor.reshape(target[name].shape)
        if name in target and tensor.numel() == target[name].numel() == 1
        else tensor
        for name, tensor in texts.items()
    }


def _tell(name: str, cut: int, total: int, length: int, told: bool) -> bool:
    """Say once that texts were cut; whether it has been said."""
    if cut and not told:
        log.warning("%s: %d of %d texts are longer than %d tokens and were cut", name, cut, total, length)
    return told or cut > 0
