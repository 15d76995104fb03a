"""The VQA probe on a small folder of VQAv2's format, with features that know the images' colour, or know nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from keepsight.core import Batch, Findings, ImageList, Readout, Schedule, Trainable, UserError, View
from keepsight.core.probe import Rows
from keepsight.heads.fusion import FusionConfig
from keepsight.probes.vqa import VqaConfig, VqaProbe

COLOURS = {"red": (220, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 230)}
FAST = VqaConfig(
    train_images=120,
    test_images=60,
    seeds=(0, 1),
    net=FusionConfig(width=16, heads=2, hidden=32),
    schedule=Schedule(steps=60, batch_size=30, lr=1e-2),
)


class FakeView(View):
    """Maps [C, 2, 2]: the image's mean colour, or noise that is each image's own."""

    depth, text = 2, None

    def __init__(self, images: ImageList, planted: bool) -> None:
        colours = np.stack([np.asarray(images.load(i), dtype=np.float32).mean(axis=(0, 1)) for i in range(len(images))])
        noise = np.random.default_rng(1).normal(size=colours.shape).astype(np.float32)
        self.values = torch.from_numpy(colours / 128 - 0.5 if planted else noise)

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        raise AssertionError("VQA works on maps")

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        return self.values[torch.from_numpy(rows)][:, :, None, None].repeat(1, len(blocks), 2, 2)

    def embeddings(self, rows: Rows) -> Tensor:
        raise AssertionError

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise AssertionError


def fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    """A few steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr)
    generator, none = torch.Generator().manual_seed(seed), torch.empty(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(schedule.steps):
            rows = torch.randperm(examples, generator=generator)[: schedule.batch_size]
            optimizer.zero_grad()
            sum(model(Batch(rows, none, none), "model", step).values()).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one colour; the colour is asked of all, and whether it is red of every other one."""
    folder = tmp_path_factory.mktemp("vqav2")
    rng, number = np.random.default_rng(0), 0
    for part, count in (("train2014", 120), ("val2014", 60)):
        (folder / part).mkdir()
        questions, annotations = [], []
        for n in range(count):
            number += 1
            colour = list(COLOURS)[int(rng.integers(3))]
            pixels = np.clip(np.array(COLOURS[colour]) + rng.normal(scale=8, size=(8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / part / f"COCO_{part}_{number:012d}.jpg", quality=95)
            asked = [("what color is it?", colour, "other")]
            asked += [("is it red?", "yes" if colour == "red" else "no", "yes/no")] * (n % 2)
            for text, answer, kind in asked:
                question = len(questions) + 1000 * number
                questions.append({"image_id": number, "question": text, "question_id": question})
                answers = [{"answer": answer if i < 8 else "unsure", "answer_id": i} for i in range(10)]
                labels = {"answer_type": kind, "multiple_choice_answer": answer, "answers": answers}
                annotations.append({"question_id": question, "image_id": number, **labels})
        (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps({"questions": questions}))
        (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    return folder


@pytest.fixture(scope="module")
def probe(folder: Path) -> VqaProbe:
    return VqaProbe(FAST.model_copy(update={"data": str(folder)}))


@pytest.fixture(scope="module")
def planted(probe: VqaProbe) -> Findings:
    return probe.measure(FakeView(probe.images, planted=True), fit)


def figures(findings: Findings) -> dict[str, float]:
    return {score.metric: float(score.figures().mean()) for score in findings.scores}


def test_what_the_image_shows_is_found_and_the_blind_do_not_see_it(probe: VqaProbe, planted: Findings) -> None:
    found = figures(planted)
    assert list(found) == ["accuracy", "accuracy (other)", "accuracy (yes/no)", "accuracy (image-blind)"]
    assert min(found["accuracy"], found["accuracy (other)"], found["accuracy (yes/no)"]) > 0.95
    chance = planted.scores[0].chance
    assert chance is not None
    assert found["accuracy (image-blind)"] < chance + 0.1
    assert found["accuracy"] > found["accuracy (image-blind)"] + 0.3
    assert [score.shown for score in planted.scores] == [True, False, False, False]
    assert planted.scores[0].values.shape == (2, 90)
    assert len(np.unique(planted.scores[0].units)) == 60  # questions of an image are drawn together
    assert all(example.right == (example.said == example.truth) for example in planted.examples)


@pytest.fixture(scope="module")
def once(probe: VqaProbe) -> VqaProbe:
    """Of one seed."""
    return VqaProbe(probe.config.model_copy(update={"seeds": (0,)}))


def test_features_that_know_nothing_give_chance(once: VqaProbe) -> None:
    found = once.measure(FakeView(once.images, planted=False), fit).scores[0]
    assert found.figures().mean() < found.chance + 0.12


def test_shuffled_gives_chance(once: VqaProbe) -> None:
    found = once.measure(FakeView(once.images, planted=True), fit, shuffled=True).scores[0]
    assert found.figures().mean() < found.chance + 0.12


def test_the_same_again_is_the_same_bit_for_bit(folder: Path, probe: VqaProbe, planted: Findings) -> None:
    torch.rand(7)
    again = VqaProbe(probe.config)
    assert again.key() == probe.key()
    found = again.measure(FakeView(again.images, planted=True), fit)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(found.scores, planted.scores, strict=True))
    assert found.examples == planted.examples
    other = VqaProbe(probe.config.model_copy(update={"seeds": (0, 2)}))
    assert other.key() != probe.key()


def test_large_maps_are_pooled(probe: VqaProbe) -> None:
    class Large(FakeView):
        def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
            return super().maps(rows, blocks).repeat(1, 1, 10, 10)

    small = VqaProbe(probe.config.model_copy(update={"side": 2, "seeds": (0,)}))
    found = small.measure(Large(small.images, planted=True), fit)
    torch.testing.assert_close(found.scores[0].figures().mean(), 1.0, atol=0.05, rtol=0)


def test_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither easy-vqa nor a folder with VQAv2"):
        VqaProbe(VqaConfig(data=str(tmp_path)))
