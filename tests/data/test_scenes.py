"""Scenes composed of what is installed: stamps where Debian's package is, and digits everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data import scene_stamps, scenes
from keepsight.data.masks import decode_mask
from keepsight.data.scene_captions import Placed, captions_of
from keepsight.data.scene_check import check_scenes
from keepsight.data.scene_stamps import Stamp, held_out, motif_groups
from keepsight.data.scenes import ScenesConfig, compose, write_scenes
from keepsight.data.scenes_load import load_scenes
from keepsight.data.stamps import STAMPS_FOLDER

needs_stamps = pytest.mark.skipif(not STAMPS_FOLDER.is_dir(), reason="tuxpaint-stamps-default is not installed")


def square(name: str, category: str, side: int = 20, group: int = 0) -> Stamp:
    rgba = np.full((side, side, 4), 255, np.uint8)
    return Stamp(name, category, f"a {category}", f"a {name}", rgba, group)


POOL = tuple(
    square(f"{category}{number}", category, group=place * 100 + number // 2)
    for place, category in enumerate(("cat", "dog", "car"))
    for number in range(16)
)


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """White squares of three categories, in pairs of one motif."""
    monkeypatch.setattr(scenes, "load_stamps", lambda source: ("squares", POOL))


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("squares")
def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_scenes(tmp_path / name, ScenesConfig(images=4, val=2, test=2, seed=seed, size=48))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["train/000000.jpg"] != c["train/000000.jpg"]


@pytest.mark.usefixtures("squares")
def test_what_is_written_is_read_and_nothing_is_wrong_with_it(tmp_path: Path) -> None:
    written = write_scenes(tmp_path / "set", ScenesConfig(images=12, size=64))
    read = load_scenes(tmp_path / "set")
    order = [read.image_ids.index(number) for number in written.image_ids]
    assert [read.parts[i] for i in order] == list(written.parts)
    assert [read.captions[i] for i in order] == list(written.captions)
    assert [read.objects[i].masks for i in order] == [each.masks for each in written.objects]
    report = check_scenes(tmp_path / "set")
    assert not [finding for finding in report.findings if finding.severity == "error"], report.findings
    assert report.parts == {"train": 12, "val": 2, "test-seen": 1, "test-unseen": 1}
    for index in range(len(read.images)):
        assert 1 <= len(read.objects[index].classes) <= 3
        for box, mask in zip(read.objects[index].boxes, read.objects[index].masks, strict=True):
            assert mask is not None
            y, x = decode_mask(mask).nonzero()
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.usefixtures("squares")
def test_held_out_stamps_are_shown_by_one_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[int, set[str]] = {}
    original = scenes.compose

    def watched(*args: object) -> scenes.Scene:
        scene = original(*args)  # type: ignore[arg-type]
        shown.setdefault(args[3][2], set()).update(stamp.name for stamp in scene.stamps)  # type: ignore[index]
        return scene

    monkeypatch.setattr(scenes, "compose", watched)
    write_scenes(tmp_path / "set", ScenesConfig(images=60, val=30, test=30, size=48))
    recipe = json.loads((tmp_path / "set" / "recipe.json").read_text())
    split = {stamp["name"]: stamp["split"] for stamp in recipe["stamps"]}
    assert len(split) == len(POOL)
    for number, part in enumerate(scenes.PARTS):
        expected = "unseen" if part == "test-unseen" else "seen"
        assert {split[name] for name in shown[number]} == {expected}
    groups: dict[int, set[str]] = {}
    for stamp in recipe["stamps"]:
        groups.setdefault(stamp["group"], set()).add(stamp["split"])
    assert all(len(sides) == 1 for sides in groups.values())
    assert {name: each["held_out"] for name, each in recipe["categories"].items()} == {"car": 4, "cat": 4, "dog": 4}


def test_every_category_keeps_and_gives_stamps() -> None:
    pool = tuple(square(f"{number}", "cat", group=number) for number in range(2)) + POOL
    unseen = held_out(pool, 0.25, seed=1)
    assert held_out(pool, 0.25, seed=1) == unseen != held_out(pool, 0.25, seed=2)
    for category in ("cat", "dog", "car"):
        names = {stamp.name for stamp in pool if stamp.category == category}
        assert names & unseen
        assert names - unseen


def test_masks_are_what_is_visible_and_enough_of_it() -> None:
    config = ScenesConfig(size=96, scale=(0.5, 0.6), hidden=0.4)
    background = [Image.new("RGB", (200, 150))]  # black, under white stamps
    overlapped = 0
    for index in range(40):
        scene = compose([[square("a", "cat", 40)]], background, config, (0, index))
        pixels = np.asarray(scene.image)
        union = np.logical_or.reduce(scene.masks)
        assert sum(int(mask.sum()) for mask in scene.masks) == int(union.sum())  # no pixel belongs to two
        assert (pixels[union] == 255).all()
        assert (pixels[~union] == 0).all()
        for mask in scene.masks:
            y, x = mask.nonzero()
            side = max(y.max() - y.min(), x.max() - x.min()) + 1
            assert mask.sum() >= 0.6 * side**2 - 1
            overlapped += int(mask.sum() < side**2)
    assert overlapped  # or nothing was tested


def test_motifs_by_name_and_by_picture() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        np.dstack([rng.integers(0, 256, (40, 40, 3)), np.full((40, 40), 255)]).astype(np.uint8) for _ in "abcde"
    ]
    pictures[3] = pictures[0][:, ::-1].copy()
    names = [f"animals/{name}.png" for name in ("frog", "boar_photo_1", "boar2", "toad", "cow")]
    groups = motif_groups(names, pictures)
    assert groups[1] == groups[2]  # one name
    assert groups[0] == groups[3]  # mirrored
    assert len(set(groups)) == 3


def test_captions_of_three() -> None:
    placed = [
        Placed(f"a {c}", f"one {c}", x, y) for c, x, y in (("cat", 0.8, 0.5), ("dog", 0.2, 0.4), ("car", 0.5, 0.6))
    ]
    first, second, third, fourth, _ = captions_of(placed)
    assert first == "a dog, a car and a cat from left to right"
    assert second == "one dog, one car and one cat from left to right"
    assert third == "a cat, a car and a dog from right to left"
    assert fourth == "a picture of a car, a cat and a dog"
    assert captions_of([Placed("a cat", "x", 0.5, 0.9), Placed("a dog", "y", 0.4, 0.1)])[0] == "a dog above a cat"
    assert captions_of([Placed("a cat", "x", 0.5, 0.52)])[0] == "a cat in the middle"


@pytest.mark.usefixtures("squares")
def test_a_filled_folder_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(UserError, match=r"is not empty: choose another place"):
        write_scenes(tmp_path, ScenesConfig(images=1))
    assert files(tmp_path) == {"mine.txt": b"dear"}


@pytest.mark.usefixtures("squares")
def test_a_broken_off_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "write_coco", stop)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "set", ScenesConfig(images=1, size=32))
    assert list(tmp_path.iterdir()) == []


def test_digits_where_there_are_no_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 8)
    pixels = np.zeros((80, 28, 28), np.uint8)
    pixels[:, 6:22, 8:20] = rng.integers(140, 256, (80, 16, 12))
    monkeypatch.setattr(scene_stamps.assets, "load_mnist_5k", lambda: (pixels, labels))
    monkeypatch.setattr(scene_stamps.stamps, "STAMPS_FOLDER", tmp_path / "none")
    dataset = write_scenes(tmp_path / "set", ScenesConfig(images=4, size=48))
    assert set(dataset.classes) == set(scene_stamps.DIGITS)
    assert json.loads((tmp_path / "set" / "recipe.json").read_text())["source"] == "mnist-5k"


@needs_stamps
def test_real_stamps() -> None:
    source, pool = scene_stamps.load_stamps("stamps")
    assert source == "tuxpaint-stamps-default"
    assert {stamp.category for stamp in pool} == set(scene_stamps.PHRASES)
    by_name = {stamp.name.rpartition("/")[2]: stamp for stamp in pool}
    assert by_name["tugboat.png"].group == by_name["tugboat_mirror.png"].group
    assert by_name["A_filled.png"].group == by_name["A_outline.png"].group
    assert any(stamp.text == "a badger" for stamp in pool)
    unseen = held_out(pool, 0.25, 0)
    assert 0.2 < len(unseen) / len(pool) < 0.3
