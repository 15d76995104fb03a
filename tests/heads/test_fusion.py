from __future__ import annotations

import pytest
import torch

from keepsight.heads.fusion import FusionConfig, FusionNet, QuestionNet

SMALL = FusionConfig(width=16, heads=2, hidden=16)


def parts(images: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(images, 5, 2, 3, generator=generator)
    words = torch.tensor([[3, 4, 5, 0], [3, 6, 0, 0]])
    return maps, words, torch.randn(2, 7, generator=generator), torch.tensor([[0, 1, 0]] * images)


@pytest.mark.parametrize(("words", "sentence"), [(9, 0), (0, 7), (9, 7)])
def test_everything_learns(words: int, sentence: int) -> None:
    torch.manual_seed(0)
    net = FusionNet(5, 4, words, sentence, SMALL)
    logits = net(*parts())
    assert logits.shape == (3, 3, 4)
    assert torch.equal(logits[:, 0], logits[:, 2])  # the same question
    assert not torch.allclose(logits[:, 0], logits[:, 1])
    logits.square().sum().backward()
    # The attention's key bias shifts all places alike: softmax does not see it.
    still = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]
    assert set(still) <= {"attend.key.bias"}


def test_filling_and_other_images_do_not_matter() -> None:
    torch.manual_seed(0)
    net = FusionNet(5, 4, 9, 0, SMALL).eval()
    maps, words, sentences, asked = parts()
    longer = torch.cat([words, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    together = net(maps, words, sentences, asked)
    torch.testing.assert_close(net(maps, longer, sentences, asked), together)
    torch.testing.assert_close(net(maps[1:2], words, sentences, asked[1:2]), together[1:2])


def test_the_place_can_be_asked_for() -> None:
    """Two maps of the same cells in another order differ."""
    torch.manual_seed(0)
    net = FusionNet(5, 4, 9, 0, SMALL).eval()
    maps, words, sentences, asked = parts(1)
    assert not torch.allclose(net(maps, words, sentences, asked), net(maps.flip(3), words, sentences, asked), atol=1e-5)


def test_a_question_without_anything_is_refused() -> None:
    with pytest.raises(ValueError, match="words or a sentence"):
        QuestionNet(0, 0, 8)
    with pytest.raises(ValueError, match="multiple of 4"):
        FusionConfig(width=18, heads=3)
