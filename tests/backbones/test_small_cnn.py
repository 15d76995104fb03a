"""The small network that starts from nothing keeps what every backbone promises, and its weights are a function of the seed."""

from __future__ import annotations

import json

import pytest
import torch

from keepsight.backbones.cut import can_cut, prefix, resume
from keepsight.backbones.load import build_backbone
from keepsight.backbones.small_cnn import SmallCnn


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))


def test_features_of_every_block(images: torch.Tensor) -> None:
    outputs = SmallCnn(16)(images, (1, 2, 3))
    assert [f.grid for f in outputs] == [(14, 14), (7, 7), (3, 3)]
    assert [f.patches.shape[2] for f in outputs] == [16, 32, 64]
    for features in outputs:
        assert torch.allclose(features.cls, features.patches.mean(dim=1))
        assert not torch.equal(features.patches[0], features.patches[1])


def test_any_order_and_only_as_far_as_asked(images: torch.Tensor) -> None:
    cnn = SmallCnn(16)
    full = cnn(images, (1, 2, 3))
    second, first = cnn(images, (2, 1))
    assert torch.equal(second.patches, full[1].patches)
    assert torch.equal(first.patches, full[0].patches)
    ran: list[int] = []
    for number, module in enumerate(cnn.block_modules(), 1):
        module.register_forward_hook(lambda *_, n=number: ran.append(n))
    cnn(images, (1,))
    assert ran == [1]
    for blocks in ((), (0,), (4,)):
        with pytest.raises(ValueError, match="not among"):
            cnn(images, blocks)


def test_it_can_be_cut(images: torch.Tensor) -> None:
    cnn = SmallCnn(16).eval()
    assert can_cut(cnn)
    (expected,) = cnn(images, (3,))
    (found,) = resume(cnn, prefix(cnn, images, 1), 1, (3,))
    torch.testing.assert_close(found.patches, expected.patches)


def test_training_and_use_are_the_same_function(images: torch.Tensor) -> None:
    cnn = SmallCnn(16)
    (trained,), (used,) = cnn.train()(images, (3,)), cnn.eval()(images, (3,))
    (alone,) = cnn(images[:1], (3,))
    assert torch.equal(trained.patches, used.patches)
    torch.testing.assert_close(alone.patches, used.patches[:1])


def test_weights_come_from_the_seed_and_leave_the_callers_random_state() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = SmallCnn(16, seed=1), SmallCnn(16, seed=1), SmallCnn(16, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.weights_hash() == again.weights_hash() != other.weights_hash()


def test_spec_rebuilds_it(images: torch.Tensor) -> None:
    cnn = SmallCnn(24, size=32, seed=3).eval()
    rebuilt = build_backbone(json.loads(json.dumps(cnn.spec())))
    assert rebuilt.weights_hash() != cnn.weights_hash()
    rebuilt.network.load_state_dict(cnn.network.state_dict(), strict=True)
    assert (rebuilt.name, rebuilt.depth, rebuilt.training) == ("small_cnn", 3, False)
    assert rebuilt.preprocessing == cnn.preprocessing
    assert rebuilt.weights_hash() == cnn.weights_hash()
    assert torch.equal(rebuilt(images, (3,))[0].patches, cnn(images, (3,))[0].patches)
