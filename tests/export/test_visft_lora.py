"""Published LoRA files against loralib's own formula, written out here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, UserError
from keepsight.export.visft_lora import merge_visft_lora, read_visft_lora

RANK, WIDTH, DEPTH = 3, 32, 2


class MergedLinear(nn.Module):
    """loralib's fused layer with LoRA on q and v: x W^T + (zero_pad(conv1d(A, B, groups=2)) x) alpha / r."""

    enable_lora = (True, False, True)

    def __init__(self, base: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = base, a, b
        self.weight, self.bias = base.weight, base.bias
        self.scaling = 1 / RANK

    def forward(self, x: Tensor) -> Tensor:
        delta = F.conv1d(self.lora_A[None], self.lora_B[:, :, None], groups=sum(self.enable_lora))[0]
        index = torch.tensor(self.enable_lora).repeat_interleave(self.base.out_features // 3)
        padded = x.new_zeros(self.base.out_features, x.shape[-1])
        padded[index] = delta
        return self.base(x) + x @ padded.T * self.scaling


@pytest.fixture
def backbone() -> Backbone:
    arguments = {"embed_dim": WIDTH, "num_heads": 2, "depth": DEPTH}
    backbone = load_backbone("eva_giant_patch14_clip_224", weights="random", size=28, timm_args=arguments)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in backbone.network.named_parameters():
            if name.endswith(("q_bias", "v_bias")):
                p.copy_(torch.randn(p.shape, generator=generator))
    return backbone


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    found = {}
    for i in range(DEPTH):
        found[f"visual.blocks.{i}.attn.qkv.lora_A"] = torch.randn(2 * RANK, WIDTH, generator=generator)
        found[f"visual.blocks.{i}.attn.qkv.lora_B"] = torch.randn(2 * WIDTH, RANK, generator=generator)
    return found


def outputs(backbone: Backbone) -> Tensor:
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        return backbone(images, (DEPTH,))[0].patches


def test_merged_outputs_are_loralibs(backbone: Backbone, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    theirs = copy.deepcopy(backbone)
    for i in range(DEPTH):
        path = f"blocks.{i}.attn.qkv"
        fused = theirs.network.get_submodule(path)
        assert isinstance(fused, nn.Linear)
        a, b = (tensors[f"visual.{path}.lora_{which}"] for which in "AB")
        theirs.network.set_submodule(path, MergedLinear(fused, a, b))
    untuned = outputs(backbone)
    torch.save(tensors, tmp_path / "lora.pt")
    merge_visft_lora(backbone, read_visft_lora(tmp_path / "lora.pt"))
    assert (outputs(theirs) - untuned).abs().max() > 0.01
    torch.testing.assert_close(outputs(backbone), outputs(theirs), atol=1e-5, rtol=1e-5)


def test_every_way_the_names_may_come(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "published.pt")
    save_file(tensors, tmp_path / "published.safetensors")
    whole = {name.replace("visual.", "visft_heads.backbone.0."): t for name, t in tensors.items()}
    torch.save({"model": whole | {"visft_heads.class_embeds.weight": torch.zeros(2)}}, tmp_path / "training.ckpt")
    torch.save({name.removeprefix("visual."): t for name, t in tensors.items()}, tmp_path / "bare.pth")
    first = read_visft_lora(tmp_path / "published.pt")
    assert list(first) == [0, 1]
    assert [tuple(t.shape) for t in first[0]] == [(RANK, WIDTH), (WIDTH, RANK)] * 2
    for name in ("published.safetensors", "training.ckpt", "bare.pth"):
        found = read_visft_lora(tmp_path / name)
        assert all(torch.equal(x, y) for i in first for x, y in zip(first[i], found[i], strict=True))


def test_files_that_will_not_do(backbone: Backbone, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    def written(content: dict[str, Tensor]) -> Path:
        torch.save(content, tmp_path / "lora.pt")
        return tmp_path / "lora.pt"

    with pytest.raises(UserError, match="holds no LoRA of ViSFT"):
        read_visft_lora(written({"visual.blocks.0.attn.qkv.weight": torch.zeros(3)}))
    a = "visual.blocks.1.attn.qkv.lora_A"
    with pytest.raises(UserError, match="lacks lora_A of block 1"):
        read_visft_lora(written({name: t for name, t in tensors.items() if name != a}))
    with pytest.raises(UserError, match=r"block 1 .* shapes \[5, 32\]"):
        read_visft_lora(written(tensors | {a: torch.zeros(5, WIDTH)}))
    before = outputs(backbone)
    lora = read_visft_lora(written(tensors))
    with pytest.raises(UserError, match=r"of 1 blocks, and .* in 2 blocks"):
        merge_visft_lora(backbone, {0: lora[0]})
    wide = torch.zeros(RANK, 48), torch.zeros(48, RANK)
    with pytest.raises(UserError, match="block 1 is 48 wide"):
        merge_visft_lora(backbone, lora | {1: (*wide, *wide)})
    with pytest.raises(UserError, match="no block"):
        merge_visft_lora(load_backbone("convnext_atto", weights="random", size=32), lora)
    assert torch.equal(outputs(backbone), before)


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    torch.save({"visual.blocks.0.attn.qkv.lora_A": Path("x")}, tmp_path / "lora.pt")
    with pytest.raises(UserError, match="pickled code"):
        read_visft_lora(tmp_path / "lora.pt")
