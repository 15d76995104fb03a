"""`compile=true` really compiles and trains to the same weights; slow, since the compiler starts a C++ compiler."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from keepsight.backbones.load import load_backbone
from keepsight.core import Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.streams import Stream
from keepsight.heads.linear import LinearHead
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.train import ImageBatches, OptimConfig, TrainConfig, train


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiled_training_equals_eager(tmp_path: Path) -> None:
    arguments = {"embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 1.0}
    vit = load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8))
    source = ImageBatches(images, np.arange(16) % 2, Stream(np.arange(16), 8, 0), None, vit.preprocessing, None, 0)
    states, counted = [], []
    for compiled in (False, True):
        counters.clear()
        torch.manual_seed(0)
        head = LinearHead(features=32, classes=2)
        torch.nn.init.normal_(head.weight_KF, std=0.1)
        readout = Readout(blocks=(2,), pools=("mean",))
        method = Finetune(copy.deepcopy(vit), readout, head, "lora", FinetuneConfig())
        optim = OptimConfig(name="sgd", lr=0.05, momentum=0.0)
        states.append(
            train(method, source, 5, TrainConfig(optim=optim, compile=compiled), tmp_path / str(compiled)).state
        )
        counted.append(counters["stats"]["unique_graphs"])
        method.encoder.merge()
        method.logits(torch.zeros(3, 3, 28, 28))
    assert counted[0] == 0 < counted[1]
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-5, rtol=1e-3)
