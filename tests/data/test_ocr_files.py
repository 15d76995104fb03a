from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from keepsight.core import UserError
from keepsight.data.ocr_files import IAM_TEST_SHARE, read_words


def picture(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def iiit5k(tmp_path: Path) -> Path:
    root = tmp_path / "IIIT5K"
    for part, words in (("train", ("You", "ROAD")), ("test", ("Salutes",))):
        fields = [("ImgName", object), ("GroundTruth", object), ("smallLexi", object)]
        structs = np.empty((1, len(words)), dtype=fields)
        for number, word in enumerate(words):
            picture(root / part / f"{number}_1.png", (number, 0, 0))
            structs[0, number] = (f"{part}/{number}_1.png", word, np.array(["a", "b"], dtype=object))
        scipy.io.savemat(root / f"{part}data.mat", {f"{part}data": structs})
    return root


def test_iiit5k(iiit5k: Path) -> None:
    for source in (iiit5k, iiit5k.parent):
        words = read_words(source)
        assert words.name == "iiit5k"
        assert words.texts == ("You", "ROAD", "Salutes")
        assert words.parts == ("train", "train", "test")
        assert words.images.name(2) == "test/0_1.png"
        assert words.images.load(1).getpixel((0, 0)) == (1, 0, 0)
    assert words.of("test").tolist() == [2]


def test_iiit5k_with_wrong_entries(iiit5k: Path) -> None:
    (iiit5k / "train" / "1_1.png").unlink()
    with pytest.raises(UserError, match=r"Entry 2 of .*traindata.mat names the image train/1_1.png, which is not"):
        read_words(iiit5k)
    structs = np.empty((1, 1), dtype=[("ImgName", object), ("GroundTruth", object)])
    structs[0, 0] = ("../outside.png", "word")
    picture(iiit5k.parent / "outside.png")
    scipy.io.savemat(iiit5k / "traindata.mat", {"traindata": structs})
    with pytest.raises(UserError, match=r"Entry 1 of .* names the file '../outside.png'"):
        read_words(iiit5k)
    (iiit5k / "traindata.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(UserError, match=r"traindata.mat cannot be read .*: expected MATLAB structs 'traindata'"):
        read_words(iiit5k)


SVT = """<?xml version="1.0" encoding="utf-8"?><tagset><image><imageName>{name}</imageName><address>A street</address>
<lex>LIVING,ROOM</lex><Resolution x="60" y="40"/><taggedRectangles>
<taggedRectangle height="10" width="{width}" x="5" y="8"><tag>LIVING</tag></taggedRectangle>
<taggedRectangle height="30" width="30" x="40" y="-5"><tag>ROOM</tag></taggedRectangle>
</taggedRectangles></image></tagset>"""


@pytest.fixture
def svt(tmp_path: Path) -> Path:
    root = tmp_path / "svt1"
    for part, name in (("train", "img/14_03.jpg"), ("test", "img/00_00.jpg")):
        picture(root / name, size=(60, 40))
        (root / f"{part}.xml").write_text(SVT.format(name=name, width=20))
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[8:18, 5:25] = 200
    Image.fromarray(pixels).save(root / "img" / "14_03.jpg", quality=95)
    return root


def test_svt_words_are_cut_out(svt: Path) -> None:
    words = read_words(svt.parent)
    assert words.texts == ("LIVING", "ROOM", "LIVING", "ROOM")
    assert words.parts == ("train", "train", "test", "test")
    living = np.asarray(words.images.load(0))
    assert living.shape == (10, 20, 3)
    assert living.mean() > 150
    assert words.images.load(1).size == (20, 25)  # what lies within the image
    hashes = {words.images.content_hash(index) for index in range(4)}
    assert len(hashes) == 4
    assert words.images.name(0) == "img/14_03.jpg#5,8,25,18"


def test_svt_with_wrong_entries(svt: Path) -> None:
    (svt / "train.xml").write_text(SVT.format(name="img/14_03.jpg", width="wide"))
    with pytest.raises(UserError, match=r"Rectangle 1 of img/14_03.jpg in .*train.xml has no valid x, y, width"):
        read_words(svt)
    (svt / "train.xml").write_text(SVT.format(name="../../etc/passwd", width=20))
    with pytest.raises(UserError, match=r"An image of .*train.xml names the file '../../etc/passwd'"):
        read_words(svt)
    (svt / "train.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]><tagset/>')
    with pytest.raises(UserError, match=r"train.xml declares a document type"):
        read_words(svt)
    (svt / "train.xml").write_text(SVT.format(name="img/14_03.jpg", width=20).replace('x="40"', 'x="400"'))
    with pytest.raises(UserError, match=r"rectangle lies outside"):
        read_words(svt).images.load(1)


@pytest.fixture
def icdar2015(tmp_path: Path) -> Path:
    root = tmp_path / "icdar"
    lists = {"training": 'word_1.png, "[06]"\r\nword_2.png, "\\"Kid\\\\dé"\r\n', "test": 'word_1.png, "Ms, 2"\r\n'}
    for part, text in lists.items():
        folder = root / f"ch4_{part}_word_images_gt"
        for number in range(text.count("\n")):
            picture(folder / f"word_{number + 1}.png", (number, len(part), 0))
        (folder / "gt.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        (folder / "coords.txt").write_text("word_1.png,0,0,10,0,10,10,0,10\n")
    return root


def test_icdar_2015(icdar2015: Path) -> None:
    words = read_words(icdar2015)
    assert sorted(zip(words.parts, words.texts, strict=True)) == [
        ("test", "Ms, 2"),
        ("train", '"Kid\\dé'),
        ("train", "[06]"),
    ]
    assert words.images.load(int(words.of("test")[0])).getpixel((0, 0)) == (0, 4, 0)


def test_icdar_with_the_test_list_beside_its_folder(icdar2015: Path) -> None:
    """As both years are published: images of the test part in a folder, their list outside; all are numbered from 1."""
    tests = icdar2015 / "ch4_test_word_images_gt"
    (tests / "gt.txt").rename(icdar2015 / "Challenge4_Test_Task3_GT.txt")
    words = read_words(icdar2015)
    assert words.images.name(int(words.of("test")[0])) == "ch4_test_word_images_gt/word_1.png"
    alone = read_words(icdar2015 / "ch4_training_word_images_gt")
    assert set(alone.parts) == {"train"}


def test_icdar_with_wrong_lines(icdar2015: Path) -> None:
    file = icdar2015 / "ch4_training_word_images_gt" / "gt.txt"
    file.write_text('word_1.png, "fine"\nword_2.png Tiredness\n')
    with pytest.raises(UserError, match=r"Line 2 of .*gt.txt is not understood: expected .* word_1.png, \"Tiredness\""):
        read_words(icdar2015)
    file.write_text('../ch4_test_word_images_gt/word_1.png, "fine"\n')
    with pytest.raises(UserError, match=r"Line 1 of .*gt.txt names the file .*without '..'"):
        read_words(icdar2015)
    file.write_text('word_1.png, ""\n')
    with pytest.raises(UserError, match=r"Line 1 of .*gt.txt has no word"):
        read_words(icdar2015)
    file.write_bytes(b'word_1.png, "\xff"\n')
    with pytest.raises(UserError, match=r"gt.txt is not UTF-8"):
        read_words(icdar2015)


IAM = """#--- words.txt ---#
# format: a01-000u-00-00 ok 154 1 408 768 27 51 AT A
a01-000u-00-00 ok 154 408 768 27 51 AT A
a01-000u-00-01 ok 154 507 766 213 48 NN MOVE
a01-000u-01-00 err 156 395 932 441 100 VBG stop
b02-035-00-00 ok 176 1 1 5 5 NPT Mr. Smith
"""


@pytest.fixture
def iam(tmp_path: Path) -> Path:
    for name in ("a01/a01-000u/a01-000u-00-00", "a01/a01-000u/a01-000u-00-01", "b02/b02-035/b02-035-00-00"):
        picture(tmp_path / "words" / f"{name}.png")
    (tmp_path / "words.txt").write_text(IAM)
    return tmp_path


def test_iam(iam: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = read_words(iam)
    assert words.texts == ("A", "MOVE", "Mr. Smith")  # without the one marked as wrong
    assert words.images.name(1) == "words/a01/a01-000u/a01-000u-00-01.png"
    (iam / "words" / "a01" / "a01-000u" / "a01-000u-00-01.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert read_words(iam).texts == ("A", "Mr. Smith")
    assert "1 images are missing or empty" in caplog.text


def test_iam_parts_keep_texts_whole(iam: Path) -> None:
    lines = [f"c{number:02d}-000{copy}-00-00 ok 1 1 1 1 1 AT word" for number in range(60) for copy in "uv"]
    for line in lines:
        mark = line.split()[0]
        picture(iam / "words" / mark[:3] / mark[:8] / f"{mark}.png", size=(4, 4))
    (iam / "words.txt").write_text("\n".join(lines))
    parts = read_words(iam).parts
    assert parts[::2] == parts[1::2]
    assert 60 / IAM_TEST_SHARE / 3 < parts[::2].count("test") < 60 / IAM_TEST_SHARE * 2


def test_iam_with_the_published_split(iam: Path) -> None:
    (iam / "trainset.txt").write_text("b02-035-00\n")
    (iam / "testset.txt").write_text("a01-000u-00\n")
    assert read_words(iam).parts == ("test", "test", "train")


@pytest.mark.parametrize("line", ["a01-000u-00-00 ok 154 408 768 27 51 AT", "a01 ok 154 408 768 27 51 AT A"])
def test_iam_with_wrong_lines(iam: Path, line: str) -> None:
    (iam / "words.txt").write_text(f"# note\n{line}\n")
    with pytest.raises(UserError, match=r"Line 2 of .*words.txt is not understood: expected nine fields"):
        read_words(iam)
    (iam / "words.txt").write_text("../../x-y-z-w ok 154 408 768 27 51 AT A\n")
    with pytest.raises(UserError, match=r"Line 1 of .*words.txt names the file"):
        read_words(iam)


def test_no_words_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no words in a format that is known"):
        read_words(tmp_path)
    (tmp_path / "words.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"lists no word"):
        read_words(tmp_path)
