from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages
from keepsight.data.splits import Draw, SplitConfig, Splits, make_splits, stratified_folds


def dataset(
    labels: list[int] | np.ndarray, parts: tuple[Part, ...] | None = None, classes: int | None = None
) -> Dataset:
    labels = np.asarray(labels, dtype=np.int64)
    k = classes or int(labels.max()) + 1
    images = ArrayImages(np.zeros((len(labels), 1, 1), np.uint8))
    return Dataset("toy", images, labels, tuple(f"class {c}" for c in range(k)), parts or ("",) * len(labels))


def counts(data: Dataset, indices: np.ndarray) -> list[int]:
    return np.bincount(data.labels[indices], minlength=len(data.classes)).tolist()


def random_dataset(rng: np.random.Generator, with_parts: bool) -> Dataset:
    k = int(rng.integers(2, 7))
    labels = np.concatenate([np.full(rng.integers(1, 40), c) for c in range(k)])
    parts = np.array(rng.choice(["", "train", "val", "test"], len(labels), p=[0.4, 0.2, 0.2, 0.2]), dtype=object)
    _, first = np.unique(labels, return_index=True)
    parts[first] = "train"  # every class can be learnt
    labels = np.concatenate([labels, np.full(rng.integers(0, 30), -1)])
    parts = np.concatenate([parts, np.full(len(labels) - len(parts), "", dtype=object)])
    order = rng.permutation(len(labels))
    return dataset(labels[order], tuple(parts[order]) if with_parts else None, classes=k)


@pytest.mark.parametrize("case", range(40))
def test_invariants(case: int) -> None:
    rng = np.random.default_rng(case)
    data = random_dataset(rng, with_parts=bool(case % 2))
    k, labelled_total = len(data.classes), int((data.labels >= 0).sum())
    config = SplitConfig(
        labels=int(rng.integers(k, labelled_total + 5)) if case % 3 else None,
        test=float(rng.uniform(0.05, 0.5)),
        validation=0.0,
        seed=case,
    )
    splits = make_splits(data, config, seeds=(0, 1, 7))
    parts = np.array(data.parts)
    if (parts == "test").any():
        np.testing.assert_array_equal(splits.test, np.flatnonzero(parts == "test"))
    everything = np.arange(len(data.labels))
    for draw, seed in zip(splits.draws, (0, 1, 7), strict=True):
        assert draw.seed == seed
        together = np.concatenate([splits.test, draw.labelled, draw.validation, draw.unlabelled])
        np.testing.assert_array_equal(np.sort(together), everything)  # disjoint, and nothing is lost
        assert (data.labels[draw.labelled] >= 0).all()
        assert set(data.labels[draw.labelled]) == set(range(k))
        assert set(np.flatnonzero(data.labels < 0)) <= set(draw.unlabelled)
        np.testing.assert_array_equal(draw.validation, np.flatnonzero(parts == "val"))
        pool = labelled_total - len(splits.test) - len(draw.validation)
        assert len(draw.labelled) == min(config.labels or pool, pool)
        for part in (draw.labelled, draw.validation, draw.unlabelled, splits.test):
            assert part.dtype == np.int64
            assert (np.diff(part) > 0).all()
    again = make_splits(data, config, seeds=(0, 1, 7))
    assert repr(again) == repr(splits)


def test_demo_sizes() -> None:
    data = dataset(np.repeat(np.arange(10), 500))
    splits = make_splits(data, SplitConfig(labels=100, test=1500), seeds=(0, 1, 2))
    assert counts(data, splits.test) == [150] * 10
    for draw in splits.draws:
        assert counts(data, draw.labelled) == [10] * 10
        assert (len(draw.unlabelled), len(draw.validation)) == (3400, 0)
    assert len({draw.labelled.tobytes() for draw in splits.draws}) == 3


def test_seeds_and_label_counts_leave_the_test_part_alone() -> None:
    data = dataset(np.repeat(np.arange(4), 50))
    first = make_splits(data, SplitConfig(labels=20), seeds=(0,))
    other = make_splits(data, SplitConfig(labels=40, validation=0.25), seeds=(5, 0))
    np.testing.assert_array_equal(first.test, other.test)
    kept = np.union1d(other.draws[1].labelled, other.draws[1].validation)
    assert set(first.draws[0].labelled) < set(kept)  # the same seed: more labels contain fewer
    elsewhere = make_splits(data, SplitConfig(labels=20, seed=1), seeds=(0,))
    assert set(elsewhere.test) != set(first.test)


def test_proportional_with_one_each() -> None:
    data = dataset(np.repeat([0, 1, 2], [900, 95, 5]))
    splits = make_splits(data, SplitConfig(labels=50, test=0.2), seeds=(3,))
    assert counts(data, splits.test) == [180, 19, 1]
    assert counts(data, splits.draws[0].labelled) == [45, 4, 1]  # ideally 45, 4.75 and 0.25


def test_rare_classes_are_tested_where_possible_and_always_learnt(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset([0] * 2 + [1] * 2 + [2] * 100 + [3])
    splits = make_splits(data, SplitConfig(test=0.02), seeds=(0,))
    assert counts(data, splits.test) == [1, 1, 1, 0]
    assert counts(data, splits.draws[0].labelled) == [1, 1, 99, 1]
    assert "class 3" in caplog.text
    assert "1 classes" in caplog.text


def test_an_absolute_test_number_is_met_exactly(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(np.repeat(np.arange(6), 5))
    for n in (1, 4, 6, 11, 24):
        assert len(make_splits(data, SplitConfig(test=n), seeds=(0,)).test) == n
    assert "not in the test part" in caplog.text
    uneven = dataset([0] * 10 + [1] * 2)
    assert counts(uneven, make_splits(uneven, SplitConfig(test=10), seeds=(0,)).test) == [9, 1]  # 8.3 and 1.7 ideally
    with pytest.raises(UserError, match=r"test=25 .* 30 labelled images"):
        make_splits(data, SplitConfig(test=25), seeds=(0,))


@pytest.mark.parametrize("nothing", [None, 0, 0.0])
def test_no_test_part(nothing: float | None) -> None:
    splits = make_splits(dataset([0, 1, 1]), SplitConfig(test=nothing), seeds=(0,))
    assert len(splits.test) == 0
    assert splits.draws[0].labelled.tolist() == [0, 1, 2]


def test_single_labels_stay_for_training() -> None:
    splits = make_splits(dataset([0, 1, 2, -1]), SplitConfig(), seeds=(0,))
    assert len(splits.test) == 0
    assert splits.draws[0].labelled.tolist() == [0, 1, 2]
    assert splits.draws[0].unlabelled.tolist() == [3]


def test_validation_is_part_of_the_labels() -> None:
    data = dataset(np.repeat(np.arange(5), 40))
    draw = make_splits(data, SplitConfig(labels=50, validation=0.2), seeds=(0,)).draws[0]
    assert counts(data, draw.labelled) == [8] * 5
    assert counts(data, draw.validation) == [2] * 5
    with pytest.raises(UserError, match=r"validation=0\.2 needs"):
        make_splits(data, SplitConfig(labels=5, validation=0.2), seeds=(0,))


def test_own_parts_win_and_are_said_to(caplog: pytest.LogCaptureFixture) -> None:
    parts: tuple[Part, ...] = ("train", "", "train", "train", "val", "test", "test")
    data = dataset([0, 1, 1, -1, 0, 1, 1], parts)
    splits = make_splits(data, SplitConfig(test=3, validation=0.4), seeds=(0, 1))
    assert splits.test.tolist() == [5, 6]
    assert "test=3 is not used" in caplog.text
    for draw in splits.draws:
        assert (draw.labelled.tolist(), draw.validation.tolist(), draw.unlabelled.tolist()) == ([0, 1, 2], [4], [3])


def test_own_validation_with_a_drawn_test() -> None:
    labels = np.repeat([0, 1], 20)
    parts: tuple[Part, ...] = tuple("val" if i % 4 == 0 else "" for i in range(40))
    splits = make_splits(dataset(labels, parts), SplitConfig(test=10), seeds=(0,))
    assert len(splits.test) == 10
    assert splits.draws[0].validation.tolist() == list(range(0, 40, 4))
    assert len(splits.draws[0].labelled) == 20


def test_too_many_labels_use_all(caplog: pytest.LogCaptureFixture) -> None:
    splits = make_splits(dataset([0, 0, 1, 1]), SplitConfig(labels=9, test=None), seeds=(0, 1))
    assert all(len(draw.labelled) == 4 for draw in splits.draws)
    assert "fewer than labels=9" in caplog.text


@pytest.mark.parametrize(
    ("labels", "parts", "config", "words"),
    [
        ([0, 0, 1, 1, 2, 2], None, SplitConfig(labels=2), "labels=2 is fewer than the 3 classes"),
        ([0, 1, 2], ("train", "train", "test"), SplitConfig(), "no labelled training image .*class 2"),
        ([0, 1, 2], ("train", "train", "val"), SplitConfig(), "no labelled training image .*class 2"),
        ([0, 1, -1], ("train", "train", "test"), SplitConfig(), "1 test or validation images without a label"),
        ([0, 1], None, SplitConfig(test=1), "test=1 images cannot be held out"),
    ],
)
def test_bad_splits(labels: list[int], parts: tuple[Part, ...] | None, config: SplitConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_splits(dataset(labels, parts), config, seeds=(0,))


@pytest.mark.parametrize("wrong", [{"test": 1.5}, {"test": -1}, {"labels": 0}, {"validation": 1.0}, {"seed": -1}])
def test_bad_configs(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SplitConfig(**wrong)


def test_numbers_and_shares_stay_what_they_are() -> None:
    assert isinstance(SplitConfig(test=1500).test, int)
    assert isinstance(SplitConfig(test=0.2).test, float)


def test_overlap_is_our_own_fault() -> None:
    one = np.array([1])
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="seed 4 overlap"):
        Splits(test=one, draws=(Draw(4, one, none, none),), digest="")


def test_saved_and_read(tmp_path: Path) -> None:
    data = dataset(np.repeat([0, 1, -1], 20))
    splits = make_splits(data, SplitConfig(labels=8, validation=0.25), seeds=(0, 1))
    path = tmp_path / "splits.json"
    splits.save(path)
    assert repr(Splits.read(path, data)) == repr(splits)
    changed = data.labels.copy()
    changed[0] = 1
    renamed = Dataset("toy", data.images, data.labels, ("class 0", "other"), data.parts)
    for other in (dataset(changed), dataset(data.labels[1:]), renamed):
        with pytest.raises(UserError, match="toy changed since"):
            Splits.read(path, other)
    for text in ("", "{}", '{"digest": 1}', "[1]"):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            Splits.read(path, data)


@pytest.mark.parametrize("seed", range(20))
def test_folds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 6))
    labels = rng.permutation(np.repeat(np.arange(classes), rng.integers(2, 15, classes)))
    smallest = np.bincount(labels).min()
    folds = stratified_folds(labels, k=5, seed=seed)
    assert len(folds) == min(5, smallest)
    np.testing.assert_array_equal(np.sort(np.concatenate([val for _, val in folds])), np.arange(len(labels)))
    sizes = [len(val) for _, val in folds]
    assert max(sizes) - min(sizes) <= 1
    for train, val in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(len(labels)))
        assert set(labels[train]) == set(labels[val]) == set(range(classes))
    per_class = np.array([np.bincount(labels[val], minlength=classes) for _, val in folds])
    assert (per_class.max(axis=0) - per_class.min(axis=0) <= 1).all()


def test_folds_at_the_edge() -> None:
    assert stratified_folds(np.array([0, 0, 1]), k=5, seed=0) == []
    labels = np.repeat([3, 8], 10)  # classes need not be consecutive
    one, two = (stratified_folds(labels, k=4, seed=s)[0][1].tolist() for s in (0, 1))
    assert one != two
    for wrong in ([], [-1, 0, 0]):
        with pytest.raises(ValueError, match="folds need"):
            stratified_folds(np.array(wrong, dtype=np.int64), k=3, seed=0)
    with pytest.raises(ValueError, match="folds need"):
        stratified_folds(labels, k=1, seed=0)
