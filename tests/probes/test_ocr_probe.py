from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.text import char_error_rate

from keepsight.core import Batch, Readout, Schedule, Trainable, UserError, View
from keepsight.core.probe import Rows
from keepsight.heads.ctc import CtcNetConfig
from keepsight.probes.ocr import OcrConfig, OcrProbe, edit_distance, plain

SMALL = OcrConfig(
    train=160,
    test=60,
    seeds=1,
    net=CtcNetConfig(width=64),
    schedule=Schedule(steps=140, batch_size=32, lr=5e-3),
)
CHANNELS, SIDE = 32, 8


class FakeView(View):
    """Maps on which the letters stand side by side, of equal width, in the middle row."""

    depth, text = 12, None

    def __init__(self, probe: OcrProbe) -> None:
        self.asked: list[tuple[int, ...]] = []
        rng = np.random.default_rng(0)
        letters_ZC = 4 * rng.standard_normal((26, CHANNELS))
        self.maps_NChw = rng.standard_normal((len(probe.images), CHANNELS, 3, SIDE)).astype(np.float32)
        for row in range(len(probe.images)):
            word = probe.images.name(row).split()[1]
            for column in range(SIDE):
                letter = word[column * len(word) // SIDE]
                self.maps_NChw[row, :, 1, column] += letters_ZC[ord(letter) - ord("a")]

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        self.asked.append(blocks)
        return torch.from_numpy(self.maps_NChw[rows])

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        raise NotImplementedError

    def embeddings(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


def fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), schedule.lr, weight_decay=schedule.weight_decay)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(schedule.steps):
            rows = torch.randint(examples, (schedule.batch_size,), generator=generator)
            none = torch.empty(0, dtype=torch.int64)
            losses = model(Batch(rows, none, none), "model", step)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    model.eval()


@pytest.fixture(scope="module")
def probe() -> OcrProbe:
    return OcrProbe(SMALL)


def test_planted_letters_are_read(probe: OcrProbe) -> None:
    view = FakeView(probe)
    first = probe.measure(view, fit)
    accuracy, cer = first.scores[:2]
    assert (accuracy.metric, cer.metric, cer.better) == ("word_accuracy", "cer", "lower")
    assert accuracy.figures().min() > 0.6
    assert cer.figures().max() < 0.2
    assert set(view.asked) == {(4, 8)}
    for example in first.examples:
        assert probe.images.name(example.row).split()[1] == example.truth
        assert example.right == (example.said == example.truth)
    plain_ground, photograph = first.scores[2:]
    assert plain_ground.values.shape[1] + photograph.values.shape[1] == 60
    assert not plain_ground.shown


def test_the_same_view_gives_the_same_bits_and_seeds_differ() -> None:
    short = {"train": 60, "test": 20, "seeds": 2, "schedule": Schedule(steps=25, batch_size=16, lr=1e-2)}
    probe = OcrProbe(SMALL.model_copy(update=short))
    said: list[dict[str, Tensor]] = []

    def kept(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
        fit(model, examples, schedule, seed, what)
        said.append({name: value.clone() for name, value in model.state_dict().items()})

    first = probe.measure(FakeView(probe), kept)
    torch.manual_seed(77)
    again = probe.measure(FakeView(probe), kept)
    assert first.scores[0].values.shape == (2, 20)
    for one, other in zip(first.scores, again.scores, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
    assert first.examples == again.examples
    assert all(torch.equal(said[seed][name], said[2 + seed][name]) for seed in (0, 1) for name in said[0])
    assert not all(torch.equal(said[0][name], said[1][name]) for name in said[0])


def test_shuffled_texts_give_chance(probe: OcrProbe) -> None:
    accuracy, cer = probe.measure(FakeView(probe), fit, shuffled=True).scores[:2]
    assert accuracy.chance == 0.0
    assert accuracy.figures().max() <= 0.02
    assert cer.figures().min() > 0.7


def test_the_key_says_what_matters() -> None:
    tiny = OcrConfig(train=4, test=2)
    key = OcrProbe(tiny).key()
    assert OcrProbe(tiny).key() == key
    for change in ({"seed": 1}, {"train": 5}, {"size": 168}, {"seeds": 3}):
        assert OcrProbe(tiny.model_copy(update=change)).key() != key


def published(root: Path, texts: dict[str, list[str]]) -> Path:
    for part, words in texts.items():
        folder = root / f"ch4_{part}_word_images_gt"
        folder.mkdir(parents=True)
        for number in range(len(words)):
            Image.new("RGB", (30, 10), (number, len(part), 0)).save(folder / f"word_{number}.png")
        (folder / "gt.txt").write_text("\n".join(f'word_{n}.png, "{word}"' for n, word in enumerate(words)))
    return root


def test_a_published_set_in_place_of_rendered_words(tmp_path: Path) -> None:
    words = [f"Word-{number}" for number in range(9)]
    root = published(tmp_path, {"training": [*words, "!!"], "test": ["Word-3", "other", "word3"]})
    config = SMALL.model_copy(
        update={"folder": root, "train": 20, "schedule": Schedule(steps=1, batch_size=4, lr=1e-3)}
    )
    probe = OcrProbe(config)
    assert len(probe.images) == 9 + 3  # without the one that has no letter

    class NoView(FakeView):
        def __init__(self) -> None:
            self.asked = []
            self.maps_NChw = np.zeros((12, 4, 3, SIDE), np.float32)

    found = probe.measure(NoView(), fit)
    assert found.scores[0].dataset == "icdar"
    assert [example.truth for example in found.examples] == ["word3", "other", "word3"]
    assert found.scores[0].chance is not None
    fewer = OcrProbe(config.model_copy(update={"train": 5, "test": 2}))
    assert len(fewer.images) == 7
    moved = published(tmp_path / "elsewhere", {"training": [*words, "!!"], "test": ["Word-3", "other", "word3"]})
    assert OcrProbe(config.model_copy(update={"folder": moved})).key() == probe.key()


def test_a_published_set_without_a_test_part(tmp_path: Path) -> None:
    root = published(tmp_path / "set", {"training": ["one"]})
    with pytest.raises(UserError, match=r"has no test image with letters or digits"):
        OcrProbe(OcrConfig(folder=root))


def test_texts_and_edits_are_those_of_the_reference() -> None:
    assert plain("Kid's [É2] ") == "kidsé2"
    rng = np.random.default_rng(0)
    pairs = [tuple("".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in "ab") for _ in range(40)]
    for a, b in pairs:
        assert edit_distance(a, b) / len(b) == pytest.approx(float(char_error_rate([a], [b])))
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
