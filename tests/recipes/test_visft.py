"""ViSFT end to end on small scenes: both stages, kill and resume, heads found again, a head of one's own, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from keepsight.backbones.load import load_backbone
from keepsight.core import Answer, Objects, Target, Task, TaskHead, UserError
from keepsight.core.scene import SceneDataset
from keepsight.data.arrays import ArrayImages
from keepsight.data.coco_write import write_coco
from keepsight.data.files import FileImages
from keepsight.data.masks import encode_mask
from keepsight.recipes import visft_joint
from keepsight.recipes.visft import VisftRun, visft
from keepsight.recipes.visft_config import visft_config
from keepsight.recipes.visft_heads import read_head
from keepsight.recipes.visft_joint import Rung, choose_rung
from keepsight.recipes.visft_predict import load_scene_model, predict_scenes
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.report.page import Pictures, read_page
from keepsight.report.scene_records import read_precision
from keepsight.report.visft_page import visft_page

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40)}
SIDE = 56


def squares(n: int, seed: int) -> SceneDataset:
    """A red or a green square somewhere on grey; the caption says which, and in which half."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 120, (n, SIDE, SIDE, 3)).astype(np.uint8)
    objects, captions = [], []
    for i in range(n):
        kind, left, top = int(rng.integers(2)), int(rng.integers(2, 30)), int(rng.integers(2, 30))
        name, colour = list(COLOURS.items())[kind]
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[top : top + 22, left : left + 22] = True
        pixels[i][mask] = colour
        box = np.array([[left, top, left + 22, top + 22]], dtype=np.float32)
        objects.append(Objects(box, np.array([kind]), np.zeros(1, bool), (encode_mask(mask),)))
        captions.append((f"a {name} square {'left' if left < 16 else 'right'}",))
    parts = ("train",) * (n - 12) + ("val",) * 6 + ("test-seen",) * 6
    return SceneDataset(
        "squares", ArrayImages(pixels), np.full((n, 2), SIDE), tuple(objects), tuple(captions), tuple(COLOURS), (7, 3),
        tuple(range(100, 100 + n)), parts,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "squares"
    write_coco(squares(36, 0), folder, images=True)
    return folder


def settings(data: Path, **more: Any) -> VisftConfig:
    small = {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0}
    loop = {"optim": {"lr": 2e-3, "weight_decay": 1e-4}, "validate_every": 10, "patience": 0, "checkpoint_steps": 5}
    layer = {"heads": 2, "feedforward": 32}
    given: dict[str, Any] = {
        "data": str(data),
        "backbone": {
            "name": "vit_small_patch14_dinov2",
            "weights": "random",
            "size": SIDE,
            "fit": "squash",
            "timm_args": small,
        },
        "blocks": (2, 3),
        "detr": {"net": {"width": 32, "decoder_layers": 1, "queries": 4, "layer": layer}},
        "captioning": {"width": 16, "layers": 1, "heads": 2, "max_length": 8},
        "detection_stage": {"steps": 12, "batch_size": 8, "training": loop},
        "segmentation_stage": {"steps": 6, "batch_size": 8, "training": loop},
        "captioning_stage": {"steps": 12, "batch_size": 8, "training": loop},
        "joint": {"steps": 6, "batch_size": 4, "ladder": 3, "training": {"optim": {"lr": 1e-3}, "checkpoint_steps": 2}},
        "forgetting": {"measure": False},
    }
    return VisftConfig.model_validate(given | more)


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> VisftRun:
    return visft(settings(scenes), tmp_path_factory.mktemp("runs") / "run")


def test_a_run_leaves_heads_records_predictions_pictures_and_a_backbone(finished: VisftRun) -> None:
    path = finished.path
    by = {(r.split, r.method, r.metric): r for r in finished.results}
    for part in ("validation", "test-seen"):
        assert 0 <= by[part, "detr stage 1", "box_ap50_agnostic"].value <= 1
        assert (part, "caption visft", "bleu4") in by
        change = by[part, "mask visft", "mask_ap50_change"]
        assert change.before == by[part, "mask stage 1", "mask_ap50"].value
        assert change.value == pytest.approx(by[part, "mask visft", "mask_ap50"].value - (change.before or 0))
        if finished.choice is not None and not finished.choice.step:  # the untouched backbone compared with itself
            assert (change.value, change.ci_low, change.ci_high) == (0, 0, 0)
    said = json.loads((path / "predictions/captioning-test-seen.json").read_text())
    assert {one["image_id"] for one in said} == set(range(130, 136))
    found = json.loads((path / "predictions/detection-test-seen.json").read_text())
    assert {one["category_id"] for one in found} <= {3, 7}
    with Image.open(path / "pictures/test-seen.png") as picture:
        assert picture.width > 200
    assert not (path / "maps").exists()


def test_the_page_is_made_of_the_records_alone(finished: VisftRun, tmp_path: Path) -> None:
    path = finished.path
    page = read_page(path / "report.json")
    assert page == visft_page(path)
    assert page.kind == "visft"
    assert "squares" in page.title
    titles = [section.title for section in page.sections]
    assert {"Before and after", "Checkpoints of stage 2", "Each class", "Answers on pictures", "Limitations"} <= set(
        titles
    )
    shown = [b for s in page.sections for b in s.blocks if isinstance(b, Pictures)]
    assert [(block.title, len(block.pictures)) for block in shown] == [("validation", 6), ("test-seen", 6)]
    assert "marked: red" in shown[0].pictures[0].caption + shown[0].pictures[1].caption + shown[0].pictures[2].caption
    assert (path / "report.html").stat().st_size < 5e6
    assert "Rungs of stage 2" in (path / "report.html").read_text()
    record = read_precision(path)
    assert record is not None
    by = {(r.split, r.metric, r.method): r.value for r in finished.results}
    for part in record.parts:
        metric, head = ("box_ap50", "detr") if part.task == "detection" else ("mask_ap50", "mask")
        classes = [one.tuned.value for one in part.classes if one.tuned]
        assert sum(classes) / len(classes) == pytest.approx(by[part.part, metric, f"{head} visft"])
    # A run of an older version has neither: the sheets stand in for the pictures, and no class is spoken of.
    older = tmp_path / "older"
    shutil.copytree(path, older)
    (older / "curves.json").unlink()
    (older / "examples.json").unlink()
    again = visft_page(older)
    assert "Each class" not in [section.title for section in again.sections]
    assert [len(b.pictures) for s in again.sections for b in s.blocks if isinstance(b, Pictures)] == [1, 1]


def test_the_chosen_rung_is_the_backbone_that_is_left(finished: VisftRun, scenes: Path) -> None:
    choice = finished.choice
    assert choice is not None
    assert [rung.step for rung in choice.rungs] == [0, 3, 6]
    assert choice.step == choice.rungs[choose_rung(choice.rungs, "probes")].step
    saved = load_backbone(f"{finished.path / 'backbone'}/")
    config = settings(scenes)
    untouched = load_backbone(config.backbone)
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        same = torch.equal(saved(images, (3,))[0].patches, untouched(images, (3,))[0].patches)
    assert same == (choice.step == 0)
    weights = load_file(finished.path / "backbone" / "model.safetensors")
    assert weights.keys() == untouched.network.state_dict().keys()


def test_heads_are_frozen_bit_for_bit(finished: VisftRun) -> None:
    assert finished.choice is not None
    for task in ("detection", "segmentation", "captioning"):
        head = read_head(finished.path / "heads" / task)
        assert head is not None
        assert finished.choice.heads[task] == head.record.weights  # type: ignore[index]


def test_a_killed_run_goes_on_to_the_same_result(
    finished: VisftRun, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    real = visft_joint.Ladder.look

    def dies(ladder: visft_joint.Ladder, step: int) -> Rung:
        if step == 6:
            raise KeyboardInterrupt
        return real(ladder, step)

    monkeypatch.setattr(visft_joint.Ladder, "look", dies)
    with pytest.raises(KeyboardInterrupt):
        visft(settings(scenes), out)
    monkeypatch.undo()
    again = visft(settings(scenes), out)
    figures = [(r.split, r.method, r.metric, r.value) for r in again.results]
    assert figures == [(r.split, r.method, r.metric, r.value) for r in finished.results]
    last = "joint/ladder/step-000006/adapter.safetensors"
    first, second = load_file(finished.path / last), load_file(out / last)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_heads_of_another_run_are_taken_where_they_are_the_same(
    finished: VisftRun, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(scenes, tasks=("detection", "captioning"), joint={"steps": 0})
    captions = config.model_copy(update={"captioning_stage": config.captioning_stage.model_copy(update={"steps": 4})})
    with caplog.at_level("INFO"):
        run = visft(captions, tmp_path / "again", reuse=finished.path)
    assert "detection: the head is there already" in caplog.text
    assert "captioning: the head is there already" not in caplog.text
    assert run.choice is None
    assert not (run.path / "backbone").exists()
    first, second = (read_head(p / "heads/detection") for p in (finished.path, run.path))
    assert first is not None
    assert second is not None
    assert first.record == second.record
    assert {r.task for r in run.results} == {"detection", "captioning"}
    page = read_page(run.path / "report.json")
    assert page.answer.startswith("On the frozen backbone the heads reach boxes AP50 ")
    assert "was not tuned" in page.answer
    assert "Checkpoints of stage 2" not in [section.title for section in page.sections]


def test_a_run_whose_heads_are_all_there_computes_no_maps(
    finished: VisftRun, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("maps were computed")

    monkeypatch.setattr("keepsight.recipes.visft.kept_maps", refuse)
    config = settings(scenes)
    shuffled = config.model_copy(update={"joint": config.joint.model_copy(update={"shuffled": True})})
    run = visft(shuffled, tmp_path / "control", reuse=finished.path)
    assert run.choice is not None
    assert finished.choice is not None
    assert run.choice.heads == finished.choice.heads
    weights = [load_file(p / "joint/ladder/step-000006/adapter.safetensors") for p in (run.path, finished.path)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class Middle(TaskHead):
    """One box in the middle of every image, of a learnt score."""

    task: Task = "detection"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1)

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        found_B1 = self.score(map_BChw.mean(dim=(2, 3)))
        there_B1 = torch.tensor([[float(len(t.boxes) > 0)] for t in targets])
        return {"there": nn.functional.binary_cross_entropy_with_logits(found_B1, there_B1)}

    @torch.no_grad()
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        scores_B = self.score(map_BChw.mean(dim=(2, 3))).sigmoid()[:, 0]
        box = torch.tensor([[0.25, 0.25, 0.75, 0.75]])
        return [Answer(boxes=box, classes=torch.zeros(1, dtype=torch.int64), scores=s[None]) for s in scores_B]

    def shape(self) -> dict[str, Any]:
        return {"channels": self.score.in_features}


def test_a_head_of_ones_own_takes_the_place_of_ours(scenes: Path, tmp_path: Path) -> None:
    config = settings(scenes, tasks=("detection",), joint={"steps": 0})
    torch.manual_seed(0)
    run = visft(config, tmp_path / "own", heads={"detection": Middle(64)})
    assert {r.method for r in run.results} == {"own stage 1"}
    own = read_head(tmp_path / "own/heads/detection", own=Middle(64))
    assert own is not None
    assert own.record.shape == {"channels": 64}
    with pytest.raises(UserError, match="a class of your own"):
        read_head(tmp_path / "own/heads/detection")
    with pytest.raises(UserError, match="not among the tasks"):
        visft(settings(scenes, tasks=("captioning",)), tmp_path / "odd", heads={"detection": Middle(64)})


def test_what_a_task_needs_is_asked_for_before_anything_is_made(scenes: Path, tmp_path: Path) -> None:
    boxes_alone = squares(16, 1)
    bare = tuple(Objects(o.boxes, o.classes, o.crowd, (None,)) for o in boxes_alone.objects)
    folder = tmp_path / "boxes"
    none = ((),) * 16
    write_coco(
        SceneDataset(
            "boxes", boxes_alone.images, boxes_alone.sizes, bare, none, boxes_alone.classes, (7, 3), boxes_alone.image_ids,
            boxes_alone.parts,
        ),
        folder,
        images=True,
    )  # fmt: skip
    with pytest.raises(UserError, match="no captions to learn from"):
        visft(settings(folder), tmp_path / "out")
    with pytest.raises(UserError, match="boxes and no masks"):
        visft(settings(folder, tasks=("detection", "segmentation")), tmp_path / "out")
    with pytest.raises(UserError, match="does not have"):
        visft(settings(scenes, blocks=(9,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert visft_config("x", steps=0, tasks="detection", assignments=["seed=3"]).seed == 3
    with pytest.raises(UserError, match="no recipe"):
        visft_config("x", recipe="papr")


def test_rungs_that_lose_on_the_tasks_are_not_taken() -> None:
    rungs = (
        Rung(step=0, tasks={"detection": 0.4, "captioning": 0.2}, probes=0.0),
        Rung(step=5, tasks={"detection": 0.4, "captioning": 0.3}, probes=0.5),
        Rung(step=10, tasks={"detection": 0.1, "captioning": 0.2}, probes=2.0),
    )
    assert choose_rung(rungs, "probes") == 1
    assert choose_rung(rungs, "last") == 2
    assert choose_rung(tuple(r.model_copy(update={"probes": None}) for r in rungs), "probes") == 1


def test_predicting_writes_coco_and_pictures_and_no_name_escapes(finished: VisftRun, tmp_path: Path) -> None:
    hostile = tmp_path / "in" / "a <b>.png"
    hostile.parent.mkdir()
    Image.new("RGB", (90, 60), (220, 30, 30)).save(hostile)
    (tmp_path / "in" / "z.png").write_text("no image")
    images = FileImages(tmp_path / "in", [hostile.name, "z.png"])
    model = load_scene_model(finished.path)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"z\.png"):
        predict_scenes(model, images, tmp_path / "strict")
    assert predict_scenes(model, images, out, least_score=0.0, skip_bad=True) == 1
    found = json.loads((out / "predictions.json").read_text())
    assert found["images"] == [{"id": 1, "file_name": hostile.name, "height": 60, "width": 90}]
    assert sorted(one["name"] for one in found["categories"]) == sorted(COLOURS)
    assert {one["task"] for one in found["annotations"]} >= {"detection"}
    for one in found["annotations"]:
        left, top, width, height = one["bbox"]
        assert 0 <= left <= left + width <= 90.01
        assert 0 <= top <= top + height <= 60.01
    assert [one["image_id"] for one in found["captions"]] == [1]
    assert [p.name for p in sorted((out / "pictures").iterdir())] == ["000001.png"]


def test_retention_attaches_to_stage_two(finished: VisftRun, scenes: Path, tmp_path: Path) -> None:
    base = settings(scenes)
    held = {**base.joint.model_dump(exclude={"retain"}), "retain": "procrustes:1000,spd"}
    visft(settings(scenes, joint=held), tmp_path / "held", reuse=finished.path)
    last = "joint/ladder/step-000006/adapter.safetensors"
    free, kept = load_file(finished.path / last), load_file(tmp_path / "held" / last)
    size = {
        name: float(sum(w[n].square().sum() for n in w if ".lora_B." in n))
        for name, w in (("free", free), ("kept", kept))
    }
    assert 0 < size["kept"] < size["free"]
    for odd in ("lwf", "wise-ft:0.5", "soup:2", "rift-cov:1:source=cached"):
        with pytest.raises(UserError, match="Stage 2 of ViSFT cannot have"):
            visft(settings(scenes, joint={"retain": odd}), tmp_path / "odd")
