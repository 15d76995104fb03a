"""Linear CKA of any number of images in one pass, exact, in O(d^2) memory. Knows nothing of where the features come from.

With z = [x, y] - shift, p = ||x part||^2, q = ||y part||^2 and w = [1, p, q] of every image, both estimators follow
from three sums: z^T z, z^T w and w^T w. A change of the shift is exact algebra on them, so that parts collected around
different shifts can be merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from keepsight.objectives.cka import unbiased_hsic
from keepsight.objectives.pairs import ROUNDING

EPSILON = torch.finfo(torch.float64).eps
BLOCK = 192  # columns at a time: only the blocks on and above the diagonal of z^T z are computed
DRIFT = 0.9  # sums are moved to the running mean when it holds this part of the second moment about the shift


@dataclass(slots=True)
class _Sums:
    """Sums about a shift, float64; D = d1 + d2. Of `gram_DD` only the blocks on and above the diagonal are read."""

    d1: int
    shift_D: Tensor
    gram_DD: Tensor
    cross_D3: Tensor
    powers_33: Tensor

    @property
    def count(self) -> int:
        return round(self.powers_33[0, 0].item())

    def add(self, z_MD: Tensor) -> None:
        """Add images, already about the shift."""
        w_M3 = torch.ones(len(z_MD), 3, dtype=z_MD.dtype, device=z_MD.device)
        w_M3[:, 1] = torch.linalg.vector_norm(z_MD[:, : self.d1], dim=1).square()
        w_M3[:, 2] = torch.linalg.vector_norm(z_MD[:, self.d1 :], dim=1).square()
        for start, stop in self._blocks():
            self.gram_DD[start:stop, start:].addmm_(z_MD[:, start:stop].T, z_MD[:, start:])
        self.cross_D3.addmm_(z_MD.T, w_M3)
        self.powers_33.addmm_(w_M3.T, w_M3)

    def moved(self, shift_D: Tensor) -> _Sums:
        """The same images' sums about another shift."""
        delta_D = self.shift_D - shift_D
        upper_DD = self.gram_DD.triu()
        outer_DD = torch.outer(self.cross_D3[:, 0] + self.powers_33[0, 0] / 2 * delta_D, delta_D)
        gram_DD = upper_DD + upper_DD.triu(1).T + outer_DD + outer_DD.T
        return _Sums(self.d1, shift_D.clone(), gram_DD, *self.small_about(shift_D))

    def small_about(self, shift_D: Tensor) -> tuple[Tensor, Tensor]:
        """`cross_D3` and `powers_33` about another shift.

        With delta = old - new shift: z' = z + delta, p' = p + 2 z . a + ||a||^2 where a is delta's x part, and so for q; that is
        w' = w T + z W.
        """
        delta_D = self.shift_D - shift_D
        turn_33 = torch.eye(3, dtype=delta_D.dtype, device=delta_D.device)
        lift_D3 = torch.zeros_like(self.cross_D3)
        for column, part in ((1, slice(0, self.d1)), (2, slice(self.d1, None))):
            turn_33[0, column] = delta_D[part].square().sum()
            lift_D3[part, column] = 2 * delta_D[part]
        lifted_D3 = torch.zeros_like(lift_D3)
        for start, stop in self._blocks():
            lifted_D3[start:stop] += self.gram_DD[start:stop, start:] @ lift_D3[start:]
            lifted_D3[stop:] += self.gram_DD[start:stop, stop:].T @ lift_D3[start:stop]
        cross_33 = turn_33.T @ (self.cross_D3.T @ lift_D3)
        inner_3 = (self.powers_33 @ turn_33 + self.cross_D3.T @ lift_D3)[0]
        return (
            self.cross_D3 @ turn_33 + lifted_D3 + torch.outer(delta_D, inner_3),
            turn_33.T @ self.powers_33 @ turn_33 + cross_33 + cross_33.T + lift_D3.T @ lifted_D3,
        )

    def about_mean(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, and about it [[||X^T X||^2, ||X^T Y||^2], [., ||Y^T Y||^2]] and w^T w."""
        sum_D, n = self.cross_D3[:, 0], self.count
        mean_D = self.shift_D + sum_D / n
        squares_22 = torch.zeros(2, 2, dtype=sum_D.dtype, device=sum_D.device)
        for start, stop in self._blocks():
            rows = torch.addr(self.gram_DD[start:stop, start:], sum_D[start:stop], sum_D[start:], alpha=-1 / n)
            squares = torch.linalg.vector_norm(rows, dim=0).square()
            side = 0 if start < self.d1 else 1
            edge = self.d1 - start if side == 0 else len(squares)
            squares_22[side, side] += squares[: stop - start].sum() + 2 * squares[stop - start : edge].sum()
            squares_22[0, 1] += squares[edge:].sum()
        return mean_D, squares_22, self.small_about(mean_D)[1]

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Cuts of the columns, one of them between x and y."""
        for first, last in ((0, self.d1), (self.d1, len(self.shift_D))):
            for start in range(first, last, BLOCK):
                yield start, min(start + BLOCK, last)


class StreamingCKA:
    """Linear CKA from batches of features, each seen once: `update` for every batch, then `debiased()` or `biased()`.

    Equal to `linear_cka` in float64 on all images at once, whatever the batches. Memory: (d1 + d2)^2 and chunk (d1 +
    d2) numbers of eight bytes, for any number of images; the first `chunk` images are kept as they are, so that few
    images take the n x n route. Without gradients.

    Args:
        d1: Dimension of x.
        d2: Dimension of y.
        chunk: Images that are multiplied at once.
        device: Where the sums live; it must know float64.

    Example:
        >>> x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
        >>> cka = StreamingCKA(4, 4, chunk=64)
        >>> for batch in x.split(50):
        ...     cka.update(batch, batch.flip(1))
        >>> round(cka.debiased().item(), 6), cka.count
        (1.0, 300)
    """

    def __init__(self, d1: int, d2: int, *, chunk: int = 1024, device: torch.device | str = "cpu") -> None:
        if min(d1, d2, chunk) < 1:
            raise ValueError(f"d1, d2 and chunk must be at least 1, got {d1}, {d2} and {chunk}")
        self.d1, self.d2 = d1, d2
        self._waiting_MD = torch.empty(chunk, d1 + d2, dtype=torch.float64, device=device)
        self._filled = 0
        self._sums: _Sums | None = None

    @property
    def count(self) -> int:
        """Images seen."""
        return self._filled + (0 if self._sums is None else self._sums.count)

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> None:
        """Add the images of a batch: x [m, d1] and y [m, d2], m of any size, any floating-point dtype.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or (x.shape[1], y.shape[1]) != (self.d1, self.d2):
            raise ValueError(
                f"x and y must be [m, {self.d1}] and [m, {self.d2}] with the same m, got {list(x.shape)} and {list(y.shape)}"
            )
        done, size = 0, len(self._waiting_MD)
        while done < len(x):
            if self._filled == size:
                self._flush()
            taken = min(size - self._filled, len(x) - done)
            rows_MD = self._waiting_MD[self._filled : self._filled + taken]
            rows_MD[:, : self.d1] = x[done : done + taken]
            rows_MD[:, self.d1 :] = y[done : done + taken]
            self._filled, done = self._filled + taken, done + taken

    @torch.no_grad()
    def merge(self, other: StreamingCKA) -> None:
        """Add all images that `other` has seen (another process's part); `other` is not changed.

        Raises:
            ValueError: if the dimensions differ.
        """
        if (self.d1, self.d2) != (other.d1, other.d2):
            raise ValueError(f"dimensions {self.d1} and {self.d2} cannot be merged with {other.d1} and {other.d2}")
        theirs, waiting_MD = other._sums, other._waiting_MD[: other._filled].clone()
        if theirs is not None:
            device = self._waiting_MD.device
            parts = (theirs.shift_D, theirs.gram_DD, theirs.cross_D3, theirs.powers_33)
            theirs = _Sums(self.d1, *(part.to(device) for part in parts))
            if self._sums is None:
                self._sums = theirs.moved(theirs.shift_D)  # a copy
            else:
                theirs = theirs.moved(self._sums.shift_D)
                self._sums.gram_DD += theirs.gram_DD
                self._sums.cross_D3 += theirs.cross_D3
                self._sums.powers_33 += theirs.powers_33
                self._follow()
        self.update(waiting_MD[:, : self.d1], waiting_MD[:, self.d1 :])

    def biased(self) -> Tensor:
        """Biased linear CKA so far, 0-d float64; 0 if a side is constant.

        Raises:
            ValueError: with fewer than 2 images.
        """
        return self._value(debiased=False)

    def debiased(self) -> Tensor:
        """Debiased linear CKA so far, 0-d float64; 0 if a side is constant.

        Raises:
            ValueError: with fewer than 4 images.
        """
        return self._value(debiased=True)

    def _flush(self) -> None:
        """Move the waiting images into the sums."""
        z_MD = self._waiting_MD[: self._filled]
        if self._sums is None:
            size = self.d1 + self.d2
            empty = z_MD.new_zeros(size, size), z_MD.new_zeros(size, 3), z_MD.new_zeros(3, 3)
            self._sums = _Sums(self.d1, z_MD.mean(dim=0), *empty)
        z_MD -= self._sums.shift_D
        self._sums.add(z_MD)
        self._filled = 0
        self._follow()

    def _follow(self) -> None:
        """Move the shift to the mean once the images have wandered off: large sums about a far point lose digits."""
        assert self._sums is not None
        mean_D = self._sums.cross_D3[:, 0] / self._sums.count
        for column, part in ((1, slice(0, self.d1)), (2, slice(self.d1, None))):
            if mean_D[part].square().sum() > DRIFT * self._sums.powers_33[0, column] / self._sums.count:
                self._sums = self._sums.moved(self._sums.shift_D + mean_D)
                return

    @torch.no_grad()
    def _value(self, *, debiased: bool) -> Tensor:
        n, smallest = self.count, 4 if debiased else 2
        if n < smallest:
            raise ValueError(f"this measure needs at least {smallest} images, got {n}")
        # Up to here the n x n matrices are less work than the d x d ones.
        few = self._sums is None and n <= (self.d1 + self.d2) / 2
        if self._filled and not few:
            self._flush()
        mean_D, products_22, powers_33 = self._few() if self._sums is None else self._sums.about_mean()
        (_, p, q), (_, pp, pq), (_, _, qq) = powers_33.tolist()
        (xx, xy), (_, yy) = products_22.tolist()
        means = (mean_D[part].square().sum().item() for part in (slice(0, self.d1), slice(self.d1, None)))
        rounding = (ROUNDING * EPSILON) ** 2 * n
        if any(power <= rounding * mean for power, mean in zip((p, q), means, strict=True)):  # a side is constant
            xx = yy = 0.0
        elif debiased:
            xy, _ = unbiased_hsic(n, xy, pq, p * q)
            own = unbiased_hsic(n, xx, pp, p * p), unbiased_hsic(n, yy, qq, q * q)
            xx, yy = (0.0 if value <= EPSILON * size else value for value, size in own)
        value = 0.0 if xx <= 0 or yy <= 0 else xy / (math.sqrt(xx) * math.sqrt(yy))
        return torch.tensor(value, dtype=torch.float64, device=mean_D.device)

    def _few(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, and about it [[||X^T X||^2, ||X^T Y||^2], [., ||Y^T Y||^2]] and w^T w, through the n x n matrices."""
        z_MD = self._waiting_MD[: self._filled]
        mean_D = z_MD.mean(dim=0)
        z_MD = z_MD - mean_D
        kernels_2MM = z_MD.new_empty(2, self._filled, self._filled)
        for kernel_MM, part in zip(kernels_2MM, (z_MD[:, : self.d1], z_MD[:, self.d1 :]), strict=True):
            torch.mm(part, part.T, out=kernel_MM)
        w_3M = z_MD.new_ones(3, self._filled)
        w_3M[1:] = kernels_2MM.diagonal(dim1=1, dim2=2)
        flat = kernels_2MM.flatten(1)
        return mean_D, flat @ flat.T, w_3M @ w_3M.T
