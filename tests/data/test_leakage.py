"""A probe that shows what a backbone was tuned on is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data import scenes
from keepsight.data.arrays import ArrayImages
from keepsight.data.cached_scenes import cached_scenes, train_and_test
from keepsight.data.files import FileImages
from keepsight.data.leakage import check_leakage, shown_stamps, training_images
from keepsight.data.scene_stamps import Stamp
from keepsight.data.scenes import ScenesConfig, write_scenes
from keepsight.data.scenes_load import load_scenes

CATEGORIES = ("cat", "dog", "car", "cup")


def tile(number: int) -> Stamp:
    pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    category = CATEGORIES[number % 4]
    return Stamp(
        f"{category}{number}", category, f"a {category}", f"a {category}", pixels, number // 8 * 4 + number % 4
    )


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of four categories, in pairs of one motif."""
    pool = tuple(tile(number) for number in range(64))
    monkeypatch.setattr(scenes, "load_stamps", lambda source: ("tiles", pool))


def folder_of(path: Path, count: int, seed: int) -> Path:
    path.mkdir()
    for index in range(count):
        coarse = np.random.default_rng((seed, index)).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(path / f"{index}.png")
    return path


def images_in(folder: Path) -> FileImages:
    return FileImages(folder, sorted(path.name for path in folder.glob("*.png")))


def test_other_images_pass(tmp_path: Path) -> None:
    trained, probed = folder_of(tmp_path / "trained", 12, seed=0), folder_of(tmp_path / "probed", 12, seed=1)
    check_leakage(images_in(probed), trained)


def test_the_same_file_is_refused_by_name(tmp_path: Path) -> None:
    trained, probed = folder_of(tmp_path / "trained", 12, seed=0), folder_of(tmp_path / "probed", 12, seed=1)
    (probed / "5.png").write_bytes((trained / "7.png").read_bytes())
    with pytest.raises(UserError, match=r"image 5\.png is the training image 7\.png of .*trained"):
        check_leakage(images_in(probed), trained)


@pytest.mark.parametrize("change", ["compressed", "smaller", "mirrored"])
def test_nearly_the_same_image_is_refused_by_name(tmp_path: Path, change: str) -> None:
    trained, probed = folder_of(tmp_path / "trained", 12, seed=0), folder_of(tmp_path / "probed", 12, seed=1)
    image = Image.open(trained / "7.png")
    if change == "smaller":
        image = image.resize((40, 40), Image.Resampling.BICUBIC)
    if change == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image.save(probed / "5.png", format="JPEG", quality=80)
    with pytest.raises(UserError, match=r"image 5\.png is nearly \(correlation [.01-9]+\) the training image 7\.png"):
        check_leakage(images_in(probed), trained)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in ("empty", "missing"):
        with pytest.raises(UserError, match="holds no training images"):
            check_leakage(ArrayImages(np.zeros((1, 8, 8), np.uint8)), tmp_path / place)


@pytest.mark.usefixtures("tiles")
def test_stamps_of_another_split_are_refused_and_those_of_the_same_split_pass(tmp_path: Path) -> None:
    config = ScenesConfig(images=6, val=2, test=2, size=48)
    trained = tmp_path / "trained"
    write_scenes(trained, config)
    for split in (0, 5):
        other = config.model_copy(update={"seed": 9, "split": split})
        write_scenes(tmp_path / f"probe{split}", other)
        dataset, stamps = load_scenes(tmp_path / f"probe{split}"), shown_stamps(tmp_path / f"probe{split}", "unseen")
        assert len(stamps) == 16
        if split == 0:
            check_leakage(dataset.images, trained, stamps)
            assert stamps == shown_stamps(trained, "unseen")
            continue
        shared = set(stamps.values()) & set(shown_stamps(trained, "seen").values())
        assert shared
        with pytest.raises(UserError, match="the split of those scenes, 0,") as caught:
            check_leakage(dataset.images, trained, stamps)
        assert any(f"stamp {name}," in str(caught.value) for name in shared)


@pytest.mark.usefixtures("tiles")
def test_a_stamp_of_a_motif_that_was_trained_is_refused(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    write_scenes(trained, ScenesConfig(images=2, val=0, test=1, size=48))
    seen = sorted(shown_stamps(trained, "seen").items())
    (digest, name) = seen[0]
    recipe = (trained / "recipe.json").read_text()
    # The recipe as if one of two stamps of a motif were held out.
    at = recipe.index(f'"name": "{name}"')
    (trained / "recipe.json").write_text(recipe[:at] + recipe[at:].replace('"split": "seen"', '"split": "unseen"', 1))
    with pytest.raises(UserError, match=f"show the stamp {name}, .*of the same motif"):
        check_leakage(FileImages(trained, []), trained, {digest: name})


@pytest.mark.usefixtures("tiles")
def test_test_parts_of_training_scenes_were_not_trained_on(tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    dataset = write_scenes(trained, ScenesConfig(images=6, val=2, test=3, size=48))
    found = training_images(trained)
    assert {found.name(index).split("/")[0] for index in range(len(found))} == {"train", "val"}
    assert len(found) == 8
    with pytest.raises(UserError, match=r"val/000000\.jpg is the training image val/000000\.jpg"):
        check_leakage(FileImages(trained, [dataset.images.name(int(dataset.of("val")[0]))]), trained)


@pytest.mark.usefixtures("tiles")
def test_cached_scenes_are_composed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path))
    config = ScenesConfig(images=3, val=0, test=4, size=48, source="stamps")
    folder = cached_scenes(config)
    written = (folder / "recipe.json").stat().st_mtime_ns
    assert cached_scenes(config) == folder
    assert (folder / "recipe.json").stat().st_mtime_ns == written
    assert cached_scenes(config.model_copy(update={"split": 1})) != folder
    dataset = load_scenes(folder)
    train, test, part = train_and_test(dataset, 2, 3, seed=0)
    assert part == "test-unseen"
    assert [len(train), len(test)] == [2, 3]
    assert {dataset.parts[row] for row in train.tolist()} == {"train"}
    assert {dataset.parts[row] for row in test.tolist()} == {"test-unseen"}
