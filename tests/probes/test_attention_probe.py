"""Attention on objects, with attention that is planted on them, spread evenly, or on what is not an object."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from keepsight.core import ImageList, Objects, Readout, SceneDataset, UserError, View
from keepsight.core.method import Trainable
from keepsight.core.probe import Rows, Schedule
from keepsight.data.arrays import ArrayImages
from keepsight.data.coco_write import write_coco
from keepsight.data.masks import encode_mask
from keepsight.probes.attention import METRIC, AttentionConfig, AttentionProbe

SIDE, GRID = 32, 4


def scenes_of(folder: Path, objects: bool = True) -> Path:
    """White on black: in one half of the images a triangle with a mask, in the other a box without one."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((30, SIDE, SIDE, 3), np.uint8)
    marks = []
    for image in range(30):
        left, top = rng.integers(0, 16, 2).tolist()
        mask = np.zeros((SIDE, SIDE), bool)
        mask[top : top + 14, left : left + 12] = True
        if image % 2:
            mask &= np.tri(SIDE, SIDE, left - top, dtype=bool)
        pixels[image][mask] = 255
        y, x = mask.nonzero()
        box = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float32)
        rle = encode_mask(mask) if image % 2 else None
        full = Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), (rle,))
        none = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), ())
        marks.append(full if objects and image < 28 else none)
    dataset = SceneDataset(
        name="shapes",
        images=ArrayImages(pixels),
        sizes=np.full((30, 2), SIDE),
        objects=tuple(marks),
        captions=((),) * 30,
        classes=("shape",),
        category_ids=(1,),
        image_ids=tuple(range(30)),
        parts=("val",) * 30,
    )
    write_coco(dataset, folder, images=True)
    return folder


class FakeView(View):
    """Two heads and one class token; block 2 looks at the white, at everything alike, or at the black; block 1 alike."""

    def __init__(self, images: ImageList, looks: Literal["objects", "evenly", "elsewhere"]) -> None:
        self.depth, self.text = 2, None
        self._images, self._looks = images, looks

    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        raise NotImplementedError

    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        raise NotImplementedError

    def embeddings(self, rows: Rows) -> Tensor:
        raise NotImplementedError

    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        tokens = GRID * GRID + 1
        found = torch.full((len(rows), len(blocks), 2, tokens, tokens), 1 / tokens)
        for place, row in enumerate(rows.tolist()):
            white = torch.from_numpy(np.asarray(self._images.load(row).convert("L")) / 255).float()
            cells = torch.nn.functional.avg_pool2d(white[None], SIDE // GRID).flatten()
            looked = {"objects": cells.square(), "evenly": torch.ones(16), "elsewhere": (1 - cells).square()}[
                self._looks
            ]
            if 2 in blocks:
                found[place, blocks.index(2), :, 0, 1:] = 0.9 * looked / looked.sum()
                found[place, blocks.index(2), :, 0, 0] = 0.1
        return found


def no_fit(model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
    raise AssertionError("nothing is trained")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_of(tmp_path_factory.mktemp("shapes"))


def test_attention_on_objects_is_more_than_their_area_and_even_attention_is_their_area(folder: Path) -> None:
    probe = AttentionProbe(AttentionConfig(scenes=folder))
    figures = {}
    for looks in ("objects", "evenly", "elsewhere"):
        (score,) = probe.measure(FakeView(probe.images, looks), no_fit).scores
        assert score.metric == METRIC
        assert score.chance is not None
        figures[looks] = float(score.figures()[0])
    white = np.mean([np.asarray(probe.images.load(row)).mean() / 255 for row in range(len(probe.images))])
    assert score.chance == pytest.approx(white, abs=1e-6)  # masks, not boxes, where there are masks
    assert figures["evenly"] == pytest.approx(white, abs=1e-6)
    assert figures["objects"] > white + 0.3
    assert figures["elsewhere"] < white - 0.05


def test_shuffled_objects_are_at_chance(folder: Path) -> None:
    probe = AttentionProbe(AttentionConfig(scenes=folder))
    (score,) = probe.measure(FakeView(probe.images, "objects"), no_fit, shuffled=True).scores
    error = score.values.std() / score.values.shape[1] ** 0.5
    assert score.chance is not None
    assert abs(score.figures()[0] - score.chance) < 3.5 * error


def test_blocks_and_rollout_are_details_and_pictures(folder: Path) -> None:
    probe = AttentionProbe(AttentionConfig(scenes=folder, blocks=(1, -1), rollout=True, pictures=3, images=20))
    found = probe.measure(FakeView(probe.images, "objects"), no_fit)
    assert [score.metric for score in found.scores] == [METRIC, f"{METRIC} (block 1)", f"{METRIC} (rollout)"]
    assert [score.shown for score in found.scores] == [True, False, False]
    last, first, rolled = (float(score.figures()[0]) for score in found.scores)
    assert first == pytest.approx(found.scores[0].chance, abs=1e-6)
    assert first < rolled < last
    assert [(heat.row, heat.name) for heat in found.heats] == [
        (row, name) for row in range(3) for name in ("block 2", "block 1", "rollout")
    ]
    assert all(heat.values.shape == (GRID, GRID) for heat in found.heats)
    assert all(heat.values.sum() == pytest.approx(1, abs=1e-5) for heat in found.heats)
    assert len(probe.images) == 20


def test_images_without_objects_are_left_out_and_the_key_is_of_the_settings(folder: Path) -> None:
    probe = AttentionProbe(AttentionConfig(scenes=folder))
    assert len(probe.images) == 28
    assert probe.key() == AttentionProbe(AttentionConfig(scenes=folder)).key()
    assert probe.key() != AttentionProbe(AttentionConfig(scenes=folder, blocks=(1,))).key()
    assert probe.key() != AttentionProbe(AttentionConfig(scenes=folder, images=27)).key()


def test_scenes_without_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="have no objects"):
        AttentionProbe(AttentionConfig(scenes=scenes_of(tmp_path / "nothing", objects=False)))
