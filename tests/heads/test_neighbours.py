"""The vote against a loop in plain Python, flat memory, and degenerate queries."""

import math

import pytest
import torch

from keepsight.heads import neighbours
from keepsight.heads.neighbours import NeighbourHead


def filled(bank: int, k: int, classes: int = 3, features: int = 5, sharpness: float = 1.0) -> NeighbourHead:
    generator = torch.Generator().manual_seed(bank)
    head = NeighbourHead(features=features, classes=classes, bank=bank, k=k)
    votes = torch.softmax(torch.randn(bank, classes, generator=generator), dim=1)
    x = torch.randn(bank, features, generator=generator)
    head.store(x, votes, mean_F=x.mean(dim=0), scale_F=x.std(dim=0), sharpness=sharpness)
    return head


def vote_by_hand(head: NeighbourHead, query: list[float]) -> list[float]:
    u = [(q - m) / s for q, m, s in zip(query, head.mean_F.tolist(), head.scale_F.tolist(), strict=True)]
    length = math.sqrt(sum(a * a for a in u))
    similar = [sum(a / length * b for a, b in zip(u, row, strict=True)) for row in head.bank_NF.tolist()]
    best = sorted(range(len(similar)), key=lambda i: -similar[i])[: head.k]
    weights = [max(similar[i], 1e-6) ** 3 for i in best]
    classes = head.votes_NK.shape[1]
    chance = [sum(w * head.votes_NK[i, c].item() for w, i in zip(weights, best, strict=True)) for c in range(classes)]
    return [math.log(0.999 * c / sum(weights) + 0.001 / classes) for c in chance]


@pytest.mark.parametrize("k", [1, 4, 9])
def test_logits_are_the_weighted_vote(k: int) -> None:
    head = filled(9, k)
    queries = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.tensor([vote_by_hand(head, q.tolist()) for q in queries])
    torch.testing.assert_close(head(queries), expected, rtol=1e-4, atol=1e-4)


def test_sharpness_scales_the_logits_and_moves_no_decision() -> None:
    queries = torch.randn(20, 5, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(filled(9, 4, sharpness=2.5)(queries), 2.5 * filled(9, 4)(queries))


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    head = filled(20, 3)
    queries = torch.randn(11, 5)
    whole = head(queries)
    monkeypatch.setattr(neighbours, "SIMILARITIES_AT_ONCE", 60)
    torch.testing.assert_close(head(queries), whole)


def test_logits_are_normalised_and_finite_everywhere() -> None:
    head = filled(7, 2)
    queries = torch.cat([head.mean_F[None], -1e6 * torch.ones(1, 5), torch.zeros(1, 5)])
    logits = head(queries)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.exp().sum(dim=1), torch.ones(3))
    assert head(torch.zeros(0, 5)).shape == (0, 3)


def test_own_image_wins_its_own_vote_at_k_1() -> None:
    head = filled(12, 1)
    x = head.bank_NF * head.scale_F + head.mean_F
    torch.testing.assert_close(head(x).argmax(dim=1), head.votes_NK.argmax(dim=1))


def test_more_neighbours_than_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and the size of the bank"):
        NeighbourHead(features=2, classes=2, bank=3, k=4)
