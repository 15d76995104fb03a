import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.folder import read_folder


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if Path(name).suffix.lower() in (".txt", ".db", ""):
            (root / name).write_text("no image")
        else:
            with (root / name).open("wb") as file:
                Image.new("RGB", (2, 2), (len(name), 0, 0)).save(file, "PNG")


def contents(data: Dataset) -> dict[str, tuple[str | None, str]]:
    """Name -> (class or None, part)."""
    return {
        data.images.name(i): (data.classes[label] if label >= 0 else None, data.parts[i])
        for i, label in enumerate(data.labels)
    }


def test_classes_unlabelled_loose_and_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(
        tmp_path,
        "class10/a.png",
        "class9/deep/er/b.JPG",
        "class9/c.TIFF",
        "class9/.hidden.png",
        "class9/.cache/x.png",
        "class9/notes.txt",
        ".git/y.png",
        "unlabeled/d.webp",
        "unlabelled/sub/e.gif",
        "loose.bmp",
    )
    (tmp_path / "empty").mkdir()
    data = read_folder(tmp_path)
    assert data.classes == ("class9", "class10")
    assert contents(data) == {
        "class10/a.png": ("class10", ""),
        "class9/c.TIFF": ("class9", ""),
        "class9/deep/er/b.JPG": ("class9", ""),
        "loose.bmp": (None, ""),
        "unlabeled/d.webp": (None, ""),
        "unlabelled/sub/e.gif": (None, ""),
    }
    assert [data.images.name(i) for i in range(6)] == sorted(contents(data))
    assert data.labels.dtype == np.int64
    assert data.name == tmp_path.name
    assert all(data.images.load(i).size == (2, 2) for i in range(6))
    assert "1 x .txt" in caplog.text
    assert "empty holds no images" in caplog.text


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_the_users_own_split(tmp_path: Path, validation: str) -> None:
    put(
        tmp_path,
        "train/cat/1.png",
        "train/dog/2.png",
        "train/loose.png",
        "train/unlabelled/3.png",
        f"{validation}/cat/4.png",
        "TEST/dog/5.png",
        "unlabelled/6.png",
    )
    data = read_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    assert contents(data) == {
        "train/cat/1.png": ("cat", "train"),
        "train/dog/2.png": ("dog", "train"),
        "train/loose.png": (None, "train"),
        "train/unlabelled/3.png": (None, "train"),
        f"{validation}/cat/4.png": ("cat", "val"),
        "TEST/dog/5.png": ("dog", "test"),
        "unlabelled/6.png": (None, ""),
    }


def test_split_names_beside_other_folders_are_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "bus/2.png")
    assert read_folder(tmp_path).classes == ("bus", "train")


def test_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    put(root, "a/1.png", "b/2.png")
    put(outside, "c/3.png")
    (root / "a" / "inside.png").symlink_to(root / "b" / "2.png")
    (root / "a" / "out.png").symlink_to(outside / "c" / "3.png")
    (root / "a" / "broken.png").symlink_to(root / "nothing.png")
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "c").symlink_to(outside / "c")
    assert contents(read_folder(root)) == {
        "a/1.png": ("a", ""),
        "a/inside.png": ("a", ""),
        "b/2.png": ("b", ""),
    }
    assert "5 links" in caplog.text


def test_a_linked_root_is_read(tmp_path: Path) -> None:
    put(tmp_path / "real", "a/1.png", "b/2.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    data = read_folder(tmp_path / "link")
    assert (data.name, len(data.images)) == ("real", 2)


def test_the_order_does_not_depend_on_creation(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in "abc" for i in range(12)]
    put(tmp_path / "one", *names)
    put(tmp_path / "two", *reversed(names))
    one, two = read_folder(tmp_path / "one"), read_folder(tmp_path / "two")
    assert contents(one) == contents(two)
    assert [one.images.name(i) for i in range(36)] == [two.images.name(i) for i in range(36)] == sorted(names)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no images"),
        (["a/notes.txt"], "holds no images"),
        (["Cat/1.png", "cat/2.png"], "upper and lower case"),
        (["train/Cat/1.png", "test/cat/2.png"], "upper and lower case"),
        (["train/1.png", "test/2.png"], "one folder per class"),
        (["train/a/1.png", "test/a/2.png", "test/loose.png"], "test part"),
        (["train/a/1.png", "val/a/2.png", "val/unlabelled/3.png"], "val part"),
        (["train/a/1.png", "val/a/2.png", "valid/a/3.png"], "two folders for one part"),
        (["test/a/1.png", "val/b/2.png"], "no train folder"),
        (["train/a/1.png", "train/b/1.png", "test/notes.txt"], "test part"),
    ],
)
def test_bad_folders(tmp_path: Path, names: list[str], words: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(UserError, match=words) as error:
        read_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_links_alone_are_explained(tmp_path: Path) -> None:
    put(tmp_path / "outside", "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="1 links are not followed: name their targets in a CSV"):
        read_folder(tmp_path / "root")


def test_names_must_be_unicode(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    (Path(tmp_path) / "a" / "1.png").rename(os.fsdecode(bytes(tmp_path) + b"/a/\xff.png"))
    with pytest.raises(UserError, match="not valid UTF-8"):
        read_folder(tmp_path)
