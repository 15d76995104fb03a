"""The backbones whose weights come out of packages: architecture, input, and golden features every load must give."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor, nn

from keepsight.assets import load_tensors
from keepsight.backbones.timm_models import TimmBackbone
from keepsight.backbones.weights import LoadReport, fill
from keepsight.core import Preprocessing

GOLDEN_SIZE = 56
"""Side of the golden input, px."""

GOLDEN_TOLERANCE = 1e-3
"""Share of the largest golden figure; kernels and instruction sets differ by about 1e-6, a wrong layer by about 1."""


def _bicubic_positions(weights: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Resample the position grid as these weights' own graph does: bicubic, half-pixel centres, no antialiasing."""
    stored_1ND = weights["pos_embed"]
    patch = weights["patch_embed.proj.weight"].shape[-1]
    old, new = math.isqrt(stored_1ND.shape[1] - 1), size // patch
    grid_1Dhw = stored_1ND[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid_1Dhw = nn.functional.interpolate(
        grid_1Dhw, size=(new, new), mode="bicubic", align_corners=False, antialias=False
    )
    patches_1ND = grid_1Dhw.flatten(2).transpose(1, 2)
    return weights | {"pos_embed": torch.cat([stored_1ND[:, :1], patches_1ND], dim=1)}


def _unchanged(weights: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    del size
    return weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """One backbone; its asset has the same name.

    Attributes:
        architecture: timm's name.
        parameters: Of the backbone as stored, without any head.
        preprocessing: What the weights were trained with.
        resize: Fits the stored weights to an input size.
    """

    architecture: str
    parameters: int
    preprocessing: Preprocessing
    resize: Callable[[dict[str, Tensor], int], dict[str, Tensor]]


PACKAGED: dict[str, Packaged] = {
    "vit_s14_imgfocus": Packaged(
        architecture="vit_small_patch14_dinov2",
        parameters=22_056_192,
        preprocessing=Preprocessing(
            size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
        ),
        resize=_bicubic_positions,
    ),
    "efficientnet_lite0": Packaged(
        architecture="tf_efficientnet_lite0",
        parameters=3_371_008,
        # The Lite family was trained on (x - 127) / 128 of 8-bit values.
        preprocessing=Preprocessing(
            size=224,
            mean=(127 / 255, 127 / 255, 127 / 255),
            std=(128 / 255, 128 / 255, 128 / 255),
            interpolation="bicubic",
            crop_fraction=0.875,
        ),
        resize=_unchanged,
    ),
}


def fill_packaged(backbone: TimmBackbone, name: str) -> LoadReport:
    """Fill an empty backbone of the right architecture and check the golden features of the result.

    Raises RuntimeError if they differ: then this combination of library versions computes something else, and no figure
    made with it could be trusted.
    """
    weights = load_tensors(name)
    report = _fill(backbone, name, weights)
    checked = backbone
    if backbone.preprocessing.size != GOLDEN_SIZE:
        checked = TimmBackbone(
            name=name,
            architecture=backbone.architecture,
            preprocessing=backbone.preprocessing.model_copy(update={"size": GOLDEN_SIZE}),
        )
        _fill(checked, name, weights)
    expected = json.loads(resources.files(__package__).joinpath("golden.json").read_text())[name]
    check_golden(golden_features(checked), expected, name)
    return report


def _fill(backbone: TimmBackbone, name: str, weights: dict[str, Tensor]) -> LoadReport:
    resized = PACKAGED[name].resize(weights, backbone.preprocessing.size)
    return fill(backbone.network, backbone.architecture, resized, source=name, allow_partial=False)


def golden_input() -> Tensor:
    """A smooth image [1, 3, 56, 56] made of waves: the same numbers everywhere, from no random generator."""
    y, x = torch.meshgrid(torch.arange(GOLDEN_SIZE), torch.arange(GOLDEN_SIZE), indexing="ij")
    return torch.stack([torch.sin(0.11 * (c + 1) * x + 0.07 * (c + 2) * y) for c in range(3)])[None]


def golden_features(backbone: TimmBackbone) -> dict[str, list[float]]:
    """Four numbers of a middle block and of the last one, which every channel and every patch contributes to.

    With waves u_d = cos(d) over channels and v_n = cos(n) over patches: cls · u, mean patch · u, v · patches · u, and
    the standard deviation of the patches.
    """
    blocks = (backbone.depth // 2, backbone.depth)
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        outputs = backbone(golden_input(), blocks)
    backbone.train(training)
    figures: dict[str, list[float]] = {}
    for block, features in zip(blocks, outputs, strict=True):
        cls_C, patches_ND = features.cls[0], features.patches[0]
        u_D, v_N = torch.cos(torch.arange(patches_ND.shape[1])), torch.cos(torch.arange(patches_ND.shape[0]))
        numbers = (cls_C @ u_D, patches_ND.mean(dim=0) @ u_D, v_N @ patches_ND @ u_D, patches_ND.std())
        figures[str(block)] = [n.item() for n in numbers]
    return figures


def check_golden(found: dict[str, list[float]], expected: dict[str, list[float]], name: str) -> None:
    """Raise RuntimeError unless the features are the expected ones."""
    for block, values in expected.items():
        error = max(abs(a - b) for a, b in zip(found[block], values, strict=True)) / max(abs(v) for v in values)
        if not error <= GOLDEN_TOLERANCE:
            raise RuntimeError(
                f"The packaged backbone {name} gives other features than recorded (block {block}: {error:.1%} off): "
                f"the installed torch and timm do not run it as they should, so nothing it gives could be trusted."
            )
