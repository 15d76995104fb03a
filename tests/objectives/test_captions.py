"""Losses of captioning against loops, and their degenerate inputs."""

from __future__ import annotations

import pytest
import torch

from keepsight.objectives.captions import doubly_stochastic, next_word

WORDS = torch.tensor([[4, 6, 2, 0], [5, 2, 0, 0], [0, 0, 0, 0]])


def test_next_word_is_the_mean_over_words() -> None:
    logits = torch.randn(3, 4, 7, dtype=torch.float64)
    terms = [-logits[i, t].log_softmax(0)[w] for i, row in enumerate(WORDS.tolist()) for t, w in enumerate(row) if w]
    assert next_word(logits, WORDS, count=5).item() == pytest.approx(sum(terms).item() / 5, abs=1e-6)
    assert next_word(logits, WORDS, count=10).item() == pytest.approx(sum(terms).item() / 10, abs=1e-6)


def test_label_smoothing() -> None:
    logits = torch.randn(1, 2, 7)
    p = logits.log_softmax(-1)
    plain = -(p[0, 0, 4] + p[0, 1, 2]) / 2
    uniform = -p.mean()
    found = next_word(logits, torch.tensor([[4, 2]]), 2, label_smoothing=0.1)
    torch.testing.assert_close(found, 0.9 * plain + 0.1 * uniform)


def test_filling_has_no_part_in_it() -> None:
    logits = torch.randn(3, 4, 7)
    other = torch.where((WORDS == 0)[..., None], logits + 5 * torch.randn(3, 4, 7), logits)
    torch.testing.assert_close(next_word(logits, WORDS, 5), next_word(other, WORDS, 5))


def test_gradients() -> None:
    logits = torch.randn(3, 4, 7, dtype=torch.float64, requires_grad=True)
    next_word(logits, WORDS, 5).backward()
    expected = (logits.detach().softmax(-1) - torch.nn.functional.one_hot(WORDS, 7)) * (WORDS != 0)[..., None] / 5
    torch.testing.assert_close(logits.grad, expected, atol=1e-7, rtol=1e-5)  # computed in float32


def test_doubly_stochastic_is_the_loop() -> None:
    attention = torch.rand(3, 4, 5).softmax(-1).requires_grad_()
    total = 0.0
    for i, steps in ((0, 3), (1, 2)):
        total += sum((1 - attention[i, :steps, n].sum().item()) ** 2 for n in range(5)) / 5
    found = doubly_stochastic(attention, WORDS, count=2)
    assert found.item() == pytest.approx(total / 2, abs=1e-6)
    found.backward()
    assert attention.grad is not None
    assert attention.grad[0, :3].abs().min() > 0
    assert attention.grad[0, 3:].abs().max() == 0
    assert attention.grad[2].abs().max() == 0


@pytest.mark.parametrize("count", [0, torch.tensor(0.0)])
def test_nothing_to_say_is_zero_with_gradients(count: float) -> None:
    logits, attention = torch.randn(1, 2, 7, requires_grad=True), torch.rand(1, 2, 5, requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.int64)
    loss = next_word(logits, nothing, count) + doubly_stochastic(attention, nothing, count)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert attention.grad is not None
    assert not logits.grad.any()
    assert not attention.grad.any()


def test_shares_of_a_count_below_one_count() -> None:
    """One word in the batches of two processes: each divides by a half."""
    logits, words = torch.randn(1, 1, 7), torch.tensor([[4]])
    torch.testing.assert_close(next_word(logits, words, 0.5), 2 * next_word(logits, words, 1))
