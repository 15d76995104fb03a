"""Every bad annotation and its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.marks import SAYS
from keepsight.data.scene_check import check_scenes
from keepsight.data.scenes_load import load_scenes, scene_format

H, W = 30, 40


def written(root: Path, annotations: list[dict[str, Any]], captions: list[Any] | None = None, **changes: Any) -> Path:
    """Two images of one part, a good box in each, and what is given."""
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (W, H)).save(root / "train" / name)
    good = [one(100, image_id=1), one(101, image_id=2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": H, "width": W}, image(2, "b.png")],
        "annotations": good + annotations,
        "categories": [{"id": 1, "name": "cat"}],
    } | changes
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    if captions is not None:
        texts = [{"id": n, "image_id": image_id, "caption": text} for n, (image_id, text) in enumerate(captions)]
        (root / "annotations" / "captions_train.json").write_text(json.dumps(content | {"annotations": texts}))
    return root


def image(number: int, name: str, height: int = H, width: int = W) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": height, "width": width}


def one(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": [2, 2, 8, 8], "iscrowd": 0} | changes


IMAGES = [image(1, "a.png"), image(2, "b.png")]

BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "path": ("1 file name ('../x.png') leading out", {"images": [*IMAGES, image(3, "../x.png")]}),
    "image id": ("1 image id (1, of a.png and c.png) given", {"images": [*IMAGES, image(1, "c.png")]}),
    "category id": ("1 category id", {"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}),
    "category": (
        "1 annotation (category 7 in annotation 1 of image 1) of an unknown",
        {"annotations": [one(category_id=7)]},
    ),
    "box": (
        "2 annotations (first: annotation 1 of image 1) without a valid box",
        {"annotations": [one(bbox=[1, 2, 3]), one(2, bbox=None)]},
    ),
    "size": (
        "1 image (train/b.png: 40 x 30 px, by the annotations 30 x 40)",
        {"images": [image(1, "a.png"), image(2, "b.png", W, H)]},
    ),
    "image twice": ("1 image (a.png) listed twice", {"images": [*IMAGES, image(1, "a.png")]}),
    "annotation id": ("1 annotation id (100 in instances_train.json) used twice", {"annotations": [one(100)]}),
    "missing": ("1 image file", {"images": [*IMAGES, image(3, "gone.png")]}),
    "no image": (
        "1 annotation (image_id 77 in train) of an image that is not there",
        {"annotations": [one(image_id=77)]},
    ),
    "outside": ("1 box (annotation 1 of image 1) wholly outside", {"annotations": [one(bbox=[W, 0, 5, 5])]}),
    "partly outside": ("1 box (annotation 1 of image 1) partly outside", {"annotations": [one(bbox=[W - 5, 0, 9, 5])]}),
    "zero area": (
        "2 boxes (first: annotation 1 of image 1) without an area",
        {"annotations": [one(bbox=[3, 3, 0, 5]), one(2, bbox=[3, 3, -2, 5])]},
    ),
    "mask size": ("1 mask", {"annotations": [one(segmentation={"size": [W, H], "counts": [W * H]})]}),
    "mask": ("1 mask", {"annotations": [one(segmentation=[[1, 2, 3, 4]])]}),
    "empty mask": ("1 mask", {"annotations": [one(segmentation={"size": [H, W], "counts": [W * H]})]}),
    "empty caption": ("1 caption (b.png) without a word", {"captions": [(1, "a cat"), (2, "a"), (2, "  ")]}),
    "no caption": ("1 image (b.png) without a caption", {"captions": [(1, "a cat")]}),
    "unused category": (
        "1 category (dog) without any object",
        {"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]},
    ),
    "no object": ("1 image (train/c.png) without any object", {"images": [*IMAGES, image(3, "c.png")]}),
    "crowd": ("1 region (annotation 1 of image 1) marked as a crowd", {"annotations": [one(iscrowd=1)]}),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_bad_annotation_has_one_sentence(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    expected, changes = BAD[kind]
    root = written(tmp_path / "set", **({"annotations": []} | changes))
    Image.new("RGB", (W, H)).save(root / "train" / "c.png")
    findings = check_scenes(root).findings
    assert [expected in finding.text for finding in findings] == [True], findings
    assert findings[0].severity == SAYS[kind][0]
    if findings[0].severity == "error" and kind != "size":
        with pytest.raises(UserError, match=r"The scenes in .* cannot be used: ") as raised:
            load_scenes(root)
        assert "\n" not in str(raised.value)
    elif kind != "size":  # which is known only when pixels are read: loading the image refuses
        load_scenes(root)
        assert len(caplog.records) == (findings[0].severity == "warning")


def test_every_kind_is_tested() -> None:
    assert set(SAYS) - set(BAD) == {"all missing", "unreadable"}  # in test_coco.py and below


def test_a_good_set_has_nothing_wrong(tmp_path: Path) -> None:
    root = written(tmp_path / "set", [], captions=[(1, "a cat"), (2, "a cat")])
    report = check_scenes(root)
    assert report.findings == ()
    assert (report.images, report.parts, report.classes) == (2, {"train": 2}, {"cat": {"train": 2}})
    assert report.captions == {"train": 2}
    assert report.masks == 0


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    root = written(tmp_path / "set", [])
    (root / "train" / "b.png").write_bytes(b"no image")
    report = check_scenes(root)
    assert [finding.severity for finding in report.findings] == ["error"]
    assert "train/b.png" in report.findings[0].text
    assert report.bad[0].index == 1


def test_what_is_cut_off_and_what_is_left_out(tmp_path: Path) -> None:
    root = written(tmp_path / "set", [one(bbox=[W - 5, -4, 9, 10]), one(2, bbox=[W + 1, 0, 5, 5])])
    boxes = load_scenes(root).objects[0].boxes
    assert boxes.tolist() == [[2, 2, 10, 10], [W - 5, 0, W, 6]]


def test_what_is_no_set_of_scenes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder"):
        load_scenes(tmp_path / "nothing")
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cats" / "a.png")
    assert scene_format(tmp_path) is None
    with pytest.raises(UserError, match=r"is no set of scenes: expected COCO .* YOLO .* Pascal VOC"):
        load_scenes(tmp_path)
