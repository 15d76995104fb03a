"""Attention against torch's own, and what masks and positions do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keepsight.heads.attention import Attention, DecoderLayer, EncoderLayer, LayerConfig


def test_attention_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        for bias in (ours.query.bias, ours.key.bias, ours.value.bias, ours.out.bias):
            bias.normal_()
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    asks, keys, values = torch.randn(2, 4, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    allowed = torch.rand(4, 5) > 0.4
    allowed[:, 0] = True
    torch.testing.assert_close(ours(asks, keys, values), theirs(asks, keys, values)[0])
    torch.testing.assert_close(ours(asks, keys, values, allowed), theirs(asks, keys, values, attn_mask=~allowed)[0])
    added = torch.randn(4, 5)
    torch.testing.assert_close(ours(asks, keys, values, added), theirs(asks, keys, values, attn_mask=added)[0])


@pytest.mark.parametrize("norm_first", [True, False])
def test_layers_are_equivariant_where_positions_are_and_not_otherwise(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(8, LayerConfig(heads=2, feedforward=16, norm_first=norm_first))
    x, position, order = torch.randn(1, 6, 8), torch.randn(6, 8), torch.randperm(6)
    plain = layer(x, position)
    torch.testing.assert_close(layer(x[:, order], position[order]), plain[:, order])
    assert not torch.allclose(layer(x[:, order], position), plain[:, order], atol=1e-3)


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_norm_is_where_it_is_asked_for(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(8, LayerConfig(heads=2, feedforward=16, norm_first=norm_first))
    out = layer(100 + 50 * torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(5, 8))
    normalised = torch.allclose(out.mean(dim=2), torch.zeros(2, 3), atol=1e-4)
    assert normalised is not norm_first


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        Attention(10, 3)
