"""Streaming CKA: equal to the whole at once, whatever the batches, the shift and the order of merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from keepsight.objectives.similarity import StreamingCKA, linear_cka


def pair(n: int, d1: int = 6, d2: int = 9, offset: float = 5.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d1, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(d1, d2, generator=generator, dtype=torch.float64)
    return x + offset, y + 3 * torch.randn(n, d2, generator=generator, dtype=torch.float64) - offset


def gram_value(x: Tensor, y: Tensor, debiased: bool) -> float:
    """Through the full n x n matrices, by U-centring: no formula shared with the code under test."""
    n, kernels = len(x), []
    for part in (x, y):
        kernel = part @ part.T
        if debiased:
            kernel.fill_diagonal_(0)
            rows = kernel.sum(0) / (n - 2)
            kernel = kernel - rows - rows[:, None] + kernel.sum() / ((n - 1) * (n - 2))
            kernel.fill_diagonal_(0)
        else:
            kernel = kernel - kernel.mean(0) - kernel.mean(0)[:, None] + kernel.mean()
        kernels.append(kernel)
    a, b = kernels
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def streamed(x: Tensor, y: Tensor, batch: int, chunk: int) -> StreamingCKA:
    cka = StreamingCKA(x.shape[1], y.shape[1], chunk=chunk)
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        cka.update(a, b)
    return cka


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
@pytest.mark.parametrize("batch", [1, 50, 301])
def test_equals_the_whole_to_ten_digits(chunk: int, batch: int) -> None:
    x, y = pair(301)
    cka = streamed(x, y, batch, chunk)
    assert cka.count == 301
    assert cka.debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-11)
    assert cka.biased().item() == pytest.approx(gram_value(x, y, False), rel=1e-11)
    assert cka.debiased().dtype == torch.float64


def test_wide_features_in_several_blocks() -> None:
    x, y = pair(400, 250, 203)
    cka = streamed(x, y, 100, 100)
    assert cka.debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-10)


def test_few_images_of_many_dimensions() -> None:
    x, y = pair(9, 40, 70)
    for chunk in (4, 64):
        assert streamed(x, y, 2, chunk).debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-9)


def test_a_first_batch_far_from_the_rest_costs_no_digits() -> None:
    x, y = pair(4000, offset=0.0)
    x[:8] += 1e3  # the shift starts at the mean of these
    far_x, far_y = x + 1e5, y - 1e5
    assert streamed(far_x, far_y, 8, 8).debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-9)
    assert streamed(far_x[8:], far_y[8:], 8, 8).debiased().item() == pytest.approx(
        gram_value(x[8:], y[8:], True), rel=1e-9
    )


def test_drift_far_beyond_the_spread() -> None:
    """Constant for a while at a far point, then ordinary: without following the mean the sums would keep six digits."""
    x, y = pair(3000, offset=0.0)
    jump_x = torch.cat([torch.full((1, 6), 1e6, dtype=torch.float64), x])
    jump_y = torch.cat([torch.zeros(1, 9, dtype=torch.float64), y])
    cka = streamed(jump_x, jump_y, 1, 1)
    assert cka.biased().item() == pytest.approx(gram_value(jump_x, jump_y, False), rel=1e-6)
    assert cka._sums is not None
    assert cka._sums.shift_D[:6].abs().max() < 2e5  # it has left the first image


@pytest.mark.parametrize("cuts", [(0, 100), (3, 100), (90, 100), (100, 200), (299, 301)])
def test_merging_is_seeing_all(cuts: tuple[int, int]) -> None:
    x, y = pair(301)
    x[: cuts[0]] += 20  # parts with means of their own
    parts = [streamed(a, b, 40, 32) for a, b in zip(x.tensor_split(cuts), y.tensor_split(cuts), strict=True) if len(a)]
    before = [copy.deepcopy(part) for part in parts]
    whole = StreamingCKA(6, 9, chunk=32)
    for part in parts:
        whole.merge(part)
    assert whole.count == 301
    assert whole.debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-11)
    for part, was in zip(parts, before, strict=True):  # the merged ones are as they were
        assert part.count == was.count
        if part.count > 3:
            assert torch.equal(part.debiased(), was.debiased())


def test_merging_with_itself_counts_twice() -> None:
    x, y = pair(100)
    cka = streamed(x, y, 100, 32)
    cka.merge(cka)
    assert cka.count == 200
    assert cka.debiased().item() == pytest.approx(gram_value(x.repeat(2, 1), y.repeat(2, 1), True), rel=1e-10)


def test_asking_changes_nothing() -> None:
    x, y = pair(150)
    cka = StreamingCKA(6, 9, chunk=32)
    for a, b in zip(x.split(10), y.split(10), strict=True):
        cka.update(a, b)
        if cka.count > 3:
            assert torch.equal(cka.debiased(), cka.debiased())
    assert cka.debiased().item() == pytest.approx(gram_value(x, y, True), rel=1e-11)


def test_the_callers_tensors_are_left_alone_and_may_be_reused() -> None:
    x, y = pair(64)
    cka, buffer_x, buffer_y = StreamingCKA(6, 9, chunk=16), torch.empty(16, 6), torch.empty(16, 9)
    for a, b in zip(x.float().split(16), y.float().split(16), strict=True):
        buffer_x.copy_(a), buffer_y.copy_(b)
        cka.update(buffer_x, buffer_y)
        assert torch.equal(buffer_x, a)
    assert cka.debiased().item() == pytest.approx(gram_value(x.float().double(), y.float().double(), True), rel=1e-11)


def test_invariances() -> None:
    x, y = pair(200)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    plain = streamed(x, y, 64, 32).debiased().item()
    assert streamed(3 * x @ turn - 50, y, 64, 32).debiased().item() == pytest.approx(plain, rel=1e-10)


def test_constant_features_and_too_few_images() -> None:
    x, y = pair(100)
    for chunk in (8, 1024):
        cka = streamed(torch.full_like(x, 0.1), y, 30, chunk)
        assert cka.debiased().item() == cka.biased().item() == 0
        for n, ask in ((1, StreamingCKA.biased), (3, StreamingCKA.debiased)):
            with pytest.raises(ValueError, match=f"at least {n + 1} images, got {n}"):
                ask(streamed(x[:n], y[:n], 1, 1 if chunk == 8 else chunk))
        assert streamed(x[:4], y[:4], 1, chunk).debiased().item() == pytest.approx(
            linear_cka(x[:4], y[:4], True).item(), rel=1e-8
        )


def test_bad_shapes_are_named() -> None:
    cka = StreamingCKA(3, 4)
    with pytest.raises(ValueError, match=r"\[m, 3\] and \[m, 4\]"):
        cka.update(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="same m"):
        cka.update(torch.zeros(2, 3), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="cannot be merged"):
        cka.merge(StreamingCKA(3, 5))
    with pytest.raises(ValueError, match="at least 1"):
        StreamingCKA(3, 4, chunk=0)
