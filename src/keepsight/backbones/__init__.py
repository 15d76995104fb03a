"""Pretrained vision models behind one contract: packaged ones, timm's, and local weight files."""

from keepsight.backbones.load import BackboneConfig, BackboneEntry, list_backbones, load_backbone
from keepsight.backbones.timm_models import TimmBackbone, build_backbone
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
