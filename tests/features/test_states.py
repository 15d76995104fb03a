"""States of fixed views: right, computed once, and training on them equals training through the whole backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from keepsight.adapters.lora import LoraConfig
from keepsight.adapters.orthogonal import OftConfig
from keepsight.backbones.cut import prefix
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, ImageList, Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig, load_batch, view_seeds
from keepsight.features.states import States
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.train import ImageBatches, OptimConfig, StateBatches, TrainConfig, train

INDICES, AUGMENTATION, VIEWS = np.arange(3, 17), AugmentConfig(), 3


@pytest.fixture(scope="module")
def vit() -> Backbone:
    arguments = {"embed_dim": 32, "depth": 4, "num_heads": 2, "init_values": 1.0}
    return load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)


@pytest.fixture(scope="module")
def images() -> ImageList:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8))


def states(folder: Path, vit: Backbone, images: ImageList) -> States:
    return States(folder, vit, 2, images, INDICES, AUGMENTATION, VIEWS, seed=4)


def test_views_come_in_turn_and_are_what_the_prefix_gives(tmp_path: Path, vit: Backbone, images: ImageList) -> None:
    found = states(tmp_path, vit, images).read(np.array([16, 3]), np.array([5, 1]))
    seeds = view_seeds(4, np.array([16, 3]), np.array([2, 1]))
    with torch.no_grad():
        batch = load_batch(images, [16, 3], vit.preprocessing, AUGMENTATION, seeds)
        torch.testing.assert_close(found, prefix(vit, batch, 2), atol=1e-5, rtol=1e-4)


def test_a_second_start_computes_nothing(tmp_path: Path, vit: Backbone, images: ImageList) -> None:
    first = states(tmp_path, vit, images).read(INDICES, np.zeros(14, np.int64))

    class Unreadable(ArrayImages):
        def load(self, index: int) -> None:
            raise AssertionError("read again")

    again = states(tmp_path, vit, Unreadable(np.zeros((20, 28, 28), np.uint8))).read(INDICES, np.zeros(14, np.int64))
    assert torch.equal(first, again)


@pytest.mark.parametrize("adapter", ["lora", "full", "bitfit", "adaptformer", "vpt", "oft", "osf"])
def test_training_on_states_equals_training_on_the_views(
    tmp_path: Path, vit: Backbone, images: ImageList, adapter: Adapter
) -> None:
    labels, readout = np.arange(20) % 2, Readout(blocks=(3, 4), pools=("mean",))
    config = FinetuneConfig(first_block=3, lora=LoraConfig(rank=2), oft=OftConfig(block_size=8))
    optim = OptimConfig(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0)
    ended = {}
    for kind in ("images", "states"):
        torch.manual_seed(0)
        head = LinearHead(features=64, classes=2)
        torch.nn.init.normal_(head.weight_KF, std=0.1)
        method = Finetune(copy.deepcopy(vit), readout, head, adapter, config, from_states=kind == "states")
        stream = Stream(INDICES, 4, 0)
        if kind == "states":
            source: ImageBatches | StateBatches = StateBatches(states(tmp_path / "s", vit, images), labels, stream)
        else:
            source = ImageBatches(images, labels, stream, None, vit.preprocessing, AUGMENTATION, 4, VIEWS)
        ended[kind] = train(method, source, 12, TrainConfig(optim=optim), tmp_path / kind).state
    assert ended["images"].keys() == ended["states"].keys()
    for name, expected in ended["images"].items():
        torch.testing.assert_close(ended["states"][name], expected, atol=1e-5, rtol=1e-4)
