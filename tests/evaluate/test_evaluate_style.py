"""Figures about style, on a head whose parts are known exactly: the token is content and style side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keepsight.evaluate.style import (
    Decomposed,
    decompose,
    nearest_tokens,
    neighbours,
    probe,
    reconstruction,
    style_figures,
    swap,
)
from keepsight.heads.content_style import ContentStyleHead

K, S = 3, 2


class Part(nn.Module):
    """A slice of the token; the logarithm of it, where it is content."""

    def __init__(self, start: int, stop: int, logarithm: bool = False) -> None:
        super().__init__()
        self.start, self.stop, self.logarithm = start, stop, logarithm

    def forward(self, z_BD: Tensor, dropout: object = None) -> Tensor:
        part = z_BD[:, self.start : self.stop]
        return part.clamp(min=1e-12).log() if self.logarithm else part


class Same(nn.Module):
    def forward(self, z_BD: Tensor, dropout: object = None) -> Tensor:
        return z_BD


def exact_head() -> ContentStyleHead:
    """decode(content(z), style(z)) is z."""
    head = ContentStyleHead(features=K + S, reduced=K + S, classes=K, style=S)
    head.reduction.axes_FD.copy_(torch.eye(K + S))
    head.content_network = Part(0, K, logarithm=True)  # type: ignore[assignment]
    head.style_network = Part(K, K + S)  # type: ignore[assignment]
    head.decoder = Same()  # type: ignore[assignment]
    return head


def images(n_each: int = 20, seed: int = 0, styles: str = "shared") -> Decomposed:
    """Every class with the same styles, or with styles of its own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(K), n_each)
    content = torch.softmax(torch.from_numpy(8 * np.eye(K)[labels]).float(), dim=1)
    own = np.tile(rng.normal(size=(n_each, S)), (K, 1))
    style = own if styles == "shared" else own * 0.1 + 3 * np.eye(K)[labels][:, :S]
    tokens = torch.cat([content, torch.from_numpy(style).float()], dim=1)
    return decompose(exact_head(), tokens, labels.astype(np.int64))


def test_an_images_own_content_and_style_find_itself() -> None:
    of = images()
    places, cosines = nearest_tokens(of, of.content_NK, of.style_NS)
    assert places[:, 0].tolist() == list(range(len(of.tokens_ND)))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_excluded_images_are_never_the_answer_and_more_come_in_order() -> None:
    of = images()
    places, cosines = nearest_tokens(of, of.content_NK[:4], of.style_NS[:4], [(i, i + 1) for i in range(4)], count=50)
    for i in range(4):
        assert not {i, i + 1} & set(places[i].tolist())
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_swapping_finds_the_image_of_that_content_with_that_style() -> None:
    of = images()
    chosen = np.array([2, 23, 44])  # one a class, with the styles 2, 3 and 4
    found = swap(of, chosen)
    for row, i in enumerate(chosen):
        for column, j in enumerate(chosen):
            if row != column:
                assert found.nearest[row][column] == i // 20 * 20 + j % 20
                assert found.cosines[row][column] == pytest.approx(1, abs=1e-5)
            else:
                assert found.nearest[row][column] != i
    assert (found.swapped, found.kept, found.taken) == (6, 6, 0)
    assert (found.swapped_true, found.kept_true) == (6, 6)
    assert found.style_distance < 1e-5 < 0.5 < found.style_distance_random


def test_where_style_is_the_class_the_class_goes_with_it() -> None:
    of = images(styles="own")
    found = swap(of, np.array([2, 23]))
    assert (found.swapped, found.kept, found.taken) == (2, 0, 2)


def test_true_classes_count_only_where_they_are_known() -> None:
    of = images()
    hidden = Decomposed(of.head, of.tokens_ND, of.content_NK, of.style_NS, np.full_like(of.labels_N, -1))
    found = swap(hidden, np.array([2, 23, 44]))
    assert (found.swapped, found.swapped_true, found.kept_true) == (6, 0, 0)


def test_neighbours_in_each_space() -> None:
    of = images()
    found = neighbours(of, 5, 4)
    assert set(found["style"][:2].tolist()) == {25, 45}  # the same style in the two other classes
    assert (of.predicted[found["style"]] != 0).all()
    assert (of.predicted[found["content"]] == 0).all()
    assert 5 not in np.concatenate(list(found.values()))


def test_neighbours_of_the_only_class_there_is() -> None:
    of = images()
    first = decompose(of.head, of.tokens_ND[:20], of.labels_N[:20])
    found = neighbours(first, 0, 4)
    assert len(found["style"]) == 0
    assert len(found["token"]) == 4


def test_probes_tell_shared_styles_from_styles_that_are_the_class() -> None:
    shared, own = (probe(images(60, styles=s), "class", images(60).labels_N) for s in ("shared", "own"))
    assert shared is not None
    assert own is not None
    assert shared.style < 0.45
    assert own.style > 0.95
    assert (shared.content, shared.chance, shared.n) == (1.0, pytest.approx(1 / 3), 180)


def test_probes_of_numbers_and_texts_and_of_what_is_unknown() -> None:
    of = images(60)
    number = of.style_NS[:, 0].double().numpy().copy()
    number[:10] = np.nan
    found = probe(of, "angle", number)
    assert found is not None
    assert (found.measure, found.n) == ("r2", 170)
    assert found.style > 0.99
    assert found.content < 0.1
    text = np.where(of.style_NS[:, 1].numpy() > 0, "left", "right").astype("<U5")
    text[:5] = ""
    side = probe(of, "side", text)
    assert side is not None
    assert (side.measure, side.n) == ("accuracy", 175)
    assert side.style > 0.9
    assert probe(of, "constant", np.zeros(180)) is None
    assert probe(of, "unique", np.arange(180).astype(str)) is None


def test_reconstruction_says_what_the_decoder_uses() -> None:
    of = images(styles="shared")
    found = reconstruction(of)
    assert found.own == pytest.approx(0, abs=1e-6)
    assert found.style_permuted > 0.1
    assert found.content_permuted > 0.05


def test_style_figures() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(size=4000)
    style = torch.from_numpy(np.stack([normal, 2 + 3 * rng.exponential(size=4000), -normal, np.ones(4000)], axis=1))
    found = style_figures(style)
    assert found.mean == pytest.approx((0, 5, 0, 1), abs=0.15)
    assert found.sd == pytest.approx((1, 3, 1, 0), abs=0.15)
    assert found.normality[0] > 0.998 > 0.95 > found.normality[1]
    assert found.normality[3] == 0
    assert found.largest_correlation == pytest.approx(1)
