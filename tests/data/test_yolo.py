from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.masks import decode_mask
from keepsight.data.scenes_load import load_scenes, scene_format
from keepsight.data.yolo import read_yolo, scan_yolo

H, W = 20, 40


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H)).save(path)


def label(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for name in ("train/a", "train/b", "val/c"):
        picture(root / "images" / f"{name}.png")
    label(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.5\n\n0 0.0 0.0 0.5 0.0 0.5 1.0 0.0 1.0\n")
    label(root / "labels" / "val" / "c.txt", "")
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return root


def test_boxes_polygons_and_images_without_labels(yolo: Path) -> None:
    assert scene_format(yolo) == "yolo"
    found = load_scenes(yolo)
    assert found.classes == ("cat", "dog")
    assert found.parts == ("train", "train", "val")
    assert found.sizes.tolist() == [[H, W]] * 3
    assert found.objects[0].boxes.tolist() == [[15, 5, 25, 15], [0, 0, 20, 20]]
    assert found.objects[0].classes.tolist() == [1, 0]
    no_mask, mask = found.objects[0].masks
    assert no_mask is None
    assert mask is not None
    np.testing.assert_array_equal(decode_mask(mask), np.arange(W)[None].repeat(H, 0) < W // 2)
    assert [len(each.classes) for each in found.objects] == [2, 0, 0]


def test_turned_photographs_have_the_size_that_is_loaded(yolo: Path) -> None:
    image = Image.new("RGB", (W, H))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(yolo / "images" / "train" / "t.jpg", exif=exif)
    found = load_scenes(yolo)
    row = [found.images.name(i) for i in range(4)].index("images/train/t.jpg")
    assert found.sizes[row].tolist() == [W, H] == list(found.images.load(row).size[::-1])


@pytest.mark.parametrize("written", ["../train/images", "train/images"])
def test_splits_beside_the_description(tmp_path: Path, written: str) -> None:
    picture(tmp_path / "train" / "images" / "a.png")
    label(tmp_path / "train" / "labels" / "a.txt", "0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text(f"path: /somewhere/else\ntrain: {written}\nnames: [cat]\n")
    assert load_scenes(tmp_path).objects[0].boxes.tolist() == [[0, 0, W, H]]


def test_classes_txt_and_a_list_of_files(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    label(tmp_path / "labels" / "a.txt", "0 0.5 0.5 1 1")
    (tmp_path / "classes.txt").write_text("cat\n")
    assert load_scenes(tmp_path).parts == ("train", "train")
    (tmp_path / "list.txt").write_text("./images/a.png\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    assert len(load_scenes(tmp_path).images) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("2 0.5 0.5 0.1 0.1", r"1 annotation \(class 2 in line 1 of b.txt\) of an unknown category"),
        ("0.5 0.5 0.5 0.1 0.1", "unknown category"),
        ("0 0.5 0.5 0.1", r"1 annotation \(line 1 of b.txt\) without a valid box"),
        ("0 x 0.5 0.1 0.1", "without a valid box"),
        ("0 nan 0.5 0.1 0.1", "without a valid box"),
    ],
)
def test_wrong_lines(yolo: Path, line: str, sentence: str) -> None:
    label(yolo / "labels" / "train" / "b.txt", line)
    with pytest.raises(UserError, match=sentence):
        read_yolo(yolo)


def test_boxes_over_the_border_and_labels_without_an_image(yolo: Path) -> None:
    label(yolo / "labels" / "train" / "b.txt", "0 1.0 0.5 0.5 0.5\n0 2.0 0.5 0.5 0.5\n0 0.5 0.5 0 0.5")
    label(yolo / "labels" / "train" / "gone.txt", "0 0.5 0.5 0.1 0.1")
    dataset, problems = scan_yolo(yolo)
    assert dataset.objects[1].boxes.tolist() == [[30, 5, 40, 15]]
    assert [problems.count(kind) for kind in ("partly outside", "outside", "zero area", "no image")] == [1, 1, 1, 1]


@pytest.mark.parametrize("entry", ["../../secret", "/etc", "images/../../x"])
def test_splits_that_lead_out_are_refused(yolo: Path, entry: str) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nval: {entry}\nnames: [cat, dog]\n")
    with pytest.raises(UserError, match=r"leading out"):
        read_yolo(yolo)


@pytest.mark.parametrize("text", ["names: [cat\ntrain: x", "names: 3\ntrain: images/train", "names: []\ntrain: images"])
def test_descriptions_that_are_none(yolo: Path, text: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=r"data.yaml"):
        read_yolo(yolo)
