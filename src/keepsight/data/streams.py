"""The order in which a run visits its items, as a pure function of the step. Knows not what the items are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Stream:
    """Batches of fixed size out of endless permutations: epoch e is the permutation seeded by (seed, e).

    Batch `step` is the items step * batch_size onwards of the epochs laid end to end, so it may cross from one epoch
    into the next, and with fewer items than a batch it holds several epochs. The position in the data is the step
    number and nothing else: a resumed run needs no state. Processes and micro-batches cut the batch into shares
    (`train.batches`).

    Args:
        indices: [N] what is visited, N >= 1.
        batch_size: Size of the global batch, over all processes and micro-batches.
        seed: Streams with different seeds are independent.

    Example:
        >>> stream = Stream(np.array([5, 6, 7]), batch_size=2, seed=0)
        >>> sorted(np.concatenate([stream.batch(step) for step in range(3)]).tolist())
        [5, 5, 6, 6, 7, 7]
    """

    def __init__(self, indices: NDArray[np.int64], batch_size: int, seed: int) -> None:
        if len(indices) == 0 or batch_size < 1:
            raise ValueError("a stream needs items and a batch size of at least 1")
        self._indices = np.array(indices, dtype=np.int64)
        self._batch_size, self._seed = batch_size, seed
        self._memo: tuple[int, NDArray[np.int64]] = (0, self._permutation(0))

    def batch(self, step: int) -> NDArray[np.int64]:
        """Items [batch_size] of step 0, 1, 2, ..."""
        if step < 0:
            raise ValueError("steps are counted from 0")
        n = len(self._indices)
        first, end = step * self._batch_size, (step + 1) * self._batch_size
        pieces = [self._epoch(e)[max(0, first - e * n) : end - e * n] for e in range(first // n, (end - 1) // n + 1)]
        return np.concatenate(pieces)

    def epochs(self, step: int) -> NDArray[np.int64]:
        """How often each item [batch_size] of a step was visited before: 0 in the first epoch."""
        first = step * self._batch_size
        return np.arange(first, first + self._batch_size) // len(self._indices)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        memo = self._memo
        if memo[0] != epoch:  # only spares drawing the same permutation at every step
            memo = self._memo = (epoch, self._permutation(epoch))
        return memo[1]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, epoch)).permutation(self._indices)
