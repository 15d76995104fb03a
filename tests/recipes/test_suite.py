"""What a suite holds: which images, which classes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keepsight.core import Dataset, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.stamps import STAMPS_FOLDER
from keepsight.recipes import suite as suite_module
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.origin import SKETCH, sketch
from keepsight.recipes.suite import check_suite, load_suite


def lopsided() -> Dataset:
    """200 of one class, 50 of another, 4 of a third, 10 without a label."""
    labels = np.repeat([0, 2, 1, -1], [200, 50, 4, 10]).astype(np.int64)
    images = np.arange(264, dtype=np.int64).astype(np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2).copy()
    images[:, 0, 0] = np.arange(264) // 256
    return Dataset("lopsided", ArrayImages(images), labels, ("many", "few", "some"), ("",) * 264)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "load_dataset", lambda *_, **__: lopsided())


def test_images_are_drawn_in_proportion_and_rare_classes_are_named(given: None) -> None:
    found = load_suite(ForgettingConfig(suite=("mine",), per_set=100), ())
    (only,) = found.sets
    assert only.classes == ("many", "some")
    assert np.bincount(only.labels).tolist() == [80, 20]
    assert found.notes == ("lopsided is measured without its classes of fewer than 5 images: few.",)
    again = load_suite(ForgettingConfig(suite=("mine",), per_set=100), ()).sets[0]
    other = load_suite(ForgettingConfig(suite=("mine",), per_set=100, seed=1), ()).sets[0]
    hashes = [[d.images.content_hash(i) for i in range(100)] for d in (only, again, other)]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_labels_belong_to_their_images(given: None) -> None:
    whole = lopsided()
    name_of = {whole.images.content_hash(i): whole.labels[i] for i in range(254)}
    (only,) = load_suite(ForgettingConfig(suite=("mine",), per_set=100), ()).sets
    for i in range(100):
        assert whole.classes[name_of[only.images.content_hash(i)]] == only.classes[only.labels[i]]


def test_too_few_images_for_the_classes(given: None, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 30 * 6
    many = Dataset(
        "many", ArrayImages(np.zeros((n, 4, 4), np.uint8)), np.arange(n) % 30, tuple(map(str, range(30))), ("",) * n
    )
    monkeypatch.setattr(suite_module, "load_dataset", lambda *_, **__: many)
    with pytest.raises(UserError, match=r"30 classes, and per_set=100 .* 150 or more"):
        load_suite(ForgettingConfig(suite=("mine",), per_set=100), ())
    one = Dataset("one", many.images, np.zeros(n, np.int64), ("only",), many.parts)
    monkeypatch.setattr(suite_module, "load_dataset", lambda *_, **__: one)
    with pytest.raises(UserError, match="1 classes with at least 5"):
        load_suite(ForgettingConfig(suite=("mine",)), ())
    with pytest.raises(UserError, match="1 classes with at least 5"):
        check_suite(ForgettingConfig(suite=("mine",)))
    check_suite(ForgettingConfig(suite=("mine",), measure=False))
    check_suite(ForgettingConfig())


def test_the_sketch_of_a_large_set_finds_the_same_set_again() -> None:
    hashes = [np.random.default_rng(i).bytes(32) for i in range(SKETCH + 500)]
    kept = sketch(hashes)
    assert len(kept) == SKETCH
    assert set(kept) <= {h.hex()[:16] for h in hashes}
    assert kept == sketch(reversed(hashes))


@pytest.mark.skipif(not STAMPS_FOLDER.is_dir(), reason="left out: Debian's tuxpaint-stamps-default is not installed")
def test_the_bundled_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "BUNDLED_SETS", ("mnist-5k", "digits", "fashion-mnist", "stamps"))
    found = load_suite(ForgettingConfig(per_set=120), ())
    names = [s.name for s in found.sets]
    assert {"mnist-5k", "digits", "stamps"} <= set(names)
    assert all(len(s.images) == 120 for s in found.sets)
    stamps = found.sets[names.index("stamps")]
    assert "animals" in stamps.classes
    white = stamps.images.load(0)
    assert white.mode == "RGB"


def test_a_set_of_the_same_name_gets_a_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite_module, "load_dataset", lambda *_, **__: lopsided())
    found = load_suite(ForgettingConfig(suite=("a/leaves", "b/leaves")), ())
    assert [s.name for s in found.sets] == ["lopsided", "lopsided-2"]
