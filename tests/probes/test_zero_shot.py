import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from alignment_parts import FakeTower, FakeView, plain_fit
from keepsight.core import Schedule, UserError, View
from keepsight.data import pairs as pairs_file
from keepsight.data.arrays import ArrayImages
from keepsight.data.pairs import Pairs
from keepsight.probes import alignment, zero_shot
from keepsight.probes.alignment import AlignmentConfig
from keepsight.probes.zero_shot import ZeroShotConfig, ZeroShotProbe, hits, prompts_of

NAMES = {"animals": "beast", "food": "meal", "town": "building"}
WORDS = {"animals": ("cat", "dog", "cow"), "food": ("pear", "bread", "egg"), "town": ("barn", "tower", "shop")}


def few_pairs(split: int = 0) -> Pairs:
    """Captions say the name of the class and a word of it; one class has most images."""
    rng = np.random.default_rng(split)
    labels = np.array([0] * 90 + [1] * 30 + [2] * 30)
    classes = tuple(NAMES)
    captions = tuple((f"{NAMES[classes[label]]} {WORDS[classes[label]][i % 3]}.",) for i, label in enumerate(labels))
    parts = tuple("test" if i % 3 == 2 and i % 2 else "train" for i in range(150))
    return Pairs(
        "stamps",
        ArrayImages(rng.integers(0, 256, (150, 2, 2), dtype=np.uint8)),
        captions,
        parts,
        np.arange(150),
        labels,
        classes,
    )


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ZeroShotConfig:
    monkeypatch.setattr(alignment, "load_text_tower", lambda name: FakeTower())
    monkeypatch.setattr(pairs_file, "stamp_pairs", few_pairs)
    monkeypatch.setattr(zero_shot, "stamp_pairs", few_pairs)
    monkeypatch.setattr(zero_shot, "STAMP_NAMES", NAMES)
    schedule = Schedule(steps=60, batch_size=64, lr=1e-2)
    return ZeroShotConfig(
        alignment=AlignmentConfig(tower="fake", readout="last:mean", reduced=4, dropout=0.0, seeds=2, schedule=schedule)
    )


def planted(probe: ZeroShotProbe, labels: np.ndarray, noise: float) -> Tensor:
    """Class by class a point; the alignment images come first."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 24, generator=generator)
    return means[torch.from_numpy(labels)] + noise * torch.randn(len(labels), 24, generator=generator)


def all_labels(probe: ZeroShotProbe) -> np.ndarray:
    data = few_pairs()
    return np.concatenate([data.labels[data.rows("train")], probe.labels])


def figures(probe: ZeroShotProbe, view: View, shuffled: bool = False) -> dict[str, float]:
    return {score.metric: float(score.figures().mean()) for score in probe.measure(view, plain_fit, shuffled).scores}


def test_planted_signal_noise_and_shuffled(config: ZeroShotConfig) -> None:
    probe = ZeroShotProbe(config)
    assert len(probe.images) == 150
    view = FakeView(planted(probe, all_labels(probe), 0.3))
    good = figures(probe, view)
    assert good["top1"] > 0.95
    assert good["accuracy"] > 0.95
    assert "top5" not in good  # three classes
    noise = FakeView(torch.randn(150, 24, generator=torch.Generator().manual_seed(5)))
    assert abs(figures(probe, noise)["top1"] - 1 / 3) < 0.25
    assert abs(figures(probe, view, shuffled=True)["top1"] - 1 / 3) < 0.34


def test_a_constant_answer_is_at_chance_and_accuracy_says_how_common_it_is(config: ZeroShotConfig) -> None:
    probe = ZeroShotProbe(config)
    labels = probe.labels
    similar = torch.zeros(1, len(labels), 3)
    similar[:, :, 0] = 1.0
    top1, accuracy = zero_shot._scores("stamps", similar, labels)
    assert top1.chance == pytest.approx(1 / 3)
    assert top1.figures()[0] == pytest.approx(1 / 3)
    assert accuracy.figures()[0] == pytest.approx((labels == 0).mean())
    assert (labels == 0).mean() > 0.5


def test_own_text_tower_learns_nothing(config: ZeroShotConfig) -> None:
    probe = ZeroShotProbe(config)
    tower, labels = FakeTower(), all_labels(probe)
    named = tower.encode([NAMES[name] for name in NAMES])
    view = FakeView(named[torch.from_numpy(labels)], tower)

    def no_fit(*_: object) -> None:
        raise AssertionError("nothing is learnt")

    assert probe.measure(view, no_fit).scores[0].figures()[0] > 0.95
    shuffled = probe.measure(view, no_fit, shuffled=True).scores[0]
    assert abs(shuffled.figures()[0] - 1 / 3) < 0.25


def test_the_same_view_gives_the_same_bits(config: ZeroShotConfig) -> None:
    probe = ZeroShotProbe(config)
    view = FakeView(planted(probe, all_labels(probe), 2.0))
    first, second = probe.measure(view, plain_fit), probe.measure(view, plain_fit)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(first.scores, second.scores, strict=True))
    assert first.examples == second.examples
    assert probe.key() == ZeroShotProbe(config).key() != ZeroShotProbe(config.model_copy(update={"seed": 3})).key()


def test_prompts_are_averaged(config: ZeroShotConfig) -> None:
    probe = ZeroShotProbe(config)
    assert probe.prompts[0][0] == "beast."
    assert len({len(each) for each in probe.prompts}) == 1
    assert prompts_of(("cat",), ("a {c}, a {c}",)) == (("a cat, a cat",),)


def write_benchmark(folder: Path) -> None:
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as archive:
        for number in range(6):
            buffer = io.BytesIO()
            Image.new("L", (3, 3), number).save(buffer, "WEBP", lossless=True)
            for name, content in ((f"s{number}.webp", buffer.getvalue()), (f"s{number}.cls", str(number % 2).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (folder / "classnames.txt").write_text("sea lion\ntree\n")
    (folder / "zeroshot_classification_templates.txt").write_text("itap of a {c}.\n")


def test_published_data_with_names_and_templates(config: ZeroShotConfig, tmp_path: Path) -> None:
    write_benchmark(tmp_path / "wds")
    probe = ZeroShotProbe(config.model_copy(update={"data": str(tmp_path / "wds")}))
    assert probe.prompts == (("itap of a sea lion.",), ("itap of a tree.",))
    assert probe.labels.tolist() == [0, 1] * 3
    assert probe.images.load(int(probe.rows[5])).getpixel((0, 0)) == (5, 5, 5)
    (tmp_path / "names.txt").write_text("only one\n")
    with pytest.raises(UserError, match="names 1 classes"):
        ZeroShotProbe(config.model_copy(update={"data": str(tmp_path / "wds"), "classnames": tmp_path / "names.txt"}))
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    with pytest.raises(UserError, match=r"has no \{c\}"):
        ZeroShotProbe(
            config.model_copy(update={"data": str(tmp_path / "wds"), "templates": tmp_path / "templates.txt"})
        )


def test_a_folder_of_images_by_its_parts(config: ZeroShotConfig, tmp_path: Path) -> None:
    for part, count in (("train", 2), ("test", 3)):
        for name in ("big_cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (4, 4), 10 * number).save(tmp_path / part / name / f"{number}.png")
    probe = ZeroShotProbe(config.model_copy(update={"data": str(tmp_path)}))
    assert len(probe.rows) == 6
    assert probe.prompts[0][0] == "big cat."
    few = ZeroShotProbe(config.model_copy(update={"data": str(tmp_path), "at_most": 4}))
    assert len(few.rows) == 4


def test_hits_and_ties() -> None:
    similar = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.1, 0.1], [float("nan")] * 3])
    labels = np.array([1, 2, 0])
    assert hits(similar, labels, 1).tolist() == pytest.approx([0.0, 1 / 3, 1 / 3])
    assert hits(similar, labels, 2).tolist() == pytest.approx([1.0, 2 / 3, 2 / 3])


def test_every_category_of_stamps_has_a_name() -> None:
    from keepsight.data.scene_stamps import CATEGORIES

    assert set(zero_shot.STAMP_NAMES) == set(CATEGORIES.values())
    assert ZeroShotConfig().data == pairs_file.STAMPS
