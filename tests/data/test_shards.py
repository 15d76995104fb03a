import io
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.shards import expand


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 3), level).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def levels(data: Dataset) -> list[int]:
    """In the opposite order, since nothing is read one after another."""
    return [data.images.load(i).getpixel((0, 0))[0] for i in reversed(range(len(data.images)))][::-1]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_webdataset_writes(tmp_path: Path) -> None:
    for shard, numbers in (("train-000000", range(4)), ("train-000001", range(4, 6)), ("test-000000", range(6, 8))):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as sink:
            for n in numbers:
                sink.write({"__key__": f"sample{n:06d}", "png": Image.new("L", (3, 3), n), "cls": n % 2})
    data = load_dataset(tmp_path)
    assert data.parts == ("test",) * 2 + ("train",) * 6
    assert levels(data) == [6, 7, 0, 1, 2, 3, 4, 5]
    assert data.labels.tolist() == [0, 1] * 4
    assert data.images.name(2) == "train-000000.tar/sample000000.png"
    by_pattern = load_dataset(str(tmp_path / "train-{000000..000001}.tar"))
    assert levels(by_pattern) == [0, 1, 2, 3, 4, 5]
    assert load_dataset(tmp_path / "train-000001.tar").name == "train-000001"


def test_texts_json_folders_and_unlabelled(tmp_path: Path) -> None:
    members = [
        ("cats/1.png", png(1)),
        ("cats/1.txt", b"cat\n"),
        ("2.json", json.dumps({"label": "dog", "kind": 7}).encode()),
        ("2.png", png(2)),
        ("./3.PNG", png(3)),
        ("4.seg.png", png(4)),
        ("4.json", b"{}"),
        ("5.json", b"{}"),
        (".hidden.png", png(9)),
        ("README", b"text"),
        ("long" * 40 + ".png", png(6)),
        ("long" * 40 + ".cls", "Ünïcode 'x'".encode()),
    ]
    path = write(tmp_path / "a.tar", members)
    data = load_dataset(path)
    assert levels(data) == [1, 2, 3, 4, 6]
    assert [data.classes[n] if n >= 0 else None for n in data.labels] == ["cat", "dog", None, None, "Ünïcode 'x'"]
    assert data.images.name(3) == "a.tar/4.seg.png"
    chosen = load_dataset(path, DataConfig(image_column=".seg.png", label_column="kind"), check=False)
    assert (levels(chosen), chosen.labels.tolist()) == ([4], [-1])
    kinds = load_dataset(path, DataConfig(label_column="kind"), check=False)
    assert kinds.classes == ("7",)


@pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "a/../../1.png", "..\\1.png"])
def test_names_never_lead_out(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.tar", [(name, png(1)), ("2.png", png(2))])
    with pytest.raises(UserError, match="leads out of the archive"):
        load_dataset(path)


def test_links_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0"), ("2.png", png(2)), ("2.cls", b"1")])
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert levels(load_dataset(path)) == [1, 2]
    assert "1 links" in caplog.text


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    members = [(f"{n}.{kind}", content) for n in range(3) for kind, content in (("png", png(n)), ("cls", b"%d" % n))]
    path = write(tmp_path / "a.tar", members)
    whole = path.read_bytes()
    assert len(load_dataset(path).images) == 3
    content = 6 * 1024  # header and padded content of each member; the rest are zeros
    for length in (*range(0, content, 256), content):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.tar"):
            load_dataset(path)
    path.write_bytes(whole[:2048] + b"\x01" * 512 + whole[2560:])  # a damaged header in the middle
    with pytest.raises(UserError, match="truncated or damaged after byte 2,048"):
        load_dataset(path)


def test_bad_shards(tmp_path: Path) -> None:
    cases = [
        ([("1.cls", b"0")], "holds no images"),
        ([], "holds no images"),
        ([("1.png", png(1)), ("1.png", png(2))], "two members '1.png'"),
        ([("1.png", png(1)), ("1.json", b"{")], "1.json is not readable JSON"),
        ([("1.png", png(1)), ("1.json", b"[" * 100_000)], "1.json is not readable JSON"),
        ([("1.png", png(1)), ("1.json", b'{"label": [1]}')], "1.json holds list"),
        ([("1.png", png(1)), ("1.cls", b"\xff\xfe")], "not UTF-8"),
        ([("1.png", png(1)), ("1.txt", b"x" * (2**20 + 1))], "short text"),
        ([("1.png", png(1)), ("1.cls", b"0")], "one class only"),
    ]
    for members, words in cases:
        path = write(tmp_path / "a.tar", members)
        with pytest.raises(UserError, match=words) as error:
            load_dataset(path)
        assert "\n" not in str(error.value)
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(UserError, match="no uncompressed"):
        load_dataset(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"a-1\.tar does not exist"):
        load_dataset(str(tmp_path / "a-{1..3}.tar"))
    path = write(tmp_path / "a.tar", [("1.png", b"no image"), ("1.cls", b"0"), ("2.png", png(2)), ("2.cls", b"1")])
    data = load_dataset(path)
    with pytest.raises(UserError, match=r"a\.tar/1\.png .*none of"):
        data.images.load(0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="changed while it was used"):
        data.images.load(1)


def test_patterns() -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("{8..10}") == ["8", "9", "10"]
    assert expand("a{x}b") == ["a{x}b"]
    for bad in ("{000000..999999}", "{5..2}", "{0..999}{0..999}"):
        with pytest.raises(UserError, match="pattern"):
            expand(bad)
