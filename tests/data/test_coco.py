"""COCO sets of the published structure, small, with everything that is met in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference

from keepsight.core import UserError
from keepsight.core.scene import SceneDataset
from keepsight.data.coco import read_coco, scan_coco
from keepsight.data.coco_write import write_coco
from keepsight.data.masks import MaskError, coco_mask, decode_mask, encode_mask, mask_area, mask_box, polygon_mask
from keepsight.data.scenes_load import load_scenes, scene_format

H, W = 30, 40
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
TOO_LONG = reference.encode(np.ones((99, 99), np.uint8, order="F"))["counts"].decode()
TRIANGLE = [[5.0, 5.0, 25.0, 5.0, 5.0, 20.0]]


def annotation(number: int, image: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": 0, **more}


def coco_set(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """Two training images and one of validation, by instances and captions."""
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": H, "width": W} for i in (9, 25)],
        "annotations": annotations,
        "categories": CATEGORIES,
    } | changes
    (root / "annotations").mkdir(parents=True)
    for part, images in (("train2017", ("000000000009", "000000000025")), ("val2017", ("000000000042",))):
        (root / part).mkdir()
        for number, name in enumerate(images):
            Image.new("RGB", (W, H), (number * 40, 90, 20)).save(root / part / f"{name}.jpg")
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    captions = content | {"annotations": [{"id": 1, "image_id": 9, "caption": " A man\n with a brush. "}]}
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(captions))
    val = {
        "images": [{"id": 42, "file_name": "000000000042.jpg", "height": H, "width": W}],
        "annotations": [annotation(7, 42, [0, 0, 10, 10], category_id=90)],
        "categories": CATEGORIES,
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(val))
    return root


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn:DeprecationWarning")  # of pycocotools' decode
def test_reads_the_published_structure(tmp_path: Path) -> None:
    crowd = {"size": [H, W], "counts": [0, H * 2, H * W - H * 2]}  # the first two columns
    mask = np.zeros((H, W), np.uint8)
    mask[3:9, 10:20] = 1
    rle = reference.encode(np.asfortranarray(mask))
    root = coco_set(
        tmp_path / "set",
        [
            annotation(1, 9, [5, 5, 20, 15], segmentation=TRIANGLE),
            annotation(2, 9, [0, 0, 2, H], iscrowd=1, segmentation=crowd, category_id=90),
            annotation(3, 9, [10, 3, 10, 6], segmentation={"size": [H, W], "counts": rle["counts"].decode()}),
        ],
    )
    assert scene_format(root) == "coco"
    found = load_scenes(root)
    assert found.parts == ("train", "train", "val")
    assert found.classes == ("person", "toothbrush")
    assert found.category_ids == (1, 90)
    assert found.image_ids == (9, 25, 42)
    objects = found.objects[0]
    assert objects.boxes.tolist() == [[5, 5, 25, 20], [0, 0, 2, H], [10, 3, 20, 9]]
    assert objects.classes.tolist() == [0, 1, 0]
    assert objects.crowd.tolist() == [False, True, False]
    triangle, first_columns, box = (decode_mask(each) for each in objects.masks if each is not None)
    np.testing.assert_array_equal(triangle, reference.decode(reference.frPyObjects(TRIANGLE, H, W))[..., 0] > 0)
    assert first_columns[:, :2].all()
    assert not first_columns[:, 2:].any()
    np.testing.assert_array_equal(box, mask > 0)
    assert len(found.objects[1].classes) == 0  # an image without annotations is kept
    assert found.captions == (("A man with a brush.",), (), ())
    assert found.images.load(2).size == (W, H)
    assert found.of("train").tolist() == [0, 1]


def test_missing_files_are_left_out_and_all_missing_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = coco_set(tmp_path / "set", [annotation(1, 9, [0, 0, 4, 4]), annotation(2, 25, [0, 0, 4, 4])])
    (root / "train2017" / "000000000025.jpg").unlink()
    found = read_coco(root)
    assert found.image_ids == (9, 42)
    assert sum("1 image file (" in record.getMessage() for record in caplog.records) == 1
    for file in root.rglob("*.jpg"):
        file.unlink()
    with pytest.raises(UserError, match=r"3 image files .* missing, which are all there are"):
        read_coco(root)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:/b.jpg"])
def test_names_leading_out_are_refused(tmp_path: Path, name: str) -> None:
    images = [{"id": 9, "file_name": name, "height": H, "width": W}]
    root = coco_set(tmp_path / "set", [], images=images)
    with pytest.raises(UserError, match=r"1 file name .* leading out of the data's folder"):
        read_coco(root)


def test_one_file_and_its_folder_given(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set", [annotation(1, 9, [0, 0, 4, 4])])
    file = root / "annotations" / "instances_train2017.json"
    assert read_coco(file).image_ids == (9, 25)
    (root / "train2017").rename(root / "elsewhere")
    assert read_coco(file, root / "elsewhere").image_ids == (9, 25)


def test_annotations_beside_the_images(tmp_path: Path) -> None:
    place = tmp_path / "set" / "valid"
    place.mkdir(parents=True)
    Image.new("RGB", (W, H)).save(place / "a.png")
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],  # the size comes from the file
        "annotations": [annotation(0, 0, [1, 1, 5, 5])],
        "categories": CATEGORIES,
    }
    (place / "_annotations.coco.json").write_text(json.dumps(content))
    found = load_scenes(tmp_path / "set")
    assert found.parts == ("val",)
    assert found.sizes.tolist() == [[H, W]]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"images": 3}', '{"images": [], "annotations": [3], "categories": []}']
)
def test_damaged_files_are_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "instances_train.json").write_text(text)
    with pytest.raises(UserError, match=r"The annotations .*instances_train.json are not"):
        read_coco(tmp_path)


def test_written_sets_are_read_back(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set", [annotation(1, 9, [5, 5, 20, 15], segmentation=TRIANGLE)])
    before = read_coco(root)
    write_coco(before, tmp_path / "copy", images=True)
    after = read_coco(tmp_path / "copy")
    _assert_same(before, after)
    assert [after.images.content_hash(i) for i in range(3)] == [before.images.content_hash(i) for i in range(3)]
    written = json.loads((tmp_path / "copy" / "annotations" / "instances_train.json").read_text())
    assert written["annotations"][0]["area"] == mask_area(polygon_mask(TRIANGLE, (H, W)))


def _assert_same(a: SceneDataset, b: SceneDataset) -> None:
    assert (a.classes, a.category_ids, a.image_ids, a.parts, a.captions) == (
        b.classes,
        b.category_ids,
        b.image_ids,
        b.parts,
        b.captions,
    )
    for left, right in zip(a.objects, b.objects, strict=True):
        np.testing.assert_array_equal(left.boxes, right.boxes)
        assert left.masks == right.masks


def test_masks_there_and_back() -> None:
    mask = np.random.default_rng(0).random((H, W)) < 0.3
    rle = encode_mask(mask)
    assert rle.counts == reference.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    np.testing.assert_array_equal(decode_mask(rle), mask)
    square = np.zeros((H, W), bool)
    square[4:9, 7:11] = True
    assert mask_box(encode_mask(square)).tolist() == [7, 4, 11, 9]
    assert mask_area(encode_mask(square)) == 20


@pytest.mark.parametrize(
    ("segmentation", "wrong_size"),
    [
        ([[1, 2, 3, 4]], False),
        ([[1, 2, 3, 4, 5, 6, 7]], False),
        ([[1, 2, 3, 4, 5, 1e9]], False),
        ([["a"] * 6], False),
        ({"size": [H, W]}, False),
        ({"size": [W, H], "counts": [H * W]}, True),
        ({"size": [H, W], "counts": [H * W + 1]}, True),
        ({"size": [H, W], "counts": TOO_LONG}, False),
        ({"size": [H, W], "counts": 3}, False),
    ],
)
def test_masks_that_are_none(segmentation: Any, wrong_size: bool) -> None:
    with pytest.raises(MaskError) as raised:
        coco_mask(segmentation, (H, W))
    assert raised.value.wrong_size == wrong_size


def test_scan_keeps_what_is_right(tmp_path: Path) -> None:
    root = coco_set(tmp_path / "set", [annotation(1, 9, [0, 0, 4, 4]), annotation(2, 9, [0, 0, 4, 4], category_id=5)])
    dataset, problems = scan_coco(root)
    assert dataset.objects[0].classes.tolist() == [0]
    assert problems.count("category") == 1
