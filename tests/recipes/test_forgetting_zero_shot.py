"""Zero-shot accuracy where the model has a text tower: what open_clip itself says, before and after."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from keepsight.backbones.load import load_backbone
from keepsight.core import Dataset, Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.evaluate.forgetting import ProbeRule
from keepsight.export.model import TunedModel
from keepsight.heads.linear import LinearHead
from keepsight.recipes import suite as suite_module
from keepsight.recipes.forgetting import forgetting
from keepsight.recipes.forgetting_settings import ForgettingConfig

open_clip = pytest.importorskip("open_clip")

VIT = {"width": 32, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 16}
TEXT = {"width": 32, "heads": 2, "layers": 2, "context_length": 12}


def test_zero_shot_is_open_clips_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(4)
    network = open_clip.CLIP(embed_dim=24, vision_cfg=VIT, text_cfg=TEXT).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    folder = tmp_path / "clip"
    folder.mkdir()
    model = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    before = load_backbone(str(folder))
    after = copy.deepcopy(before)
    with torch.no_grad():
        for parameter in after.network.parameters():
            parameter.mul_(1.3)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    data = Dataset("noise", ArrayImages(pixels), np.arange(60) % 3, ("cat", "hot_dog", "tree"), ("",) * 60)
    monkeypatch.setattr(suite_module, "load_dataset", lambda *_, **__: data)
    tuned = TunedModel("finetune-full", after, Readout.parse("last:cls"), LinearHead(32, 3), data.classes)
    config = ForgettingConfig(suite=("noise",), rule=ProbeRule(strengths=(1e-3,)))
    found = forgetting(tuned, tmp_path / "out", against=before, config=config).findings
    assert found is not None
    figure = found.mean["zero_shot_accuracy"]

    images = load_batch(data.images, np.arange(60), before.preprocessing)
    tokens = open_clip.SimpleTokenizer(context_length=12)(
        ["a photo of a cat.", "a photo of a hot dog.", "a photo of a tree."]
    )
    with torch.no_grad():
        said = network.encode_image(images, normalize=True) @ network.encode_text(tokens, normalize=True).T
    assert figure.before == pytest.approx((said.argmax(dim=1).numpy() == data.labels).mean())
    assert figure.after != figure.before
