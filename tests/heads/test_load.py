"""Every head is rebuilt from its kind, shape and state dict, and nothing else."""

import pytest
import torch

from keepsight.core import Head, UserError
from keepsight.heads.content_style import ContentStyleHead
from keepsight.heads.gaussian import GaussianHead
from keepsight.heads.linear import LinearHead
from keepsight.heads.load import KINDS, build_head, head_kind
from keepsight.heads.mlp import MLPHead
from keepsight.heads.neighbours import NeighbourHead


def example(kind: str) -> Head:
    if kind == "linear":
        head: Head = LinearHead(features=4, classes=3)
    elif kind == "content-style":
        head = ContentStyleHead(features=4, reduced=3, classes=3, hidden=8, style=2)
    elif kind == "gaussian":
        head = GaussianHead(features=4, reduced=2, classes=3, covariances=3)
    elif kind == "mlp":
        head = MLPHead(features=4, reduced=2, classes=3, hidden=5)
    else:
        head = NeighbourHead(features=4, classes=3, bank=6, k=2)
    with torch.no_grad():
        for tensor in head.state_dict().values():
            tensor.copy_(torch.rand_like(tensor) + 0.1)
    return head


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_rebuilt_head_gives_the_same_logits(kind: str) -> None:
    head = example(kind)
    assert head_kind(head) == kind
    again = build_head(kind, head.shape())
    again.load_state_dict(head.state_dict(), strict=True)
    x = torch.randn(5, 4)
    assert torch.equal(again(x), head(x))
    assert again.shape() == head.shape()


def test_an_unknown_kind_and_an_impossible_shape_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"'quantum'.*knows linear, neighbours"):
        build_head("quantum", {})
    with pytest.raises(UserError, match="'linear' has a shape it cannot have"):
        build_head("linear", {"features": 3})
    with pytest.raises(UserError, match="'neighbours'"):
        build_head("neighbours", {"features": 3, "classes": 2, "bank": 1, "k": 5})


def test_a_head_that_cannot_be_saved_is_refused() -> None:
    class Other(LinearHead):
        """A subclass is not the class itself: its forward may differ."""

    with pytest.raises(ValueError, match="Other"):
        head_kind(Other(features=1, classes=1))
