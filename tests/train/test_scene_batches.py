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


MIRROR = SceneAugmentConfig.none().model_copy(update={"flip": 1.0})


def words(captions: tuple[str, ...]) -> Tensor:
    return torch.tensor([[1, len(caption), 2] for caption in captions])


def test_maps_are_those_of_the_backbone_and_are_kept(
    scenes: SceneDataset, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    rows = np.arange(5, 25)
    maps = SceneMaps(tmp_path, tiny_backbone, (1, 2), scenes, rows, 1, MIRROR)
    plain, mirrored = (maps.read(rows[:3], np.full(3, view)) for view in (0, 1))
    assert plain.shape == (3, 16, 4, 4)
    tiny_backbone.block_calls.clear()
    again = SceneMaps(tmp_path, tiny_backbone, (1, 2), scenes, rows, 1, MIRROR)
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
    maps = SceneMaps(tmp_path, tiny_backbone, (2,), scenes, rows, 1, MIRROR)
    source = MapBatches(maps, "detection", Stream(rows, 8, 0), None, seed=1)
    whole, parts = source(3, 0, 1), [source(3, share, 2) for share in range(2)]
    assert torch.equal(whole.inputs[0::2], parts[0].inputs)
    assert torch.equal(whole.inputs[1::2], parts[1].inputs)
    assert torch.equal(whole.targets[1].boxes, parts[1].targets[0].boxes)
    draws = [target.draw for target in whole.targets]
    assert draws[0] is not None
    assert draws == [(draws[0][0], place) for place in range(8)]
    assert draws[0::2] == [target.draw for target in parts[0].targets]
    assert draws[1::2] == [target.draw for target in parts[1].targets]
    assert draws[0] != source(4, 0, 1).targets[0].draw
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


def test_all_shares_of_a_step_have_one_size_and_its_draws(scenes: SceneDataset, tiny_backbone: TinyBackbone) -> None:
    rows = np.arange(20)
    sizes = SceneAugmentConfig(sizes=(16, 20, 24))
    tasks: dict[int, Task] = dict.fromkeys(range(12), "detection")
    streams: dict[Task, Stream] = {"detection": Stream(rows, 4, 0)}
    source = SceneBatches(scenes, streams, tasks, tiny_backbone.preprocessing, sizes, words, seed=0)
    seen = set()
    for step in range(12):
        whole, parts = source(step, 0, 1), [source(step, share, 2) for share in range(2)]
        for share, part in enumerate(parts):
            assert torch.equal(whole.inputs[share::2], part.inputs)
            assert [t.draw for t in whole.targets[share::2]] == [t.draw for t in part.targets]
        seen.add(whole.inputs.shape[-1])
    assert seen == {16, 20, 24}


def test_every_view_and_image_is_augmented_its_own_way(
    scenes: SceneDataset, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    rows = np.arange(4)
    half = SceneAugmentConfig.none().model_copy(update={"flip": 0.5})
    maps = SceneMaps(tmp_path, tiny_backbone, (2,), scenes, rows, 3, half)
    sides = [[t.boxes[0, 0].item() for t in maps.targets(rows, np.full(4, v), False, None)] for v in range(4)]
    assert sides[0] == [0.25] * 4
    assert {tuple(sorted(set(view))) for view in sides[1:]} >= {(0.25, 0.75)}
    assert len({tuple(view) for view in sides}) > 2
    fewer = SceneMaps(tmp_path, tiny_backbone, (2,), scenes, rows, 1, half)
    assert torch.equal(fewer.read(rows, np.ones(4, np.int64)), maps.read(rows, np.ones(4, np.int64)))
    other = SceneMaps(tmp_path, tiny_backbone, (2,), scenes, rows, 1, MIRROR)
    assert not torch.equal(other.read(rows, np.ones(4, np.int64)), maps.read(rows, np.ones(4, np.int64)))


def test_shuffled_targets_are_those_of_other_images_whatever_the_shares(
    noise_images: ImageList, tiny_backbone: TinyBackbone
) -> None:
    n = len(noise_images)
    boxes = [np.array([[2.0, 2.0, 3.0 + i % 13, 16.0]], np.float32) for i in range(n)]
    objects = tuple(Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), (None,)) for box in boxes)
    dataset = SceneDataset(
        "scenes", noise_images, np.full((n, 2), 16), objects, (("left",),) * n, ("thing",), (1,), tuple(range(n)),
        ("train",) * n,
    )  # fmt: skip
    tasks: dict[int, Task] = {0: "detection"}
    streams: dict[Task, Stream] = {"detection": Stream(np.arange(10), 6, 0)}
    given, shuffled = (
        SceneBatches(dataset, streams, tasks, tiny_backbone.preprocessing, None, None, 0, shuffled)
        for shuffled in (False, True)
    )
    plain, other = given(0, 0, 1), shuffled(0, 0, 1)
    assert torch.equal(plain.inputs, other.inputs)
    widths = [[float(target.boxes[0, 2]) for target in batch.targets] for batch in (plain, other)]
    assert widths[1] == [widths[0][-1], *widths[0][:-1]]
    assert widths[0] != widths[1]
    halves = [[float(t.boxes[0, 2]) for t in shuffled(0, share, 2).targets] for share in range(2)]
    assert halves == [widths[1][0::2], widths[1][1::2]]
