"""Both decoders: step by step as with all words at once, causal, and blind to the rest of the batch."""

from __future__ import annotations

import pytest
import torch

from keepsight.heads.caption import CaptionNet, LstmNet, TransformerNet

KINDS = ["lstm", "transformer", "untied"]


def net(kind: str, dropout: float = 0.0) -> CaptionNet:
    torch.manual_seed(0)
    if kind == "lstm":
        return LstmNet(channels=6, words=11, width=16, dropout=dropout)
    return TransformerNet(
        channels=6, words=11, width=16, layers=2, heads=2, dropout=dropout, tied=kind == "transformer"
    )


def data(c: int = 3, t: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, 3, 5, generator=generator), torch.randint(1, 11, (4, c, t), generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_live_gradients(kind: str) -> None:
    maps, words = data()
    decoder = net(kind)
    logits, attention = decoder(maps, words)
    assert logits.shape == (4, 3, 5, 11)
    if kind == "lstm":
        assert attention is not None
        assert attention.shape == (4, 3, 5, 15)
        torch.testing.assert_close(attention.sum(-1), torch.ones(4, 3, 5))
    else:
        assert attention is None
    (logits * torch.randn_like(logits)).sum().backward()
    # The score's constant moves every match alike, and softmax does not see it.
    blind = {"score.bias"}
    for name, p in decoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0 or name in blind, name


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_all_at_once(kind: str) -> None:
    maps, words = data()
    decoder = net(kind, dropout=0.5).eval()
    expected, _ = decoder.teacher(maps, words)
    memory = decoder.look(maps)
    state = decoder.start(memory, 3)
    assert all(each.shape[:2] == (4, 3) for each in state)
    for t in range(words.shape[2]):
        logits, state = decoder.step(words[:, :, t], memory, state)
        torch.testing.assert_close(logits, expected[:, :, t], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_word_changes_no_earlier_logit_and_all_later_ones(kind: str) -> None:
    maps, words = data()
    decoder = net(kind).eval()
    other = words.clone()
    other[..., 2] = words[..., 2] % 10 + 1
    first, second = decoder(maps, words)[0], decoder(maps, other)[0]
    torch.testing.assert_close(first[:, :, :2], second[:, :, :2])
    assert (first - second)[:, :, 2:].abs().amax(dim=(0, 1, 3)).min() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_captions_and_images_do_not_see_each_other(kind: str) -> None:
    maps, words = data()
    decoder = net(kind).eval()
    together = decoder(maps, words)[0]
    for b, c in ((0, 0), (3, 2)):
        alone = decoder(maps[b : b + 1], words[b : b + 1, c : c + 1])[0]
        torch.testing.assert_close(alone[0, 0], together[b, c], atol=1e-5, rtol=1e-4)
    assert (decoder(maps.flip(0), words)[0] - together).abs().max() > 1e-3  # and the map does matter


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_only_while_training(kind: str) -> None:
    maps, words = data()
    decoder = net(kind, dropout=0.5)
    assert (decoder(maps, words)[0] - decoder(maps, words)[0]).abs().max() > 0.01
    decoder.eval()
    assert torch.equal(decoder(maps, words)[0], decoder(maps, words)[0])


def test_only_large_maps_are_pooled() -> None:
    decoder = LstmNet(channels=6, words=11, width=16, side=4)
    words = torch.ones(1, 1, 2, dtype=torch.int64)
    for size, places in (((3, 4), 12), ((8, 8), 16), ((3, 9), 12)):
        attention = decoder(torch.randn(1, 6, *size), words)[1]
        assert attention.shape[-1] == places
    small = torch.randn(1, 6, 4, 4)
    large = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(decoder.eval()(small, words)[0], decoder(large, words)[0])


def test_the_transformer_knows_where_places_are_and_the_lstm_does_not() -> None:
    maps, words = data()
    for kind, differs in (("lstm", False), ("transformer", True)):
        decoder = net(kind).eval()
        difference = (decoder(maps.flip(3), words)[0] - decoder(maps, words)[0]).abs().max().item()
        assert (difference > 1e-3) == differs
