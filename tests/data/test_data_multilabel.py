"""Splits, folds, smaller sets and the data report of images with several classes each, on real digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from keepsight.core import Dataset, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.check import check_data
from keepsight.data.limit import limited
from keepsight.data.load import check_dataset
from keepsight.data.multilabel import (
    class_text,
    deal,
    draw_rows,
    multilabel_dataset,
    multilabel_folds,
    require_single_label,
)
from keepsight.data.splits import SplitConfig, dataset_digest, make_splits
from keepsight.data.subset import subset

CLASSES = ("even", "prime", "above four")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """300 digits; the last 40 have no labels."""
    found = load_digits()
    y = found.target[:300]
    targets = np.stack([y % 2 == 0, np.isin(y, (2, 3, 5, 7)), y > 4], axis=1).astype(np.int8)
    targets[260:] = -1
    images = ArrayImages((found.images[:300] * 15).astype(np.uint8))
    return multilabel_dataset("digits", images, targets, CLASSES, ("",) * 300)


def shares(data: Dataset, indices: np.ndarray) -> np.ndarray:
    return (data.truth[indices] == 1).mean(axis=0)


def rare(n: int = 200, k: int = 6) -> np.ndarray:
    """Class c is on about one image in 2^(c+1)."""
    return (np.random.default_rng(0).random((n, k)) < 0.5 ** np.arange(1, k + 1)).astype(np.int8)


def test_targets_and_labels_must_agree(digits: Dataset) -> None:
    assert set(digits.labels[:260]) == {0}
    assert set(digits.labels[260:]) == {-1}
    assert digits.truth is digits.targets
    for wrong in (digits.labels * 0, np.where(digits.labels == 0, 1, -1)):
        with pytest.raises(ValueError, match="targets are 0 or 1"):
            replace(digits, labels=wrong)
    with pytest.raises(ValueError, match="must be \\[images, classes\\]"):
        replace(digits, classes=("even",))


def test_parts_have_every_class_in_proportion(digits: Dataset) -> None:
    splits = make_splits(digits, SplitConfig(labels=60, test=0.25, validation=0.2), (0, 1))
    assert len(splits.test) == 65
    everything = shares(digits, np.arange(260))
    for indices, near in ((splits.test, 0.02), (splits.draws[0].labelled, 0.04), (splits.draws[1].validation, 0.1)):
        assert np.abs(shares(digits, indices) - everything).max() < near
    for draw in splits.draws:
        assert (len(draw.labelled), len(draw.validation)) == (48, 12)
        assert set(range(260, 300)) <= set(draw.unlabelled)
    assert not np.array_equal(splits.draws[0].labelled, splits.draws[1].labelled)
    again = make_splits(digits, SplitConfig(labels=60, test=0.25, validation=0.2), (0, 1))
    assert np.array_equal(again.draws[1].labelled, splits.draws[1].labelled)
    assert again.digest == splits.digest


def test_the_digest_sees_targets(digits: Dataset) -> None:
    changed = np.array(digits.targets)
    changed[0, 0] = 1 - changed[0, 0]
    assert dataset_digest(replace(digits, targets=changed)) != dataset_digest(digits)


def test_every_class_stays_and_every_class_is_drawn() -> None:
    targets = np.zeros((40, 5), np.int8)
    targets[np.arange(5), np.arange(5)] = targets[5 + np.arange(4), np.arange(4)] = 1  # class 4 has a single image
    for seed in range(20):
        few = draw_rows(targets, 5, np.random.default_rng(seed))
        assert len(few) == 5
        assert (targets[few].sum(axis=0) >= 1).all()
        test = draw_rows(targets, 8, np.random.default_rng(seed), leave=True)
        rest = np.setdiff1d(np.arange(40), test)
        assert len(test) == 8
        assert (targets[rest].sum(axis=0) >= 1).all()
        assert (targets[test].sum(axis=0) == [1, 1, 1, 1, 0]).all()
    with pytest.raises(ValueError, match="36 of 40 rows cannot be drawn: 35 are free"):
        draw_rows(targets, 36, np.random.default_rng(0), leave=True)


def test_rare_classes_are_dealt_out_more_evenly_than_by_chance() -> None:
    targets, sizes = rare(), (50,) * 4
    part = deal(targets, sizes, np.random.default_rng(0))
    assert np.bincount(part).tolist() == [50] * 4
    spread = [np.ptp([targets[part == p, k].sum() for p in range(4)]) for k in range(6)]
    by_chance = []
    for seed in range(20):
        random = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 50))
        by_chance.append([np.ptp([targets[random == p, k].sum() for p in range(4)]) for k in range(6)])
    assert max(spread) <= 2
    assert np.mean(by_chance, axis=0).min() > 1.5


def test_folds_hold_every_row_out_once() -> None:
    targets = rare()
    targets[:, 5] = 0
    targets[3, 5] = 1  # a class with a single image does not take the folds away
    folds = multilabel_folds(targets, 3, seed=0)
    assert np.array_equal(np.sort(np.concatenate([held_out for _, held_out in folds])), np.arange(200))
    for training, held_out in folds:
        assert not np.intersect1d(training, held_out).size
        assert (targets[held_out, :5].sum(axis=0) >= 1).all()
    assert multilabel_folds(np.eye(3, dtype=np.int8), 5, seed=0) == []


def test_a_limited_pool_keeps_the_test_part_and_the_shares(digits: Dataset) -> None:
    config = SplitConfig(test=50)
    few = limited(digits, config, pool=90)
    assert len(few.images) == 140
    test = np.flatnonzero(np.array(few.parts) == "test")
    assert len(test) == 50
    pool = np.flatnonzero(np.array(few.parts) == "")
    labelled = pool[few.labels[pool] == 0]
    assert len(labelled) == 76  # 90 x 210 / 250: images without labels keep their share
    assert np.abs(shares(few, labelled) - shares(digits, np.arange(260))).max() < 0.04
    whole = make_splits(digits, config, (0,)).test
    assert {few.images.content_hash(i) for i in test} == {digits.images.content_hash(i) for i in whole}


def test_what_cannot_be_split_is_refused(digits: Dataset) -> None:
    with pytest.raises(UserError, match="labels=1 images are too few for the 3 classes"):
        make_splits(digits, SplitConfig(labels=1), (0,))
    with pytest.raises(UserError, match="test=260 images cannot be held out"):
        make_splits(digits, SplitConfig(test=260), (0,))
    without = np.array(digits.targets)
    without[:260, 1] = 0
    with pytest.raises(UserError, match="no labelled training image of 1 of its classes \\('prime'\\)"):
        make_splits(replace(digits, targets=without), SplitConfig(), (0,))
    with pytest.raises(UserError, match="no training image has any of its classes"):
        check_dataset(replace(digits, targets=np.minimum(digits.truth, 0).astype(np.int8)), "digits")
    check_dataset(digits, "digits")
    with pytest.raises(UserError, match="and keepsight sweep needs one class an image"):
        require_single_label(digits, "keepsight sweep")


def test_the_report_counts_each_class_of_an_image(digits: Dataset) -> None:
    twice = subset(digits, np.array([*range(290), 1]))
    targets = np.array(twice.targets)
    targets[290] = 1 - targets[290]
    report = check_data(replace(twice, targets=targets), near=False)
    assert [c.parts[""] for c in report.classes] == (targets == 1).sum(axis=0).tolist()
    assert report.labelled == 261
    assert report.multilabel is not None
    assert report.multilabel.classes == pytest.approx((targets == 1).sum() / 261)
    assert report.multilabel.none == int((targets == 0).all(axis=1).sum())
    assert report.duplicates[0].conflicts
    assert report.duplicates[0].labels == ("(none)", "even|prime|above four")
    said = [finding.text for finding in report.findings]
    assert any(text.startswith("Multi-label data: an image has 1.4 of 3 classes on average") for text in said)
    assert not any(finding.severity == "error" for finding in report.findings)


def test_a_class_that_all_images_have_is_warned_about(digits: Dataset) -> None:
    targets = np.array(digits.targets)
    targets[:260, 0] = 1
    report = check_data(replace(digits, targets=targets), near=False)
    assert any("('even') that every training image has" in finding.text for finding in report.findings)


def test_labels_as_text(digits: Dataset) -> None:
    assert [class_text(digits, i) for i in (0, 2, 5, 9, 299)] == [
        "even",
        "even|prime",
        "prime|above four",
        "above four",
        None,
    ]
