import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from keepsight.core import UserError
from keepsight.data import demo, idx
from keepsight.data.load import load_dataset
from keepsight.data.named import read_named
from keepsight.data.options import DataConfig
from keepsight.data.pixels import PixelConfig


@pytest.fixture
def mnist(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A small stand-in for the packaged digits: [20, 28, 28]."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    monkeypatch.setattr("keepsight.assets.load_mnist_5k", lambda: (pixels, np.arange(20) // 2))
    return pixels


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 2)).save(path)


@pytest.mark.parametrize("name", ["demo", "mnist-5k"])
def test_mnist(mnist: np.ndarray, name: str) -> None:
    data = load_dataset(name)
    assert data.name == "mnist-5k"
    assert data.classes == tuple("0123456789")
    np.testing.assert_array_equal(data.labels, np.arange(20) // 2)
    np.testing.assert_array_equal(np.asarray(data.images.load(7))[:, :, 0], mnist[7])
    assert set(data.parts) == {""}


def test_digits() -> None:
    data = load_dataset("digits")
    assert (len(data.images), data.images.load(0).size) == (1797, (8, 8))
    source = load_digits()
    np.testing.assert_array_equal(data.labels, source.target)
    np.testing.assert_allclose(np.asarray(data.images.load(5))[:, :, 0] / 255, source.images[5] / 16, atol=0.002)


def write_idx(path: Path, values: np.ndarray, kind: int = 8, cut: int = 0) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape)
    content = header + values.tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))


def write_fashion(folder: Path) -> None:
    for file, n in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{file}-images-idx3-ubyte.gz", np.full((n, 28, 28), n, np.uint8))
        write_idx(folder / f"{file}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8) % 10)


def test_fashion_in_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_FASHION_DIRECTORY", tmp_path)
    write_fashion(tmp_path)
    data = load_dataset("fashion-mnist")
    assert data.parts == ("train",) * 20 + ("test",) * 10
    assert data.images.load(25).getpixel((3, 3)) == (10, 10, 10)
    np.testing.assert_array_equal(data.labels, np.arange(30) % 10)


def test_fashion_whole() -> None:
    if not demo._FASHION_DIRECTORY.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    data = load_dataset("fashion-mnist")
    assert data.parts == ("train",) * 60_000 + ("test",) * 10_000
    np.testing.assert_array_equal(np.bincount(data.labels[:60_000]), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(data.labels[60_000:]), [1000] * 10)
    assert [data.classes[label] for label in data.labels[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]


def test_fashion_missing_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_FASHION_DIRECTORY", tmp_path / "no")
    with pytest.raises(UserError, match="apt install dataset-fashion-mnist"):
        load_dataset("fashion-mnist")


def test_bad_idx_files(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with pytest.raises(UserError, match=r"a\.gz"):
        idx.read_idx(path)
    values = np.zeros((2, 3), np.uint8)
    write_idx(path, values)
    assert idx.read_idx(path).shape == (2, 3)
    whole = path.read_bytes()
    for damage in (b"", b"no gzip", whole[:-9], gzip.compress(b"\0\0"), gzip.compress(b"\0\0\x08\x02\0\0")):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"a\.gz"):
            idx.read_idx(path)
    write_idx(path, values, cut=1)
    with pytest.raises(UserError, match="not a whole one"):
        idx.read_idx(path)
    write_idx(path, values, kind=13)
    with pytest.raises(UserError, match="IDX file of bytes"):
        idx.read_idx(path)


def test_a_folder_and_a_table_are_the_same_data(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "b/3.png"]
    for name in names:
        image(tmp_path / "pictures" / name)
    table = tmp_path / "pictures" / "labels.tsv"
    table.write_text("path\tlabel\n" + "".join(f"{name}\t{name[0]}\n" for name in names))
    of_table, of_folder = load_dataset(str(table)), load_dataset(tmp_path / "pictures")
    np.testing.assert_array_equal(of_table.labels, of_folder.labels)
    assert of_table.classes == of_folder.classes
    assert [of_table.images.content_hash(i) for i in range(3)] == [of_folder.images.content_hash(i) for i in range(3)]


def test_a_folder_called_like_embedded_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    image(tmp_path / "demo" / "cat" / "1.png")
    image(tmp_path / "demo" / "dog" / "2.png")
    assert load_dataset("demo").name == "mnist-5k"
    assert "./demo" in caplog.text
    assert load_dataset("./demo").classes == ("cat", "dog")
    assert load_dataset(Path("demo")).classes == ("cat", "dog")
    monkeypatch.chdir("/")
    assert load_dataset(Path("demo")).name == "mnist-5k"


def make_bad(kind: str, root: Path) -> str:
    """Bad data of one kind below root; returns what the user would type."""
    root.mkdir()
    if kind == "unknown file":
        image(root / "picture.png")
        return str(root / "picture.png")
    if kind == "absent table":
        return str(root / "no.csv")
    if kind == "near miss":
        image(root / "pictures" / "a.png")
        return str(root / "picture")
    if kind == "no labels":
        image(root / "unlabelled" / "1.png")
        image(root / "2.png")
    elif kind == "no labels in table":
        image(root / "1.png")
        (root / "t.csv").write_text("path,label\n1.png,\n")
        return str(root / "t.csv")
    elif kind == "labels in test only":
        for name in ("1.png", "2.png"):
            image(root / name)
        (root / "t.csv").write_text("path,label,split\n1.png,x,test\n2.png,,train\n")
        return str(root / "t.csv")
    elif kind == "one class":
        image(root / "cat" / "1.png")
        image(root / "unlabelled" / "2.png")
    elif kind == "second class in test only":
        image(root / "train" / "cat" / "1.png")
        image(root / "test" / "dog" / "1.png")
    elif kind == "blank class":
        image(root / " " / "1.png")
        image(root / "cat" / "1.png")
    return str(root)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unknown file", "unknown type"),
        ("absent table", "no folder, CSV file or named data set"),
        ("near miss", "did you mean '.*pictures'"),
        ("empty folder", "holds no images"),
        ("no labels", "no labels"),
        ("no labels in table", "no labels"),
        ("labels in test only", "no labels outside"),
        ("one class", "one class only .*cat"),
        ("second class in test only", "one class only .*cat"),
        ("blank class", "empty name"),
    ],
)
def test_bad_sources(tmp_path: Path, kind: str, words: str) -> None:
    source = make_bad(kind, tmp_path / "data")
    with pytest.raises(UserError, match=words) as error:
        load_dataset(source)
    message = str(error.value)
    assert str(source) in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mnist5k", "mnist-5k"),
        ("fashion_mnist", "fashion-mnist"),
        ("digit", "digits"),
        ("SVHN", "svhn"),
        ("CIFAR-10", "cifar-10"),
    ],
)
def test_misspelt_names(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{meant}'"):
        load_dataset(typed)
    with pytest.raises(
        UserError,
        match="names: demo, mnist-5k, digits, fashion-mnist, stamps, mnist, svhn, cifar10, cifar-10, galaxymnist",
    ):
        load_dataset("/somewhere/else/entirely")
    with pytest.raises(UserError, match="embedded data sets are"):
        demo.read_embedded(typed)
    with pytest.raises(UserError, match="the names are demo"):
        read_named(typed)


def test_a_folder_is_read_by_what_is_in_it(tmp_path: Path) -> None:
    table = pa.table({"bytes": [b"x", b"y"], "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "data.parquet")
    assert load_dataset(tmp_path).images.name(0) == "data.parquet#1"
    for label in ("cat", "dog"):
        image(tmp_path / label / "1.png")
    assert load_dataset(tmp_path).images.name(0) == "cat/1.png"
    assert load_dataset(tmp_path / "data.parquet").classes == ("a", "b")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    pq.write_table(table, hidden / ".data.parquet")
    with pytest.raises(UserError, match="holds no images"):
        load_dataset(hidden)


def test_without_the_check_labels_may_be_missing(tmp_path: Path) -> None:
    image(tmp_path / "1.png")
    assert load_dataset(tmp_path, check=False).labels.tolist() == [-1]
    with pytest.raises(UserError, match="no labels"):
        load_dataset(tmp_path)


def test_options_reach_a_table(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        Image.new("L", (2, 2), 50).save(tmp_path / name)
    table = tmp_path / "t.csv"
    table.write_text("Scan,path,kind,fold\n1.png,,x,train\n2.png,,y,test\n")
    pixels = PixelConfig(value_range=(0, 100))
    options = DataConfig(image_column="scan", label_column="Kind", split_column="fold", pixels=pixels)
    data = load_dataset(table, options, check=False)
    assert (data.classes, data.parts) == (("x", "y"), ("train", "test"))
    assert data.images.load(0).getpixel((0, 0)) == (128, 128, 128)
    with pytest.raises(UserError, match="no column 'size': its columns are scan, path, kind, fold"):
        load_dataset(table, DataConfig(image_column="size"))


def test_a_data_set_is_taken_as_it_is(mnist: np.ndarray) -> None:
    data = load_dataset("demo")
    assert load_dataset(data) is data


def test_optional_packages_are_imported_only_where_needed() -> None:
    packages = "{'datasets', 'astropy', 'pydicom', 'h5py'}"
    code = f"import sys, keepsight.data.load; print(*({packages} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
