import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from alignment_parts import FakeTower, FakeView, plain_fit
from keepsight.core import Config, Schedule, UserError, View
from keepsight.probes import alignment
from keepsight.probes.alignment import AlignmentConfig, FrozenTexts
from keepsight.probes.retrieval import RetrievalConfig, RetrievalProbe, hit_chance, recalls

COLOURS = ("red", "green", "blue", "grey", "pink", "gold")
THINGS = ("cat", "dog", "tree", "boat", "house", "star", "moon", "fish")


def write_pairs(folder: Path) -> Path:
    """48 combinations of a colour and a thing, each of three images with two captions; a third of them is for testing."""
    entries = []
    (folder / "images").mkdir(parents=True)
    for number in range(144):
        colour, thing = COLOURS[number % 6], THINGS[number // 6 % 8]
        buffer = io.BytesIO()
        Image.new("L", (2, 2), number).save(buffer, "PNG")
        (folder / "images" / f"{number}.png").write_bytes(buffer.getvalue())
        entries.append(
            {
                "filename": f"{number}.png",
                "split": "test" if (number % 6 + number // 6 % 8) % 3 == 0 else "train",
                "sentences": [{"raw": f"{colour} {thing}"}, {"raw": f"some {colour} {thing}"}],
            }
        )
    file = folder / "dataset_things.json"
    file.write_text(json.dumps({"images": entries}))
    return file


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RetrievalProbe:
    monkeypatch.setattr(alignment, "load_text_tower", lambda name: FakeTower())
    schedule = Schedule(steps=60, batch_size=64, lr=1e-2)
    config = RetrievalConfig(
        data=str(write_pairs(tmp_path)),
        alignment=AlignmentConfig(tower="fake", readout="last:mean", reduced=20, seeds=2, schedule=schedule),
    )
    return RetrievalProbe(config)


def planted(probe: RetrievalProbe, noise: float, seed: int = 0) -> Tensor:
    """A mixture of the colour's and the thing's own features."""
    generator = torch.Generator().manual_seed(seed)
    of_colour, of_thing = (torch.randn(n, 24, generator=generator) for n in (6, 8))
    numbers = torch.tensor([int(Path(probe.images.name(i)).stem) for i in range(len(probe.images))])
    return (
        of_colour[numbers % 6] + of_thing[numbers // 6 % 8] + noise * torch.randn(len(numbers), 24, generator=generator)
    )


def figures(probe: RetrievalProbe, view: View, shuffled: bool = False) -> dict[str, tuple[float, float]]:
    found = probe.measure(view, plain_fit, shuffled)
    return {score.metric: (float(score.figures().mean()), score.chance or math.nan) for score in found.scores}


def test_planted_signal_is_found_and_noise_is_chance(probe: RetrievalProbe) -> None:
    good = figures(probe, FakeView(planted(probe, 0.1)))
    for way in ("image to text", "text to image"):
        value, chance = good[f"recall10 ({way})"]
        assert value > 0.9
        assert chance < 0.6
    value, chance = good["recall1 (image to text)"]
    assert value > 5 * chance
    noise = FakeView(torch.randn(len(probe.images), 24, generator=torch.Generator().manual_seed(5)))
    for view, shuffled in ((noise, False), (FakeView(planted(probe, 0.1)), True)):
        for value, chance in figures(probe, view, shuffled).values():
            assert abs(value - chance) < 0.25


def test_the_same_view_gives_the_same_bits_and_seeds_differ(probe: RetrievalProbe) -> None:
    view = FakeView(planted(probe, 1.5))
    first = probe.measure(view, plain_fit)
    torch.manual_seed(77)
    second = probe.measure(view, plain_fit)
    for one, two in zip(first.scores, second.scores, strict=True):
        assert np.array_equal(one.values, two.values)
    assert any(len(set(score.figures().tolist())) == 2 for score in first.scores)
    assert first.examples == second.examples


def test_what_is_tested_was_not_learnt_from(probe: RetrievalProbe) -> None:
    assert len(probe.learn.rows) + len(probe.rows) == len(probe.images) == 144
    assert not set(probe.rows.tolist()) & set(probe.learn.rows.tolist())
    learnt = {caption for captions in probe.learn.captions for caption in captions}
    assert not learnt & set(probe.texts)
    found = probe.measure(FakeView(planted(probe, 0.1)), plain_fit)
    assert found.scores[0].values.shape == (2, len(probe.rows))
    assert found.scores[3].values.shape == (2, len(probe.texts))
    for example in found.examples:
        assert probe.images.name(example.row).endswith(".png")
        assert example.truth in probe.texts


def test_a_text_tower_of_the_backbones_own(probe: RetrievalProbe) -> None:
    tower = FakeTower()
    captions = [*probe.learn.captions, *(tuple(probe.texts[t] for t in own) for own in probe.owned)]
    view = FakeView(torch.stack([tower.encode(own).mean(0) for own in captions]), tower)

    def no_fit(*_: object) -> None:
        raise AssertionError("nothing is learnt")

    found = {score.metric: score for score in probe.measure(view, no_fit).scores}
    assert found["recall1 (image to text)"].values.shape == (1, len(probe.rows))
    assert found["recall1 (image to text)"].figures()[0] > 0.95
    shuffled = probe.measure(view, no_fit, shuffled=True)
    for score in shuffled.scores:
        assert score.chance is not None
        assert abs(score.figures()[0] - score.chance) < 0.25


def test_key_follows_settings_and_captions(probe: RetrievalProbe, tmp_path: Path) -> None:
    assert probe.key() == RetrievalProbe(probe.config).key()
    assert probe.key() != RetrievalProbe(probe.config.model_copy(update={"seed": 1})).key()
    file = Path(probe.config.data)
    file.write_text(file.read_text().replace("some red cat", "one red cat"))
    assert probe.key() != RetrievalProbe(probe.config).key()


def test_alignment_pairs_are_limited_by_the_seed(probe: RetrievalProbe) -> None:
    few = RetrievalProbe(probe.config.model_copy(update={"pairs_at_most": 10}))
    assert len(few.learn.rows) == 10
    assert len(few.rows) == len(probe.rows)


def test_recall_against_plain_sorting() -> None:
    rng = np.random.default_rng(0)
    q, g = (F.normalize(torch.from_numpy(rng.standard_normal((n, 6))), dim=1) for n in (30, 40))
    right = tuple(rng.choice(40, rng.integers(1, 6), replace=False) for _ in range(30))
    order = (q @ g.T).argsort(dim=1, descending=True).numpy()
    for number, depth in enumerate((1, 5, 10)):
        expected = [
            float(bool(set(row[:depth].tolist()) & set(own.tolist()))) for row, own in zip(order, right, strict=True)
        ]
        assert recalls(q, g, right)[number].tolist() == expected


def test_ties_count_as_the_mean_over_all_orders() -> None:
    rng = np.random.default_rng(1)
    q = torch.from_numpy(rng.integers(0, 2, (20, 3)).astype(np.float64))
    g = torch.from_numpy(rng.integers(0, 2, (25, 3)).astype(np.float64))
    right = tuple(rng.choice(25, 2, replace=False) for _ in range(20))
    similar = (q @ g.T).numpy()
    drawn = np.zeros((3, 20))
    for _ in range(1000):
        order = np.argsort(-(similar + 1e-6 * rng.random(similar.shape)), axis=1)
        drawn += [
            [bool(set(row[:depth]) & set(own)) for row, own in zip(order, right, strict=True)] for depth in (1, 5, 10)
        ]
    assert np.abs(recalls(q, g, right) - drawn / 1000).max() < 0.08


def test_collapsed_and_undefined_features_give_chance() -> None:
    right = tuple(np.array([i, i + 1]) for i in range(20))
    for value in (1.0, math.nan):
        found = recalls(torch.full((20, 3), value), torch.full((21, 3), value), right)
        chance = [1 - math.comb(19, depth) / math.comb(21, depth) for depth in (1, 5, 10)]
        np.testing.assert_allclose(found, np.repeat(np.array(chance)[:, None], 20, axis=1), rtol=1e-9)


def test_hit_chance_counts() -> None:
    for above, right, level, depth in ((0, 1, 5, 3), (2, 2, 6, 5), (4, 1, 1, 5), (5, 3, 9, 5), (0, 3, 4, 2)):
        places = max(0, min(depth - above, level))
        expected = 1 - math.comb(level - right, places) / math.comb(level, places)
        found = hit_chance(*(np.array([each]) for each in (above, right, level)), depth)
        assert found[0] == pytest.approx(expected)


def test_missing_data_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image-caption pairs"):
        RetrievalProbe(RetrievalConfig(data=str(tmp_path / "none")))


def test_texts_are_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Counting(FakeTower):
        def encode(self, texts: Sequence[str]) -> Tensor:
            asked.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(alignment, "load_text_tower", lambda name: Counting())
    texts = FrozenTexts("fake")
    first = texts(["b a", "a", "b a"])
    second = texts(["a", "c"])
    assert sorted(asked) == ["a", "b a", "c"]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], second[0])


def test_configs_are_configs() -> None:
    assert isinstance(RetrievalConfig(), Config)
    with pytest.raises(UserError, match="nonsense"):
        AlignmentConfig(readout="nonsense")
