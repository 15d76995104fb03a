"""Fewer images: how many, of which classes, the same test images, and the same ones each time."""

from __future__ import annotations

import numpy as np
import pytest

from keepsight.core import Dataset
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages
from keepsight.data.limit import limited
from keepsight.data.splits import SplitConfig, make_splits


def numbered(parts: list[Part], labels: np.ndarray) -> Dataset:
    n = len(labels)
    pixels = np.arange(n, dtype=np.int64).astype(np.uint8).repeat(4).reshape(n, 2, 2)
    return Dataset("numbers", ArrayImages(pixels), labels, ("a", "b", "c"), tuple(parts))


def names(dataset: Dataset, part: str | None = None) -> set[str]:
    return {dataset.images.name(i) for i in range(len(dataset.images)) if part is None or dataset.parts[i] == part}


def test_a_drawn_test_part_is_the_one_of_the_whole_and_the_pool_is_stratified() -> None:
    labels = np.repeat([0, 1, 2, -1], [120, 60, 30, 30])
    whole, split = numbered([""] * 240, labels), SplitConfig(test=21)
    few = limited(whole, split, 40)
    test = make_splits(whole, split, (0,)).test
    assert names(few, "test") == {whole.images.name(int(i)) for i in test}
    pool = few.labels[np.array(few.parts) != "test"]
    assert len(pool) == 40
    assert [int((pool == c).sum()) for c in (0, 1, 2, -1)] == [20, 10, 5, 5]
    again = make_splits(few, SplitConfig(labels=10), (0, 1))
    assert len(again.test) == 21
    assert len(again.draws[0].labelled) + len(again.draws[0].unlabelled) == 40


def test_an_own_test_part_is_cut_to_a_number_but_not_to_a_share() -> None:
    labels = np.arange(200) % 3
    parts: list[Part] = ["test" if i < 90 else "val" if i < 100 else "" for i in range(200)]
    whole = numbered(parts, labels)
    few = limited(whole, SplitConfig(test=30), 60)
    assert [few.parts.count(p) for p in ("test", "val", "")] == [30, 10, 60]
    assert names(few, "test") < names(whole, "test")
    assert np.bincount(few.labels[np.array(few.parts) == "test"]).tolist() == [10, 10, 10]
    assert limited(whole, SplitConfig(test=0.3), 60).parts.count("test") == 90


def test_it_is_drawn_by_the_split_seed() -> None:
    whole = numbered([""] * 120, np.arange(120) % 3)
    once, again = limited(whole, SplitConfig(test=12), 30), limited(whole, SplitConfig(test=12), 30)
    assert names(once) == names(again)
    assert names(limited(whole, SplitConfig(test=12, seed=1), 30)) != names(once)


def test_nothing_to_leave_out(caplog: pytest.LogCaptureFixture) -> None:
    whole = numbered([""] * 60, np.arange(60) % 3)
    assert limited(whole, SplitConfig(test=12), None) is whole
    assert len(limited(whole, SplitConfig(test=12), 500).images) == 60
    assert "fewer than the pool of 500" in caplog.text
