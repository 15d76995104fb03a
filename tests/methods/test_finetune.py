"""Fine-tuning: starts at the probe, learns, leaves what it must not change, merges."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from keepsight.adapters.kept import adapter_tensors
from keepsight.adapters.lora import IntruderConfig, LoraConfig
from keepsight.adapters.orthogonal import OftConfig
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Batch, Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.streams import Stream
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.train import ImageBatches, OptimConfig, TrainConfig, train

READOUT = Readout(blocks=(2,), pools=("mean",))
DORA = FinetuneConfig(lora=LoraConfig(variant="dora"))
KINDS: list[tuple[Adapter, FinetuneConfig, float]] = [
    ("full", FinetuneConfig(), 3e-3),
    ("lora", FinetuneConfig(), 3e-3),
    ("lora", DORA, 3e-3),
    ("bitfit", FinetuneConfig(), 3e-2),
    ("adaptformer", FinetuneConfig(), 1e-2),
    ("vpt", FinetuneConfig(), 1e-1),
    ("oft", FinetuneConfig(oft=OftConfig(block_size=8)), 3e-2),
    ("osf", FinetuneConfig(), 1e-2),
]
every_kind = pytest.mark.parametrize(
    ("adapter", "config", "lr"), KINDS, ids=lambda value: value if isinstance(value, str) else ""
)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    torch.manual_seed(0)
    arguments = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
    return load_backbone("vit_small_patch14_dinov2", weights="random", size=28, timm_args=arguments)


def head() -> LinearHead:
    made = LinearHead(features=32, classes=2)
    with torch.no_grad():
        made.weight_KF.normal_(generator=torch.Generator().manual_seed(1))
    return made


def bright_or_dark() -> tuple[ArrayImages, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 2
    pixels = rng.integers(0, 120, (24, 28, 28)) + 100 * labels[:, None, None]
    return ArrayImages(pixels.astype(np.uint8)), labels


@every_kind
def test_it_starts_where_backbone_and_head_are(
    vit: Backbone, adapter: Adapter, config: FinetuneConfig, lr: float
) -> None:
    images = torch.randn(3, 3, 28, 28)
    expected = head()(READOUT.read(vit(images, READOUT.blocks)))
    method = Finetune(copy.deepcopy(vit), READOUT, head(), adapter, config)
    found = method.logits(images)
    if adapter == "vpt":  # prompts are seen from the start
        assert 1e-4 < (found - expected).abs().max() < 1
    else:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@every_kind
def test_off_is_the_untouched_backbone_bit_for_bit(
    vit: Backbone, adapter: Adapter, config: FinetuneConfig, lr: float
) -> None:
    if adapter in ("full", "bitfit"):
        assert not Finetune(copy.deepcopy(vit), READOUT, head(), adapter, config).encoder.has_adapters
        return
    images = torch.randn(3, 3, 28, 28)
    expected = READOUT.read(vit(images, READOUT.blocks))
    encoder = Finetune(copy.deepcopy(vit), READOUT, head(), adapter, config).encoder
    assert encoder.has_adapters
    with torch.no_grad():
        for p in encoder.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape))
    assert not torch.allclose(encoder.read(images), expected, atol=1e-4)
    with encoder.untouched():
        assert torch.equal(encoder.read(images), expected)
    assert not torch.allclose(encoder.read(images), expected, atol=1e-4)


@every_kind
def test_it_learns_and_merged_logits_equal(
    vit: Backbone, adapter: Adapter, config: FinetuneConfig, lr: float, tmp_path: Path
) -> None:
    images, labels = bright_or_dark()
    backbone = copy.deepcopy(vit)
    method = Finetune(backbone, READOUT, head(), adapter, config)
    batches = ImageBatches(images, labels, Stream(np.arange(24), 8, 0), None, vit.preprocessing, None, 0)
    seen: list[float] = []
    training = TrainConfig(optim=OptimConfig(lr=lr))
    train(method, batches, 30, training, tmp_path, report=lambda _, f: seen.append(f["cross_entropy"]))
    assert np.mean(seen[-5:]) < 0.5 * np.mean(seen[:5])
    inputs = batches(0, 0, 1).inputs
    before = method.logits(inputs).detach()
    method.encoder.merge()
    torch.testing.assert_close(method.logits(inputs), before, atol=1e-4, rtol=1e-4)
    stays = adapter_tensors(backbone)
    assert bool(stays) == (adapter in ("adaptformer", "vpt"))
    assert [n for n in backbone.network.state_dict() if n not in stays] == list(vit.network.state_dict())
    assert not stays or not any(p.requires_grad for p in backbone.parameters())
    moved = {
        name
        for name, p in backbone.network.named_parameters()
        if name not in stays and not torch.equal(p, dict(vit.network.named_parameters())[name])
    }
    assert bool(moved) == (not stays)
    assert not any(name.startswith(("blocks.2.", "norm.")) for name in moved)
    if adapter in ("lora", "oft", "osf"):
        assert all(name.endswith("attn.qkv.weight") for name in moved)


def test_loss_is_the_mean_cross_entropy_of_the_labelled_images(vit: Backbone) -> None:
    method = Finetune(copy.deepcopy(vit), READOUT, head(), "full", FinetuneConfig())
    x, y = torch.randn(4, 3, 28, 28), torch.tensor([0, 1, 1, 0])
    expected = -torch.log_softmax(method.logits(x), 1)[torch.arange(4), y].mean()
    found = method.losses(Batch(x, y, x[:0]), "model", 0)
    assert set(found) == {"cross_entropy"}
    torch.testing.assert_close(found["cross_entropy"], expected)


def test_batch_norm_statistics_stay_as_pretrained() -> None:
    backbone = load_backbone("test_resnet", weights="random", size=64)
    readout = Readout(blocks=(2,), pools=("mean",))
    width = readout.read(backbone(torch.zeros(1, 3, 64, 64), (2,))).shape[1]
    before = {name: b.clone() for name, b in backbone.network.named_buffers()}
    method = Finetune(backbone, readout, LinearHead(features=width, classes=2), "full", FinetuneConfig())
    method.train()
    method.logits(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(b, before[name]) for name, b in backbone.network.named_buffers())


def test_layer_decay_scales_each_block(vit: Backbone, tmp_path: Path) -> None:
    config = FinetuneConfig(layer_decay=0.5)
    method = Finetune(copy.deepcopy(vit), READOUT, head(), "full", config)
    scales, named = method.lr_scales(), dict(method.encoder.backbone.network.named_parameters())
    assert scales[named["blocks.1.mlp.fc1.weight"]] == 0.5  # the block that is read
    assert scales[named["blocks.0.attn.qkv.weight"]] == 0.25
    assert scales[named["patch_embed.proj.weight"]] == scales[named["pos_embed"]] == 0.125
    assert all(p not in scales for p in method.head.parameters())
    # One step of SGD moves every weight by its scale times what it moves without decay.
    images, labels = bright_or_dark()
    batches = ImageBatches(images, labels, Stream(np.arange(24), 8, 0), None, vit.preprocessing, None, 0)
    plain = Finetune(copy.deepcopy(vit), READOUT, head(), "full", FinetuneConfig())
    sgd = TrainConfig(optim=OptimConfig(name="sgd", lr=0.1, momentum=0, weight_decay=0, clip=None, warmup=0))
    for number, trained in enumerate((method, plain)):
        train(trained, batches, 1, sgd, tmp_path / str(number))
    before = dict(vit.network.named_parameters())
    for name, p in plain.encoder.backbone.network.named_parameters():
        if scale := scales.get(named[name]):
            moved = named[name].detach() - before[name]
            torch.testing.assert_close(moved, scale * (p.detach() - before[name]), atol=1e-6, rtol=1e-3)


def test_a_random_head_forgets_the_probe(vit: Backbone) -> None:
    config = FinetuneConfig(head_start="random")
    method = Finetune(copy.deepcopy(vit), READOUT, head(), "lora", config)
    weight = method.head.state_dict()["weight_KF"]
    assert 0.003 < weight.std() < 0.03
    assert not torch.equal(weight, head().weight_KF)


def test_intruders_are_reduced_after_training_where_asked_for(vit: Backbone) -> None:
    reduced = []
    for intruders in (None, IntruderConfig(threshold=1.0, kept=0.0)):
        config = FinetuneConfig(lora=LoraConfig(intruders=intruders))
        method = Finetune(copy.deepcopy(vit), READOUT, head(), "lora", config)
        before = method.encoder.read(torch.ones(1, 3, 28, 28))
        method.encoder.after_training()
        reduced.append(not torch.allclose(method.encoder.read(torch.ones(1, 3, 28, 28)), before, atol=1e-3))
    assert reduced == [False, True]


@pytest.mark.parametrize("adapter", ["full", "lora", "adaptformer", "vpt"])
def test_checkpointed_blocks_train_to_the_same_weights(vit: Backbone, adapter: Adapter, tmp_path: Path) -> None:
    images, labels = bright_or_dark()
    batches = ImageBatches(images, labels, Stream(np.arange(24), 8, 0), None, vit.preprocessing, None, 0)
    states = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        config = FinetuneConfig(checkpoint_blocks=checkpointed)
        method = Finetune(copy.deepcopy(vit), READOUT, head(), adapter, config)
        sgd = TrainConfig(optim=OptimConfig(name="sgd", lr=0.05))
        states.append(train(method, batches, 4, sgd, tmp_path / str(checkpointed)).state)
        method.encoder.merge()
        method.logits(torch.zeros(1, 3, 28, 28))
    assert states[0].keys() == states[1].keys()
    for name, expected in states[0].items():
        torch.testing.assert_close(states[1][name], expected, atol=1e-5, rtol=1e-4)
