"""Probes of what a run of ViSFT left: its folder, its backbone's folder, the split of its scenes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.backbones.load import load_backbone
from keepsight.core import UserError
from keepsight.core.scene import Objects, SceneDataset
from keepsight.data import stamps
from keepsight.data.arrays import ArrayImages
from keepsight.data.coco_write import write_coco
from keepsight.data.scenes import ScenesConfig, write_scenes
from keepsight.recipes.probe import probe
from keepsight.recipes.probe_make import make_probe
from keepsight.recipes.probe_models import Asked
from keepsight.recipes.probe_open import open_both, open_model
from keepsight.recipes.probe_settings import LoadingConfig, probing_config
from keepsight.recipes.visft import visft
from keepsight.recipes.visft_settings import VisftConfig

SIDE = 56
BACKBONE = {
    "name": "vit_small_patch14_dinov2",
    "weights": "random",
    "size": SIDE,
    "fit": "squash",
    "timm_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "init_values": 1.0},
}
KNN = ("suite=[digits]", "knn.sets.per_set=100", "knn.sets.least=5", "knn.sets.size=28")


def captioned(n: int) -> SceneDataset:
    """Noise that is brighter on one side; the caption says on which."""
    rng = np.random.default_rng(0)
    left = rng.random(n) < 0.5
    pixels = rng.integers(0, 100, (n, SIDE, SIDE, 3)).astype(np.uint8)
    for i in range(n):
        pixels[i, :, : SIDE // 2 if left[i] else SIDE] += 80
    box = Objects(np.array([[2, 2, 30, 30]], np.float32), np.zeros(1, np.int64), np.zeros(1, bool), (None,))
    captions = tuple((f"bright {'left' if one else 'both'}",) for one in left)
    parts = ("train",) * (n - 8) + ("val",) * 4 + ("test",) * 4
    return SceneDataset(
        "sides",
        ArrayImages(pixels),
        np.full((n, 2), SIDE),
        (box,) * n,
        captions,
        ("side",),
        (1,),
        tuple(range(n)),
        parts,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ViSFT of which the last rung is kept, so that its backbone differs."""
    folder = tmp_path_factory.mktemp("sides")
    write_coco(captioned(24), folder / "data", images=True)
    loop = {"optim": {"lr": 2e-3}, "validate_every": 4, "patience": 0, "checkpoint_steps": 4}
    config = {
        "data": str(folder / "data"),
        "backbone": BACKBONE,
        "blocks": (2, 3),
        "tasks": ("captioning",),
        "captioning": {"width": 16, "layers": 1, "heads": 2, "max_length": 6},
        "captioning_stage": {"steps": 4, "batch_size": 8, "training": loop},
        "joint": {
            "steps": 4,
            "batch_size": 4,
            "ladder": 4,
            "select": "last",
            "training": {"optim": {"lr": 1e-2}, "checkpoint_steps": 4},
        },
        "forgetting": {"measure": False},
    }
    return visft(VisftConfig.model_validate(config), folder / "run").path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("below", ["", "backbone"])
def test_a_run_of_visft_is_compared_with_what_it_came_from(run: Path, below: str, tmp_path: Path) -> None:
    config = probing_config(str(run / below), probes="knn", assignments=KNN)
    model, other, against = open_both(config)
    assert (model.tuned, model.scenes, against) == (True, str(run.parent / "data"), "untouched")
    assert other is not None
    untouched = load_backbone(model.untouched)
    assert other.own.weights_hash() == untouched.weights_hash() == model.weights != model.own.weights_hash()
    found = probe(config, tmp_path / "out")
    assert [(r.metric, r.backbone, r.against) for r in found.results] == [
        ("accuracy", "vit_small_patch14_dinov2", None),
        ("accuracy", str(run / below), None),
        ("accuracy_change", str(run / below), "untouched"),
    ]
    assert {r.size for r in found.results} == {28}


def test_every_rung_of_the_ladder_can_be_asked(run: Path, tmp_path: Path) -> None:
    ladder = run / "joint" / "ladder"
    last = open_model(str(ladder / "step-000004"), LoadingConfig())
    whole = open_model(str(run), LoadingConfig())
    assert last.own.weights_hash() == whole.own.weights_hash()  # the last rung was chosen
    assert (last.scenes, last.weights) == (whole.scenes, whole.weights)
    first = open_model(str(ladder / "step-000000"), LoadingConfig())
    assert first.own.weights_hash() == first.weights
    own = (*KNN, f"knn.sets.size={SIDE}")  # at another size random weights are other ones
    found = probe(probing_config(str(ladder / "step-000000"), probes="knn", assignments=own), tmp_path / "out").results
    assert [(r.value, r.ci_low, r.ci_high) for r in found if r.metric == "accuracy_change"] == [(0, 0, 0)]
    shutil.copytree(ladder / "step-000004", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="name it as RUN/joint/ladder/STEP"):
        open_model(str(tmp_path / "elsewhere"), LoadingConfig())
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    (copied / "joint/ladder/step-000004/COMPLETE").unlink()
    with pytest.raises(UserError, match="damaged or not finished"):
        open_model(str(copied / "joint/ladder/step-000004"), LoadingConfig())


def test_other_weights_than_were_tuned_are_noticed_and_old_runs_record_none(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    facts = json.loads((copied / "visft.json").read_text())
    (copied / "visft.json").write_text(json.dumps(facts | {"weights": "0" * 64}))
    with pytest.raises(UserError, match="are not those that"):
        open_both(probing_config(str(copied)))
    del facts["weights"]
    (copied / "visft.json").write_text(json.dumps(facts))
    assert open_both(probing_config(str(copied)))[1] is not None
    shutil.rmtree(copied / "backbone")
    with pytest.raises(UserError, match="has no tuned backbone yet"):
        open_model(str(copied), LoadingConfig())
    facts["config"]["joint"]["steps"] = 0
    (copied / "visft.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="trained heads alone"):
        open_model(str(copied), LoadingConfig())


def test_a_saved_backbone_alone_is_compared_with_what_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "backbone", tmp_path / "alone")
    config = probing_config(str(tmp_path / "alone"), against=str(run), probes="knn", assignments=KNN)
    model, other, against = open_both(config)
    assert (model.untouched.name, model.scenes, against) == ("vit_small_patch14_dinov2", None, str(run))
    assert other is not None
    assert other.scenes is not None
    assert model.own.weights_hash() == other.own.weights_hash()
    none = probing_config(
        str(tmp_path / "alone"), against="none", probes="knn", assignments=(*KNN, f"knn.sets.size={SIDE}")
    )
    assert [r.metric for r in probe(none, tmp_path / "out").results] == ["accuracy"]


def test_training_images_and_their_likes_are_refused(run: Path) -> None:
    model = open_model(str(run), LoadingConfig())
    own = probing_config("x", assignments=(f"attention.scenes={model.scenes}", "attention.size=56"))
    # Looked at is the part test, which was not trained on.
    assert make_probe("attention", own, [model]).name == "attention"
    folder = Path(str(model.scenes))
    picture = next(
        path for path in sorted(folder.rglob("*")) if path.parent.name == "train" and path.suffix in (".png", ".jpg")
    )
    words = run.parent / "words"
    for part in ("training", "test"):
        place = words / f"ch4_{part}_word_images_gt"
        place.mkdir(parents=True, exist_ok=True)
        (place / "gt.txt").write_text('w.png, "word"')
        with Image.open(picture) as image:  # the same picture, stored otherwise
            image.save(place / "w.png", compress_level=1)
    with pytest.raises(UserError, match=r"is nearly .* the training image"):
        make_probe("ocr", probing_config("x", assignments=(f"ocr.folder={words}",)), [model])


@pytest.fixture
def drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stamps of sixteen motifs in four categories, with captions."""
    root, rng = tmp_path / "stamps", np.random.default_rng(0)
    for number in range(16):
        folder = root / ("animals", "plants", "food", "space")[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        rgba = rng.integers(0, 256, (24, 24, 4), dtype=np.uint8)
        rgba[..., 3] = 255
        Image.fromarray(rgba).save(folder / f"kind-{chr(97 + number)}.png")
        (folder / f"kind-{chr(97 + number)}.txt").write_text(f"A kind {chr(97 + number)}.\n")
    monkeypatch.setattr(stamps, "STAMPS_FOLDER", root)
    return root


@pytest.mark.usefixtures("drawings")
def test_probes_hold_out_what_the_runs_scenes_do(tmp_path: Path, run: Path) -> None:
    trained = tmp_path / "trained"
    write_scenes(trained, ScenesConfig(images=4, val=1, test=2, size=48, seed=3, split=5))
    tuned: Asked = open_model(str(run), LoadingConfig())
    tuned.scenes = str(trained)
    for name in ("retrieval", "zero-shot"):
        made = make_probe(name, probing_config("x"), [tuned])  # type: ignore[arg-type]
        assert made.config.split == 5  # type: ignore[attr-defined]
        assert made.stamps  # type: ignore[attr-defined]
        wrong = probing_config("x", assignments=[f"{name.replace('-', '_')}.split=0"])
        with pytest.raises(UserError, match="give the probe the split of those scenes, 5,"):
            make_probe(name, wrong, [tuned])  # type: ignore[arg-type]
    assert make_probe("retrieval", probing_config("x")).config.split == 0  # type: ignore[attr-defined]
