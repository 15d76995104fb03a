"""Few-shot, k-NN and the linear probe on small data sets, with features that know the class, or know nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from keepsight.core import Dataset, Findings, Probe, Readout, Schedule, Trainable, UserError, View
from keepsight.core.images import Part
from keepsight.core.probe import Rows
from keepsight.data.arrays import ArrayImages
from keepsight.heads.linear import LinearHead
from keepsight.probes.few_shot import FewShotConfig, FewShotProbe
from keepsight.probes.knn import KnnConfig, KnnProbe
from keepsight.probes.labelled import LabelledConfig, LogisticRule, fit_logistic, load_labelled, mean_over
from keepsight.probes.linear import LinearConfig, LinearProbe

SETS = LabelledConfig(per_set=120, least=10, test=0.4)


def dataset(name: str, counts: tuple[int, ...], seed: int, parts: tuple[Part, ...] | None = None) -> Dataset:
    """Images whose pixels say their class and their number."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    pixels = np.zeros((len(labels), 4, 4), np.uint8)
    pixels[:, 0, 0], pixels[:, 1, 1], pixels[:, 2, 2], pixels[:, 3, 3] = labels, np.arange(len(labels)), seed, 7
    names = tuple(f"{name} {k}" for k in range(len(counts)))
    return Dataset(name, ArrayImages(pixels), labels, names, parts or ("",) * len(labels))


def two_sets() -> tuple[Dataset, ...]:
    return dataset("even", (60, 60, 60), 1), dataset("uneven", (100, 40, 20, 3), 2)


def made(name: str, datasets: tuple[Dataset, ...] | None = None) -> Probe:
    sets = two_sets() if datasets is None else datasets
    if name == "linear":
        return LinearProbe(LinearConfig(sets=SETS), sets)
    if name == "knn":
        return KnnProbe(KnnConfig(sets=SETS), sets)
    return FewShotProbe(FewShotConfig(sets=SETS, shots=(1, 2, 6), draws=4), sets)


class FakeView(View):
    """Vectors [F]: the class on its own axis and noise, or noise alone."""

    depth, text = 2, None

    def __init__(self, probe: Probe, planted: float) -> None:
        pixels = np.stack([np.asarray(probe.images.load(i))[..., 0] for i in range(len(probe.images))])
        noise = np.random.default_rng(3).normal(size=(len(pixels), 12))
        noise[np.arange(len(pixels)), pixels[:, 0, 0]] += planted
        self.values = torch.from_numpy(noise.astype(np.float32))

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        assert str(readout) == "last:cls+mean"
        return self.values[torch.from_numpy(rows)]

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise AssertionError

    def embeddings(self, rows: Rows) -> Tensor:
        raise AssertionError

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise AssertionError


def no_fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    raise AssertionError("nothing is trained by steps")


def measured(probe: Probe, planted: float, shuffled: bool = False) -> Findings:
    return probe.measure(FakeView(probe, planted), no_fit, shuffled)


@pytest.mark.parametrize("name", ["linear", "knn", "few-shot"])
def test_planted_classes_are_found_and_noise_gives_chance(name: str) -> None:
    probe = made(name)
    good, noise, shuffled = measured(probe, 8.0), measured(probe, 0.0), measured(probe, 8.0, shuffled=True)
    for score in good.scores:
        # With an image or two a class, nine axes of noise count as much as the three that tell the classes apart.
        least = {"accuracy (1-shot)": 0.6, "accuracy (2-shot)": 0.75}.get(score.metric, 0.95)
        assert score.figures().mean() > least, score.metric
    assert abs(noise.scores[0].figures().mean() - 1 / 3) < 0.15  # of 96 test images
    assert abs(shuffled.scores[0].figures().mean() - 1 / 3) < 0.2  # of 10 (few-shot: 4) orders of all labels
    assert good.scores[0].chance == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["linear", "knn", "few-shot"])
def test_the_same_again_is_the_same_bit_for_bit(name: str) -> None:
    first, again = made(name), made(name)
    assert first.key() == again.key()
    a, b = measured(first, 2.0), measured(again, 2.0)
    assert all(np.array_equal(x.values, y.values) for x, y in zip(a.scores, b.scores, strict=True))
    assert a.examples == b.examples
    assert made(name, two_sets()[:1]).key() != first.key()


def test_keys_of_the_probes_differ() -> None:
    assert len({made(name).key() for name in ("linear", "knn", "few-shot")}) == 3


def test_scores_are_the_mean_of_the_sets_and_each_set() -> None:
    found = measured(made("few-shot"), 1.5)
    metrics = ["accuracy (1-shot)", "accuracy (2-shot)", "accuracy (6-shot)"]
    assert [(s.metric, s.dataset) for s in found.scores] == [
        *((m, "mean of 2 sets") for m in metrics),
        *((m, name) for name in ("even", "uneven") for m in metrics),
    ]
    assert [s.shown for s in found.scores] == [True] * 3 + [False] * 6
    assert found.scores[0].values.shape == (4, len(found.scores[3].weights) + len(found.scores[6].weights))
    together = (found.scores[3].figures() + found.scores[6].figures()) / 2
    np.testing.assert_allclose(found.scores[0].figures(), together)
    means = [s.figures().mean() for s in found.scores[:3]]
    assert means[0] < means[2]  # more images help


def test_classes_weigh_the_same() -> None:
    """Of an uneven set, always saying the largest class gets 1/K, not its share."""
    (uneven,) = load_labelled(SETS, two_sets()[1:]).sets
    score = uneven.score("accuracy", np.zeros((1, len(uneven.test)), dtype=np.int64))
    assert (uneven.test_labels == 0).mean() > 0.5
    assert score.figures().tolist() == pytest.approx([1 / 3])
    assert score.chance == pytest.approx(1 / 3)


def test_division_is_by_labels_and_seed_alone() -> None:
    labelled = load_labelled(SETS, two_sets())
    even, uneven = labelled.sets
    assert (len(even.train), len(even.test), len(uneven.train), len(uneven.test)) == (72, 48, 72, 48)
    assert np.bincount(even.train_labels).tolist() == [24, 24, 24]
    assert len(uneven.classes) == 3  # the fourth has three images
    assert np.bincount(uneven.test_labels).min() >= 4
    assert np.bincount(uneven.train_labels).min() >= 6
    rows = np.concatenate([even.train, even.test, uneven.train, uneven.test])
    assert np.array_equal(rows, np.arange(len(labelled.images)))
    assert len({labelled.images.content_hash(i) for i in range(len(labelled.images))}) == len(labelled.images)
    for each in labelled.sets:
        for part, labels in ((each.train, each.train_labels), (each.test, each.test_labels)):
            said = [labelled.images.load(int(row)).getpixel((0, 0))[0] for row in part]
            assert [f"{each.name} {k}" for k in said] == [each.classes[k] for k in labels]
    other = load_labelled(SETS.model_copy(update={"seed": 1}), two_sets())
    assert [other.images.content_hash(i) for i in range(5)] != [labelled.images.content_hash(i) for i in range(5)]


def test_a_test_part_of_the_sets_own_is_kept() -> None:
    parts: tuple[Part, ...] = tuple(("train", "val", "test")[i % 3] for i in range(180))  # type: ignore[misc]
    own = dataset("own", (90, 90), 4, parts)
    labelled = load_labelled(SETS, (own,))
    numbers = [labelled.images.load(i).getpixel((1, 1))[0] for i in range(len(labelled.images))]
    (only,) = labelled.sets
    assert {numbers[int(row)] % 3 for row in only.train} == {0}
    assert {numbers[int(row)] % 3 for row in only.test} == {2}


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(UserError, match="from 2 to 12 such classes"):
        load_labelled(SETS, (dataset("small", (5, 50), 0),))
    with pytest.raises(UserError, match="name of its own"):
        load_labelled(SETS, (*two_sets(), two_sets()[0]))
    targets = np.zeros((2, 2), np.int8)
    several = Dataset(
        "several", ArrayImages(np.zeros((2, 4, 4), np.uint8)), np.zeros(2, np.int64), ("a", "b"), ("", ""), targets
    )
    with pytest.raises(UserError, match="multi-label"):
        load_labelled(SETS, (several,))
    with pytest.raises(ValueError, match="cannot be divided"):
        LabelledConfig(least=2, test=0.1)


def test_the_strength_is_chosen_where_it_can_be() -> None:
    """A penalty that leaves nothing is not chosen; a single image of each class gets the default, whatever it looks like."""
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(60) % 3
    x_NF = torch.randn(60, 10, generator=generator)
    x_NF[torch.arange(60), torch.from_numpy(labels)] += 3

    def size(strengths: tuple[float, ...], rows: int) -> float:
        head: LinearHead = fit_logistic(x_NF[:rows], labels[:rows], 3, LogisticRule(strengths=strengths), 0)
        return float(head.weight_KF.detach().norm())

    assert size((1e-2,), 60) > 100 * size((1e3,), 60)
    assert size((1e-2, 1e3), 60) == size((1e3, 1e-2), 60) == size((1e-2,), 60)
    assert size((1e-2,), 3) == size((1e3,), 3)


def test_features_that_collapsed_give_the_commonest_class() -> None:
    head = fit_logistic(torch.ones(9, 4), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2]), 3, LogisticRule(), 0)
    assert head(torch.randn(5, 4)).argmax(dim=1).tolist() == [0] * 5


def test_a_mean_of_one_is_that_one() -> None:
    (each,) = load_labelled(SETS, two_sets()[:1]).sets
    score = each.score("accuracy", each.test_labels[None])
    assert mean_over([score]).dataset == "even"
    assert mean_over([score]).figures().tolist() == pytest.approx([1.0])
    found = measured(made("knn", two_sets()[:1]), 8.0)
    assert [(s.dataset, s.shown) for s in found.scores] == [("even", True)]
