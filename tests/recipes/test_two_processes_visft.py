"""Both stages of `visft` under torchrun with two processes (gloo) give what one gives: heads, tasks, rungs, figures, answers.

The processes' shares have unequal numbers of objects, masks and words; captions are drawn, boxes are noised, points are random,
images are augmented and seen in mirror images. Dropout alone is off: each process drops what it likes. Plain SGD, since AdamW makes
steps of full size of gradients that are nothing but rounding.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from keepsight.core import TASKS, Objects, Rle
from keepsight.core.scene import SceneDataset
from keepsight.data.arrays import ArrayImages
from keepsight.data.coco_write import write_coco
from keepsight.data.masks import decode_mask, encode_mask
from launching import launch

SIDE = 56
WEIGHTS = 5e-7
"""Largest difference of a weight: sums over a batch are of two halves. What the steps change is thousands of times larger."""

SCRIPT = """
import json, os, sys
from pathlib import Path
from keepsight.methods.visft import JointTuning
from keepsight.recipes.visft import visft
from keepsight.recipes.visft_settings import VisftConfig
drawn, real = [], JointTuning.losses
def losses(method, batch, phase, step):
    drawn.append([batch.task, sum(len(target.classes) for target in batch.targets)])
    return real(method, batch, phase, step)
JointTuning.losses = losses
def loop(lr, clip):
    sgd = {"name": "sgd", "momentum": 0.0, "lr": lr, "clip": clip}
    return {"optim": sgd, "checkpoint_steps": 4, "validate_every": 4, "patience": 0}
layer = {"heads": 2, "feedforward": 32}
stage = {"steps": 10, "batch_size": 8, "training": loop(0.05, 1.0)}
visft(VisftConfig.model_validate({
    "data": sys.argv[1],
    "backbone": {
        "name": "vit_small_patch14_dinov2", "weights": "random", "size": 56, "fit": "squash",
        "timm_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0},
    },
    "blocks": (2, 3),
    "detr": {"net": {"width": 32, "decoder_width": 32, "decoder_layers": 2, "queries": 4, "layer": layer}},
    "segmentation": {
        "points": 128,
        "net": {"width": 32, "mask_width": 16, "decoder_layers": 1, "queries": 5, "encoder": layer, "decoder": layer},
    },
    "captioning": {"width": 16, "layers": 1, "heads": 2, "max_length": 8, "dropout": 0.0},
    "detection_stage": stage, "segmentation_stage": stage, "captioning_stage": stage, "views": 1,
    "joint": {"steps": 9, "batch_size": 4, "ladder": 3, "augmentation": {}, "training": loop(1.0, 1.0)},
    "forgetting": {"measure": False},
}), sys.argv[2])
Path(sys.argv[2], f"drawn-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(drawn))
"""


def scenes() -> SceneDataset:
    """None to three red or green squares on grey, and one to three captions of one to six words, each image in its own way."""
    rng, n = np.random.default_rng(0), 40
    pixels = rng.integers(90, 120, (n, SIDE, SIDE, 3)).astype(np.uint8)
    objects, captions = [], []
    for i in range(n):
        boxes, classes, masks = [], [], []
        for corner in rng.permutation(4)[: int(rng.integers(4))].tolist():
            kind, size = int(rng.integers(2)), int(rng.integers(14, 24))
            left, top = 28 * (corner % 2) + int(rng.integers(4)), 28 * (corner // 2) + int(rng.integers(4))
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[top : top + size, left : left + size] = True
            pixels[i][mask] = ((220, 30, 30), (30, 200, 40))[kind]
            boxes.append([left, top, left + size, top + size])
            classes.append(kind)
            masks.append(encode_mask(mask))
        marked = np.array(boxes, np.float32).reshape(-1, 4)
        objects.append(Objects(marked, np.array(classes, np.int64), np.zeros(len(classes), bool), tuple(masks)))
        names = [("red", "green")[kind] for kind in classes] or ["nothing"]
        captions.append(
            (" and ".join(names), f"{len(classes)}", f"squares {names[-1]} last")[: int(rng.integers(1, 4))]
        )
    parts = ("train",) * 24 + ("val",) * 8 + ("test-seen",) * 8
    return SceneDataset(
        "squares", ArrayImages(pixels), np.full((n, 2), SIDE), tuple(objects), tuple(captions), ("red", "green"), (7, 3),
        tuple(range(100, 100 + n)), parts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visft")
    write_coco(scenes(), folder / "scenes", images=True)
    for name, processes in (("one", 1), ("two", 2)):
        launch(SCRIPT, folder / name, processes, str(folder / "scenes"), str(folder / name / "run"))
    return folder


def both(folder: Path, path: str) -> tuple[Path, Path]:
    return folder / "one/run" / path, folder / "two/run" / path


def same_weights(folder: Path, path: str) -> dict[str, Any]:
    one, two = (load_file(file) for file in both(folder, path))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, atol=WEIGHTS, rtol=0, err_msg=f"{path} {name}")
    return one


@pytest.mark.parametrize("task", TASKS)
def test_heads_are_the_same(ended: Path, task: str) -> None:
    same_weights(ended, f"heads/{task}/head.safetensors")
    one, two = (json.loads(file.read_text()) for file in both(ended, f"heads/{task}/head.json"))
    assert one["key"] == two["key"]
    assert one["selected_step"] == two["selected_step"] > 0
    np.testing.assert_allclose(two["validation"], one["validation"], rtol=1e-5)


def test_every_process_draws_the_same_tasks_and_has_its_share(ended: Path) -> None:
    one = json.loads((ended / "one/run/drawn-0.json").read_text())
    first, second = (json.loads((ended / f"two/run/drawn-{rank}.json").read_text()) for rank in (0, 1))
    assert [task for task, _ in one] == [task for task, _ in first] == [task for task, _ in second]
    assert {task for task, _ in one} == set(TASKS)
    assert [n for _, n in one] == [n + m for (_, n), (_, m) in zip(first, second, strict=True)]
    assert sum(n != m for (_, n), (_, m) in zip(first, second, strict=True)) > 4  # a mean of means would differ


def test_every_rung_and_the_choice_are_the_same(ended: Path) -> None:
    rungs = sorted(path.name for path in (ended / "one/run/joint/ladder").iterdir())
    assert rungs == [f"step-{step:06d}" for step in (0, 3, 6, 9)]
    first, *_, last = (same_weights(ended, f"joint/ladder/{rung}/adapter.safetensors") for rung in rungs)
    assert max(abs(last[name] - first[name]).max() for name in first) > 1000 * WEIGHTS
    one, two = (json.loads(file.read_text()) for file in both(ended, "joint/choice.json"))
    assert one["step"] == two["step"]
    for a, b in zip(one["rungs"], two["rungs"], strict=True):
        assert b["step"] == a["step"]
        assert b["tasks"] == pytest.approx(a["tasks"], abs=1e-6)
    same_weights(ended, "backbone/model.safetensors")


def test_figures_are_the_same(ended: Path) -> None:
    one, two = ([json.loads(line) for line in file.read_text().splitlines()] for file in both(ended, "results.jsonl"))
    assert len(one) == len(two) > 50
    assert sum(record["value"] != 0 for record in one) > 10
    for a, b in zip(one, two, strict=True):
        for number in ("value", "ci_low", "ci_high", "before"):
            assert b.pop(number) == pytest.approx(a.pop(number), abs=1e-6)
        del a["seconds"], b["seconds"]
        assert a == b


def test_answers_are_the_same(ended: Path) -> None:
    for part in ("validation", "test-seen"):
        one, two = (json.loads(file.read_text()) for file in both(ended, f"predictions/captioning-{part}.json"))
        assert one == two
        for task in ("detection", "segmentation"):
            one, two = (json.loads(file.read_text()) for file in both(ended, f"predictions/{task}-{part}.json"))
            assert len(one) == len(two) >= 8
            for a, b in zip(one, two, strict=True):
                assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
                assert b["score"] == pytest.approx(a["score"], abs=1e-5)
                if task == "detection":
                    np.testing.assert_allclose(b["bbox"], a["bbox"], atol=1e-3)
                else:  # a pixel whose logit is nearly 0 may fall on either side
                    first, second = (
                        decode_mask(Rle((SIDE, SIDE), x["segmentation"]["counts"].encode())) for x in (a, b)
                    )
                    assert (first != second).sum() <= 2


def test_nothing_was_started_twice(ended: Path) -> None:
    assert not list((ended / "two/run").rglob("*.tmp"))
    said = (ended / "two/run/log.txt").read_text()
    assert len(re.findall("after 9 steps", said)) == 1
