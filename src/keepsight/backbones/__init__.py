"""Pretrained vision models behind one contract (packaged, timm's, open_clip's, transformers', local files), and text towers."""

from keepsight.backbones.load import BackboneConfig, BackboneEntry, build_backbone, list_backbones, load_backbone
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.backbones.weights import LoadReport

__all__ = [
    "BackboneConfig",
    "BackboneEntry",
    "LoadReport",
    "TimmBackbone",
    "build_backbone",
    "list_backbones",
    "load_backbone",
]
