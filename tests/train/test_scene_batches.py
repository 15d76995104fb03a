"""Batches for task heads: shares join to the whole, a resumed step repeats, captions are never mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import TinyBackbone
from keepsight.core import ImageList, Objects, SceneDataset, Task
from keepsight.core.features import feature_map
from keepsight.data.scene_transforms import SceneAugmentConfig, load_scene_batch
from keepsight.data.streams import Stream
from keepsight.features.maps import SceneMaps
from keepsight.train import MapBatches, SceneBatches


@pytest.fixture
def scenes(noise_images: ImageList) -> SceneDataset:
    """One object in the left half of every image, and a caption."""
    box = np.array([[1, 2, 7, 14]], dtype=np.float32)
    marked = Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), (None,))
    n = len(noise_images)
    return SceneDataset(
        "scenes", noise_images, np.full((n, 2), 16), (marked,) * n, (("left",),) * n, ("thing",), (1,),
        tuple(range(n)), ("train",) * n,
    )  # fmt: skip


def words(captions: tuple[str, ...]) -> Tensor:
    return torch.tensor([[1, len(caption), 2] for caption in captions])


def test_maps_are_those_of_the_backbone_and_are_kept(
    scenes: SceneDataset, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    rows = np.arange(5, 25)
    maps = SceneMaps(tmp_path, tiny_backbone, (1, 2), scenes, rows, flipped=True)
    plain, mirrored = (maps.read(rows[:3], np.full(3, view)) for view in (0, 1))
    assert plain.shape == (3, 16, 4, 4)
    tiny_backbone.block_calls.clear()
    again = SceneMaps(tmp_path, tiny_backbone, (1, 2), scenes, rows, flipped=True)
    assert not tiny_backbone.block_calls
    torch.testing.assert_close(again.read(rows[:3], np.ones(3, np.int64)), mirrored)

    images, _ = load_scene_batch(scenes, rows[:3], tiny_backbone.preprocessing)
    with torch.no_grad():
        expected = feature_map(tiny_backbone(images, (1, 2)))
        flipped = feature_map(tiny_backbone(images.flip(3), (1, 2)))
    torch.testing.assert_close(plain, expected, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(mirrored, flipped, atol=5e-3, rtol=5e-3)
    left, right = (maps.targets(rows[:1], np.array([view]), False, None)[0].boxes[0, 0] for view in (0, 1))
    assert float(left) == pytest.approx(4 / 16)
    assert float(right) == pytest.approx(12 / 16)


def test_shares_of_kept_maps_join_to_the_whole(
    scenes: SceneDataset, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    rows = np.arange(20)
    maps = SceneMaps(tmp_path, tiny_backbone, (2,), scenes, rows, flipped=True)
    source = MapBatches(maps, "detection", Stream(rows, 8, 0), None, seed=1)
    whole, parts = source(3, 0, 1), [source(3, share, 2) for share in range(2)]
    assert torch.equal(whole.inputs[0::2], parts[0].inputs)
    assert torch.equal(whole.inputs[1::2], parts[1].inputs)
    assert torch.equal(whole.targets[1].boxes, parts[1].targets[0].boxes)
    sides = {round(float(t.boxes[0, 0]), 2) for step in range(4) for t in source(step, 0, 1).targets}
    assert sides == {0.25, 0.75}
    captions = MapBatches(maps, "captioning", Stream(rows, 8, 0), words, seed=1)
    batch = captions(0, 0, 1)
    assert {round(float(t.boxes[0, 0]), 2) for t in batch.targets} == {0.25}
    assert batch.targets[0].words.tolist() == [[1, 4, 2]]
    assert batch.task == "captioning"


def test_images_of_a_step_are_of_its_task_and_the_same_again(scenes: SceneDataset, tiny_backbone: TinyBackbone) -> None:
    rows = np.arange(20)
    tasks: dict[int, Task] = {0: "detection", 1: "captioning"}
    streams: dict[Task, Stream] = {task: Stream(rows, 8, i) for i, task in enumerate(tasks.values())}
    flip = SceneAugmentConfig.none().model_copy(update={"flip": 1.0})
    source = SceneBatches(scenes, streams, tasks, tiny_backbone.preprocessing, flip, words, seed=0)
    first, second = source(0, 0, 1), source(1, 0, 1)
    assert (first.task, second.task) == ("detection", "captioning")
    assert first.targets[0].boxes[0, 0] > 0.5 > second.targets[0].boxes[0, 0]
    assert not first.targets[0].words.numel()
    assert second.targets[0].words.numel()
    assert torch.equal(first.inputs, source(0, 0, 1).inputs)
    halves = [source(1, share, 2).inputs for share in range(2)]
    assert torch.equal(second.inputs[1::2], halves[1])
