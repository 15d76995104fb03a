"""Grounded object identification, on scenes of coloured boxes whose colour is the category."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from keepsight.core import ImageList, Objects, Readout, SceneDataset, UserError, View
from keepsight.core.method import Trainable
from keepsight.core.probe import Findings, Rows, Schedule
from keepsight.data.arrays import ArrayImages
from keepsight.data.coco_write import write_coco
from keepsight.probes.goi import GoiConfig, GoiProbe, deep_blocks, region_means

COLOURS = ((0, 250, 0), (0, 0, 250), (200, 200, 0), (0, 200, 200), (120, 120, 120), (200, 0, 200))
SIDE, CELL = 32, 4


def scenes_of(folder: Path, categories: int = 6, images: int = 90) -> Path:
    """Up to three boxes an image, two thirds of the images to learn from."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((images, SIDE, SIDE, 3), np.uint8)
    objects = []
    for image in range(images):
        corners = rng.permutation(4)[: rng.integers(1, 4)]
        labels = rng.permutation(categories)[: len(corners)]
        boxes = []
        for corner, label in zip(corners, labels, strict=True):
            left, top = 16 * (corner % 2) + 3, 16 * (corner // 2) + 3
            pixels[image, top : top + 10, left : left + 10] = COLOURS[label]
            boxes.append((left, top, left + 10, top + 10))
        count = len(labels)
        objects.append(Objects(np.array(boxes, np.float32), labels, np.zeros(count, bool), (None,) * count))
    dataset = SceneDataset(
        name="boxes",
        images=ArrayImages(pixels),
        sizes=np.full((images, 2), SIDE),
        objects=tuple(objects),
        captions=((),) * images,
        classes=tuple("abcdef"[:categories]),
        category_ids=tuple(range(1, categories + 1)),
        image_ids=tuple(range(images)),
        parts=tuple("train" if image % 3 else "test" for image in range(images)),
    )
    write_coco(dataset, folder, images=True)
    return folder


class FakeView(View):
    """Colours of cells; of an image with a frame those within it alone, as if the network followed the mark."""

    def __init__(self, images: ImageList, blind: bool = False) -> None:
        self.depth, self.text = 2, None
        self._images, self._blind = images, blind

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        raise NotImplementedError

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        assert blocks == (-1,)
        if self._blind:
            return torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(int(r))) for r in rows])
        pixels = np.stack([self._pixels(int(row)) for row in rows]).transpose(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(torch.from_numpy(pixels) / 255, CELL)

    def _pixels(self, row: int) -> np.ndarray:
        pixels = np.asarray(self._images.load(row)).astype(np.float32)
        frame = (pixels == (255, 0, 0)).all(axis=2)
        if not frame.any():
            return pixels
        y, x = np.nonzero(frame)
        inside = np.zeros_like(frame)
        inside[y.min() : y.max(), x.min() : x.max()] = True
        return pixels * (inside & ~frame)[..., None]

    def embeddings(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


def no_fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    raise AssertionError("the classifier is solved, not trained by steps")


def figures(found: Findings) -> dict[str, float]:
    return {score.metric: float(score.figures()[0]) for score in found.scores}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_of(tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module")
def probe(folder: Path) -> GoiProbe:
    return GoiProbe(GoiConfig(scenes=folder, test=60))


def test_what_is_in_a_region_is_found_and_so_is_what_is_marked(probe: GoiProbe) -> None:
    found = probe.measure(FakeView(probe.images), no_fit)
    scores = figures(found)
    assert scores["accuracy (region)"] > 0.95
    assert scores["accuracy (mark)"] > 0.95
    assert scores["accuracy (no mark)"] < scores["accuracy (mark)"] - 0.1  # which object is meant is not known
    assert [score.shown for score in found.scores] == [True, True, False]
    assert {score.chance for score in found.scores} == {0.25}
    for example in found.examples:
        assert example.right == (example.truth == example.said)
        assert probe.images.name(example.row).endswith("(marked)")


def test_shuffled_labels_and_features_of_nothing_are_at_chance(probe: GoiProbe) -> None:
    for view, shuffled in ((FakeView(probe.images), True), (FakeView(probe.images, blind=True), False)):
        for score in probe.measure(view, no_fit, shuffled).scores:
            error = 0.25 * 0.75 / score.values.shape[1]
            assert abs(score.figures()[0] - 0.25) < 3.5 * error**0.5


def test_the_same_view_gives_the_same_bits_and_settings_make_the_key(folder: Path, probe: GoiProbe) -> None:
    other = GoiProbe(GoiConfig(scenes=folder, test=60))
    first, second = (each.measure(FakeView(each.images, blind=True), no_fit) for each in (probe, other))
    assert all((a.values == b.values).all() for a, b in zip(first.scores, second.scores, strict=True))
    assert first.examples == second.examples
    assert probe.key() == other.key()
    assert len({probe.key(), *(GoiProbe(GoiConfig(scenes=folder, **one)).key() for one in ({}, {"seed": 1}))}) == 3


def test_test_objects_are_of_test_images_and_each_image_is_marked_once(probe: GoiProbe, folder: Path) -> None:
    names = [probe.images.name(row) for row in range(len(probe.images))]
    marked = [name for name in names if name.endswith("(marked)")]
    plain = names[: len(names) - len(marked)]
    assert not set(plain) & set(marked)
    assert sum(name.startswith("test/") for name in plain) == 30
    assert len(set(marked)) == len(marked)
    for score in probe.measure(FakeView(probe.images), no_fit).scores:
        assert all(names[row].startswith("test/") for row in score.units.tolist())
    assert probe.stamps == {}  # no recipe: they were not composed


def test_too_few_categories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="boxes have 3 categories"):
        GoiProbe(GoiConfig(scenes=scenes_of(tmp_path / "boxes", categories=3)))


def test_a_region_counts_cells_by_what_it_covers_of_them() -> None:
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.5, 0.5, 0.75], [0.125, 0.0, 0.5, 0.25]])
    found = region_means(maps, torch.zeros(3, dtype=torch.int64), boxes)[:, 0]
    torch.testing.assert_close(found, torch.tensor([7.5, 9.0, (0.5 * 0 + 1 * 1) / 1.5]))


def test_blocks_of_deep_and_shallow_networks() -> None:
    assert [deep_blocks(depth) for depth in (1, 5, 12, 24, 40)] == [
        (-1,),
        (-1,),
        (8, 9, 10),
        (16, 18, 20),
        (27, 30, 33),
    ]
