"""Where cells are, and that their embeddings tell them apart."""

from __future__ import annotations

import math

import pytest
import torch

from keepsight.heads.position import cell_centres, sine_embedding, sine_positions


def test_centres_are_row_by_row_and_x_first() -> None:
    expected = [[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]]
    torch.testing.assert_close(cell_centres(2, 3), torch.tensor(expected))


def test_the_embedding_is_its_formula() -> None:
    found = sine_embedding(torch.tensor([[0.3]]), 6)
    angles = [math.pi * 16 ** (i / 2) * 0.3 for i in range(3)]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_the_halves_are_of_x_and_of_y() -> None:
    positions = sine_positions(3, 4, 16).view(3, 4, 16)
    assert (positions[:, :, :8] == positions[:1, :, :8]).all()
    assert (positions[:, :, 8:] == positions[:, :1, 8:]).all()


def test_neighbouring_cells_differ_and_no_two_cells_are_alike() -> None:
    positions = sine_positions(12, 12, 32)
    apart = torch.cdist(positions, positions) + 10 * torch.eye(144)
    assert apart.min() > 0.5


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_positions(2, 2, 6)
