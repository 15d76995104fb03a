import pytest
import torch

from keepsight.heads.alignment import FIRST_SCALE, LARGEST_SCALE, AlignmentHead
from keepsight.heads.token import make_token


def rows(n: int, f: int) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("hidden", [0, 5])
def test_unit_length_and_tokens(hidden: int) -> None:
    x = 3 * rows(20, 6) + 1
    token = make_token(x, (), 4)
    head = AlignmentHead(6, token.axes_FD.shape[1], 3, hidden=hidden).eval()
    head.reduction.take(token)
    u = head.images(x)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(head.of_tokens(token.z_ND), u)


def test_texts_start_where_they_are_and_move() -> None:
    head = AlignmentHead(6, 4, 3)
    texts = torch.nn.functional.normalize(rows(5, 3), dim=1)
    torch.testing.assert_close(head.texts(texts), texts)
    (head.texts(texts) * rows(5, 3)).sum().backward()
    assert head.text is not None
    assert float(head.text.weight.grad.abs().max()) > 0
    still = AlignmentHead(6, 4, 3, text_side=False)
    assert still.text is None
    torch.testing.assert_close(still.texts(2 * texts), texts)


def test_scale_starts_at_clips_and_is_cut() -> None:
    head = AlignmentHead(6, 4, 3)
    assert head.scale().item() == pytest.approx(FIRST_SCALE)
    head.log_scale.data.fill_(50.0)
    assert head.scale().item() == pytest.approx(LARGEST_SCALE)


def test_dropout_is_for_training_only() -> None:
    head = AlignmentHead(6, 4, 3, dropout=0.5)
    z = rows(8, 4)
    head.train()
    assert not torch.equal(head.of_tokens(z), head.of_tokens(z))
    head.eval()
    assert torch.equal(head.of_tokens(z), head.of_tokens(z))
