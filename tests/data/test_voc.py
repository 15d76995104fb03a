from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.coco import read_coco
from keepsight.data.coco_write import write_coco
from keepsight.data.scenes_load import load_scenes, scene_format
from keepsight.data.voc import read_voc, scan_voc

XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object>
{more}</annotation>"""
HARD = (
    "<object><name>cat</name><difficult>1</difficult><bndbox><xmax>40</xmax><xmin>31</xmin><ymin>1</ymin>"
    "<ymax>30</ymax></bndbox></object>"
)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name in ("000001", "000002", "000003"):
        Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(XML.format(name=name, more=HARD if name == "000002" else ""))
    (root / "ImageSets" / "Main" / "train.txt").write_text("000001\n000003\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("000002\n")
    return root


def test_boxes_parts_and_difficult_objects(voc: Path) -> None:
    assert scene_format(voc.parent.parent) == "voc"
    found = load_scenes(voc.parent.parent)
    assert found.parts == ("train", "train", "val")
    assert found.classes == ("cat", "dog")
    assert found.objects[0].boxes.tolist() == [[0, 2, 10, 20]]  # VOC counts from 1, and the last pixel is in
    assert found.objects[2].classes.tolist() == [1, 0]
    assert found.objects[2].crowd.tolist() == [False, True]


def test_conversion_to_coco(voc: Path, tmp_path: Path) -> None:
    before = read_voc(voc)
    write_coco(before, tmp_path / "coco", images=True)
    after = read_coco(tmp_path / "coco")
    assert after.parts == before.parts
    assert after.classes == before.classes
    assert [each.boxes.tolist() for each in after.objects] == [each.boxes.tolist() for each in before.objects]
    assert after.objects[2].crowd.tolist() == [False, True]
    assert after.images.content_hash(0) == before.images.content_hash(0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_before_they_expand(voc: Path, encoding: str) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><annotation><filename>&z;</filename></annotation>'
    text = f'<?xml version="1.0" encoding="{encoding}"?>{bomb}'
    (voc / "Annotations" / "000001.xml").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=r"000001.xml declares a document type"):
        read_voc(voc)


def test_damaged_and_wrong_annotations(voc: Path) -> None:
    file = voc / "Annotations" / "000001.xml"
    file.write_text("<annotation>")
    with pytest.raises(UserError, match=r"000001.xml is not valid XML"):
        read_voc(voc)
    file.write_text(XML.format(name="../../x", more=""))
    with pytest.raises(UserError, match=r"leading out"):
        read_voc(voc)
    file.write_text(XML.format(name="000001", more=HARD.replace("40", "wide")))
    with pytest.raises(UserError, match=r"without a valid box"):
        read_voc(voc)


def test_missing_images_and_lists_that_lead_out(voc: Path) -> None:
    (voc / "JPEGImages" / "000003.jpg").unlink()
    dataset, problems = scan_voc(voc)
    assert len(dataset.images) == 2
    assert problems.count("missing") == 1
    (voc / "ImageSets" / "Main" / "val.txt").write_text("../000002\n")
    with pytest.raises(UserError, match=r"leading out"):
        read_voc(voc)


def test_without_lists_everything_is_training(voc: Path) -> None:
    for file in (voc / "ImageSets" / "Main").iterdir():
        file.unlink()
    assert read_voc(voc).parts == ("train",) * 3
