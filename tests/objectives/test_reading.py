from __future__ import annotations

from itertools import product

import torch

from keepsight.objectives.reading import ctc, evenly, spread_evenly


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(c for i, c in enumerate(path) if c and (i == 0 or path[i - 1] != c))


def test_ctc_is_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    texts, lengths = torch.tensor([[1, 1], [2, 0]]), torch.tensor([2, 1])
    wanted = []
    for row, text in enumerate([(1, 1), (2,)]):
        p = logits[row].softmax(dim=1)
        paths = [path for path in product(range(3), repeat=4) if collapsed(path) == text]
        total = sum(torch.stack([p[t, c] for t, c in enumerate(path)]).prod() for path in paths)
        wanted.append(-torch.log(torch.as_tensor(total)) / len(text))
    torch.testing.assert_close(ctc(logits, texts, lengths), torch.stack(wanted).mean())


def test_ctc_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    texts, lengths = torch.tensor([[1, 2, 2], [2, 1, 0]]), torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda x: ctc(x, texts, lengths), (logits,))


def test_a_text_that_does_not_fit_costs_nothing() -> None:
    logits = torch.randn(1, 2, 3, requires_grad=True)
    loss = ctc(logits, torch.tensor([[1, 1]]), torch.tensor([2]))  # needs a blank between
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_filling_is_never_spread() -> None:
    texts = torch.tensor([[5, 0, 0, 0], [1, 2, 3, 4], [6, 7, 8, 0]])
    spread = spread_evenly(texts, torch.tensor([1, 4, 3]), 11)
    assert (spread > 0).all()
    assert [row.unique_consecutive().tolist() for row in spread] == [[5], [1, 2, 3, 4], [6, 7, 8]]


def test_evenly_is_least_where_letters_are_spread() -> None:
    texts, lengths = torch.tensor([[1, 2]]), torch.tensor([2])
    right = 10 * torch.nn.functional.one_hot(torch.tensor([[1, 1, 2, 2]]), 3).float()
    assert evenly(right, texts, lengths) < 1e-3 < evenly(right.flip(1), texts, lengths)
