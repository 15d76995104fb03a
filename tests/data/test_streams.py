import numpy as np
import pytest

from keepsight.data.streams import Stream

CASES = [(1, 1), (1, 4), (3, 8), (5, 5), (7, 3), (10, 4), (64, 16), (100, 12)]


@pytest.mark.parametrize(("n", "batch_size"), CASES)
def test_every_epoch_visits_every_item_once(n: int, batch_size: int) -> None:
    items = np.arange(n) * 3 + 1
    stream = Stream(items, batch_size, seed=5)
    epochs = 6
    steps = -(-epochs * n // batch_size)
    batches = [stream.batch(step) for step in range(steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    visited = np.concatenate(batches)[: epochs * n].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(visited, axis=1), np.tile(items, (epochs, 1)))
    if n >= 7:
        assert len({row.tobytes() for row in visited}) == epochs  # a fresh order each time


@pytest.mark.parametrize(("n", "batch_size"), CASES)
def test_a_batch_depends_on_the_step_alone(n: int, batch_size: int) -> None:
    steps = np.random.default_rng(0).permutation(30)
    in_order = Stream(np.arange(n), batch_size, seed=1)
    forwards = [in_order.batch(step) for step in range(30)]
    jumping = Stream(np.arange(n), batch_size, seed=1)
    for step in steps:
        np.testing.assert_array_equal(jumping.batch(int(step)), forwards[step])
        np.testing.assert_array_equal(Stream(np.arange(n), batch_size, seed=1).batch(int(step)), forwards[step])


def test_seeds_differ_and_the_input_is_copied() -> None:
    items = np.arange(50)
    stream = Stream(items, 50, seed=0)
    expected = stream.batch(1)
    assert (expected != Stream(items, 50, seed=1).batch(1)).any()
    items[:] = 0
    np.testing.assert_array_equal(stream.batch(1), expected)


def test_what_is_refused() -> None:
    for n, batch_size in ((0, 1), (3, 0)):
        with pytest.raises(ValueError, match="stream needs"):
            Stream(np.arange(n), batch_size, seed=0)
    with pytest.raises(ValueError, match="counted from 0"):
        Stream(np.arange(3), 2, seed=0).batch(-1)
