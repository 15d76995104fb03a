"""A tuned backbone alone, without a head, in timm's or open_clip's own layout: for them and for `--backbone`. Knows no training.

The folder holds `model.safetensors` (names as in the library itself), `config.json` (timm alone; `local-dir:FOLDER` reads it),
`keepsight.json` (what `load_backbone` rebuilds it from) and, where LoRA was trained, PEFT's `adapter/`: how the weights came from
the untuned ones, which hold it already.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from keepsight.adapters.kept import kept_adapters
from keepsight.adapters.lora import SplitQKV
from keepsight.backbones.load import load_backbone
from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.backbones.saved import SAVED, SavedBackbone
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.core import Backbone, UserError
from keepsight.core.files import atomic_directory
from keepsight.export.adapter import FusedAdapter
from keepsight.export.timm_layout import write_timm

WEIGHTS, ADAPTER = "model.safetensors", "adapter"


def save_tuned_backbone(folder: Path, backbone: Backbone, adapter: FusedAdapter | None, version: str) -> None:
    """Write the folder, atomically.

    Args:
        folder: Where to.
        backbone: With its adapters merged.
        adapter: What LoRA added to the weights (`fused_adapter`, called before merging); None for none.
        version: Of keepsight.

    Raises:
        UserError: The backbone is of neither library, or carries adapters that cannot be merged.
    """
    if kept_adapters(backbone) is not None:
        raise UserError(
            f"The backbone {backbone.name} carries adapters that cannot be merged (AdaptFormer or prompts): tune it with LoRA "
            "to get weights in its library's own layout."
        )
    if not isinstance(backbone, TimmBackbone | OpenClipBackbone):
        raise UserError(f"The backbone {backbone.name} is neither timm's nor open_clip's: it has no layout of theirs.")
    if any(isinstance(module, SplitQKV) for module in backbone.network.modules()):
        raise ValueError("merge the adapters first")
    saved = SavedBackbone(keepsight=version, backbone=backbone.spec())
    with atomic_directory(folder) as temporary:
        if isinstance(backbone, TimmBackbone):
            write_timm(temporary, backbone.network, backbone, {})
        else:  # the state dict of ``model.visual``: a whole CLIP takes it with that prefix
            state = backbone.native_state_dict()
            tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / SAVED).write_text(saved.model_dump_json(indent=2), encoding="utf-8")
        if adapter is not None:
            adapter.save(temporary / ADAPTER)


def load_tuned_backbone(folder: str | Path) -> Backbone:
    """What `save_tuned_backbone` wrote, in eval mode; `load_backbone` and `--backbone` take the folder, too.

    Raises:
        UserError: It is not such a folder, damaged or incomplete.
    """
    SavedBackbone.read(Path(folder))
    return load_backbone(f"{Path(folder)}/")
