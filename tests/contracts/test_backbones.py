"""What every backbone promises, over one small instance of each family, with random weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from keepsight.backbones import TimmBackbone, build_backbone, load_backbone

TRANSFORMER = {"embed_dim": 32, "depth": 3, "num_heads": 2}


@dataclass(frozen=True)
class Case:
    """One architecture, how it is made small, and the figures it should have."""

    architecture: str
    size: int
    depth: int
    grids: tuple[int, ...]
    """Side of the grid of each block."""
    other_size: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    block_modules: tuple[str, ...] = ("blocks",)
    """Where the network keeps its blocks: a list of modules, or one module after another."""
    two_blocks: int = 2
    """How many of these run for the first two blocks; a CNN's first block may be its stem."""


def transformer(architecture: str, size: int, patch: int, other_size: int | None, **args: Any) -> Case:
    return Case(architecture, size, 3, (size // patch,) * 3, other_size, TRANSFORMER | args)


CASES = [
    Case("test_vit", 64, 6, (4,) * 6, 96),
    transformer("vit_small_patch14_dinov2", 56, 14, 84),
    transformer("vit_small_patch14_reg4_dinov2", 56, 14, 84),
    transformer("vit_small_patch16_dinov3", 64, 16, 96),
    transformer("vit_base_patch32_clip_224", 64, 32, 128),
    transformer("vit_base_patch16_siglip_224", 64, 16, 96),
    transformer("eva02_tiny_patch14_224", 56, 14, 84),
    transformer("beit_base_patch16_224", 64, 16, None),
    transformer("vit_base_patch16_radio_v3", 64, 16, 96),
    transformer("naflexvit_base_patch16_siglip", 64, 16, 96),
    Case(
        "swin_tiny_patch4_window7_224",
        56,
        4,
        (14, 7, 4, 2),
        None,
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        ("layers",),
    ),
    Case(
        "swinv2_tiny_window8_256",
        64,
        4,
        (16, 8, 4, 2),
        None,
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        ("layers",),
    ),
    Case("xcit_nano_12_p16_224", 64, 3, (4,) * 3, None, {"depth": 3, "embed_dim": 32, "num_heads": 2}),
    Case("test_convnext", 64, 4, (16, 8, 4, 2), 96, block_modules=("stages",)),
    Case(
        "test_resnet",
        64,
        5,
        (32, 16, 8, 4, 2),
        96,
        block_modules=("layer1", "layer2", "layer3", "layer4"),
        two_blocks=1,
    ),
    Case("mobilenetv3_small_050", 64, 5, (32, 16, 8, 4, 2), 96, two_blocks=1),
    Case("tf_efficientnet_lite0", 64, 6, (32, 16, 8, 4, 2, 2), 96),
]


def make(case: Case) -> TimmBackbone:
    torch.manual_seed(0)
    return load_backbone(case.architecture, weights="random", size=case.size, timm_args=case.args)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.architecture)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def backbone(case: Case) -> TimmBackbone:
    return make(case)


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@contextmanager
def counted_calls(modules: list[nn.Module]) -> Iterator[list[int]]:
    """The indices of the modules that run."""
    calls: list[int] = []
    hooks = [m.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, m in enumerate(modules)]
    yield calls
    for hook in hooks:
        hook.remove()


def test_features_of_every_block_have_the_promised_shape(case: Case, backbone: TimmBackbone) -> None:
    assert backbone.depth == case.depth
    with torch.no_grad():
        outputs = backbone(images(case.size), tuple(range(1, case.depth + 1)))
    for features, side in zip(outputs, case.grids, strict=True):
        assert features.grid == (side, side)
        assert features.patches.shape[:2] == (2, side * side)
        assert features.cls.shape[0] == 2
        assert torch.isfinite(features.cls).all()
        assert torch.isfinite(features.patches).all()
        # two different images give different features
        assert not torch.equal(features.patches[0], features.patches[1])
        assert not torch.equal(features.cls[0], features.cls[1])


@pytest.mark.parametrize(
    ("flexible", "size"),
    [(c, c.other_size) for c in CASES if c.other_size],
    ids=[c.architecture for c in CASES if c.other_size],
)
def test_other_sizes_at_forward_time(flexible: Case, size: int) -> None:
    with torch.no_grad():
        (features,) = make(flexible)(images(size), (flexible.depth,))
    assert features.grid[0] == flexible.grids[-1] * size // flexible.size


@pytest.mark.parametrize("fixed", [c for c in CASES if not c.other_size], ids=lambda c: c.architecture)
def test_other_sizes_at_load_time(fixed: Case) -> None:
    larger = dataclasses.replace(fixed, size=2 * fixed.size)
    with torch.no_grad():
        (features,) = make(larger)(images(larger.size), (fixed.depth,))
    assert features.grid[0] == pytest.approx(2 * fixed.grids[-1], abs=1)


def test_any_order_of_blocks_and_early_stop_give_what_a_full_run_gives(case: Case, backbone: TimmBackbone) -> None:
    every = tuple(range(1, case.depth + 1))
    with torch.no_grad():
        full = backbone(images(case.size), every)
        for block in every:
            (alone,) = backbone(images(case.size), (block,))
            assert torch.equal(alone.patches, full[block - 1].patches)
            assert torch.equal(alone.cls, full[block - 1].cls)
        second, first = backbone(images(case.size), (2, 1))
    assert torch.equal(second.patches, full[1].patches)
    assert torch.equal(first.patches, full[0].patches)


def test_blocks_after_the_highest_are_not_run(case: Case, backbone: TimmBackbone) -> None:
    modules = [backbone.network.get_submodule(name) for name in case.block_modules]
    if len(modules) == 1:
        modules = list(modules[0].children())
    with torch.no_grad(), counted_calls(modules) as calls:
        backbone(images(case.size), (2, 1))
    assert calls == list(range(case.two_blocks))


def test_last_block_is_what_the_networks_own_head_gets(case: Case, backbone: TimmBackbone) -> None:
    with torch.no_grad():
        (features,) = backbone(images(case.size), (case.depth,))
        network: Any = backbone.network
        final = network.forward_features(images(case.size))
        embedding = network.forward_head(final, pre_logits=True)
    if isinstance(final, dict):  # NaFlexViT
        final = final["patches"]
    has_fc_norm = isinstance(getattr(network, "norm", None), nn.Identity) and "fc_norm" in dict(
        network.named_children()
    )
    if final.ndim == 3 and not has_fc_norm:
        prefix = network.num_prefix_tokens
        torch.testing.assert_close(features.patches, final[:, prefix:])
        if prefix:
            torch.testing.assert_close(features.cls, final[:, 0])
    if not getattr(network, "num_prefix_tokens", 0):
        torch.testing.assert_close(features.cls, embedding)


def test_gradients_reach_the_first_block_and_eval_is_deterministic(case: Case) -> None:
    backbone = make(case)
    assert not backbone.training
    (features,) = backbone(images(case.size), (case.depth,))
    (again,) = backbone(images(case.size), (case.depth,))
    assert torch.equal(features.cls, again.cls)
    (features.cls.square().mean() + features.patches.square().mean()).backward()
    first = next(p for n, p in backbone.network.named_parameters() if p.ndim == 4)
    assert first.grad is not None
    assert first.grad.abs().max() > 0


def test_weights_hash_changes_with_one_weight(case: Case) -> None:
    backbone = make(case)
    before = backbone.weights_hash()
    assert before == backbone.weights_hash() == make(case).weights_hash()
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1e-3
    assert backbone.weights_hash() != before


def test_spec_rebuilds_the_same_network(case: Case, backbone: TimmBackbone) -> None:
    torch.manual_seed(1)  # other weights than those of `backbone`
    rebuilt = build_backbone(backbone.spec())
    assert rebuilt.weights_hash() != backbone.weights_hash()
    rebuilt.load_state_dict(backbone.state_dict(), strict=True)
    assert rebuilt.weights_hash() == backbone.weights_hash()
    assert rebuilt.preprocessing == backbone.preprocessing
    assert (rebuilt.name, rebuilt.depth, rebuilt.training) == (backbone.name, backbone.depth, False)
    with torch.no_grad():
        (a,), (b,) = (m(images(case.size), (case.depth,)) for m in (backbone, rebuilt))
    assert torch.equal(a.patches, b.patches)


def test_blocks_that_are_not_there_are_refused(case: Case, backbone: TimmBackbone) -> None:
    for blocks in ((), (0,), (case.depth + 1,)):
        with pytest.raises(ValueError, match="not among"):
            backbone(images(case.size), blocks)
