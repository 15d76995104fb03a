"""Options of multiple choice whose wrong answers are balanced against the right ones."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.data.choices import balanced, draw_options


@pytest.mark.parametrize("counts", [(5, 5, 5, 5), (10, 10, 9, 8, 3, 1), (3,) * 11, (1, 1, 1, 1), (6, 5, 5, 4, 4)])
def test_each_category_is_wrong_three_times_as_often_as_it_is_right(counts: tuple[int, ...]) -> None:
    truth = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    options = draw_options(truth, 4, seed=1)
    assert (np.sort(options, axis=1)[:, 1:] != np.sort(options, axis=1)[:, :-1]).all()
    assert ((options == truth[:, None]).sum(axis=1) == 1).all()
    assert np.bincount(options.ravel()).tolist() == [4 * count for count in counts]


def test_options_are_of_the_seed_and_the_truth_has_no_place_of_its_own() -> None:
    truth = np.repeat(np.arange(11), 40)
    options = draw_options(truth, 4, seed=1)
    assert (options == draw_options(truth, 4, seed=1)).all()
    assert (options != draw_options(truth, 4, seed=2)).any()
    places = np.bincount((options == truth[:, None]).argmax(axis=1), minlength=4)
    assert places.min() > 70  # of 110 each
    pairs = {(int(right), int(wrong)) for right, row in zip(truth, options, strict=True) for wrong in row}
    assert len(pairs) == 121  # every category meets every other one


def test_too_frequent_categories_are_thinned_out() -> None:
    truth = np.repeat(np.arange(5), (50, 3, 4, 4, 4))
    kept = balanced(truth, 4, seed=0)
    assert np.bincount(truth[kept]).tolist() == [5, 3, 4, 4, 4]
    assert (np.diff(kept) > 0).all()
    assert (balanced(truth, 4, seed=0) == kept).all()
    assert (balanced(truth, 4, seed=1) != kept).any()
    draw_options(truth[kept], 4, seed=0)
    with pytest.raises(ValueError, match="no category"):
        draw_options(truth, 4, seed=0)


def test_three_categories_cannot_be_balanced() -> None:
    assert not len(balanced(np.array([0, 1, 2, 2]), 4, seed=0))
    assert not len(balanced(np.empty(0, dtype=np.int64), 4, seed=0))
