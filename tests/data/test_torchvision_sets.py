import gzip
import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from keepsight.core import UserError
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that torchvision asks for; none answers."""
    asked: list[str] = []

    def refuse(request: Any, *rest: Any, **more: Any) -> None:
        asked.append(getattr(request, "full_url", str(request)))
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return asked


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(header + values.tobytes()))


def write_mnist(root: Path, name: str) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        write_idx(root / name / "raw" / f"{part}-images-idx3-ubyte", pixels[rows])
        write_idx(root / name / "raw" / f"{part}-labels-idx1-ubyte", np.arange(9, dtype=np.uint8)[rows])
    return pixels


@pytest.mark.parametrize(
    ("typed", "name"), [("torchvision:MNIST", "MNIST"), ("torchvision:fashion-mnist", "FashionMNIST")]
)
def test_mnist_in_its_published_format(tmp_path: Path, no_network: list[str], typed: str, name: str) -> None:
    pixels = write_mnist(tmp_path, name)
    data = load_dataset(typed, DataConfig(data_root=str(tmp_path)))
    assert data.parts == ("train",) * 6 + ("test",) * 3
    assert len(data.classes) == 10
    assert data.labels.tolist() == list(range(9))
    np.testing.assert_array_equal(np.asarray(data.images.load(7))[:, :, 1], pixels[7])
    assert no_network == []
    assert len({data.images.content_hash(i) for i in range(9)}) == 9


def test_the_cache_is_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path))
    write_mnist(tmp_path / "torchvision", "MNIST")
    assert len(load_dataset("torchvision:mnist").images) == 9


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for n, file in enumerate(("data_batch_1", "test_batch", "batches.meta")):
        content: dict[str, Any] = {"data": np.full((4, 3072), n, np.uint8), "labels": [0, 1, 2, 3]}
        if file == "batches.meta":
            content = {"label_names": [*"abcdefghij"]}
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    )
    return folder


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Both .mat files: X [32, 32, 3, N] and y [N, 1] from 1 to 10, where 10 is the digit 0."""
    splits, pixels = {}, {}
    for split, n in (("train", 12), ("test", 5)):
        pixels[split] = np.random.default_rng(n).integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": pixels[split], "y": (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None]})
        splits[split] = ["http://localhost/none", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    return pixels


def test_svhn_in_its_published_format_by_its_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    pixels = write_svhn(tmp_path, monkeypatch)
    data = load_dataset("svhn", DataConfig(data_root=str(tmp_path)))
    assert (data.name, data.classes) == ("svhn", tuple("0123456789"))
    assert data.parts == ("train",) * 12 + ("test",) * 5
    assert data.labels.tolist() == [*range(1, 10), 0, 1, 2, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.asarray(data.images.load(13)), pixels["test"][..., 1])
    assert no_network == []
    (tmp_path / "test_32x32.mat").write_bytes((tmp_path / "test_32x32.mat").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"SVHN is not whole in .*put .*train_32x32\.mat and test_32x32\.mat"):
        load_dataset("svhn", DataConfig(data_root=str(tmp_path)))


def test_short_names_are_torchvisions_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_mnist(tmp_path, "MNIST")
    write_cifar(tmp_path, monkeypatch)
    options = DataConfig(data_root=str(tmp_path))
    mnist = load_dataset("mnist", options)
    assert (mnist.name, len(mnist.images)) == ("mnist", 9)
    np.testing.assert_array_equal(np.asarray(mnist.images.load(2))[:, :, 0], pixels[2])
    for name in ("cifar10", "cifar-10"):
        cifar = load_dataset(name, options)
        assert (cifar.name, cifar.classes) == (name, tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("mnist", r"MNIST/raw/\{train,t10k\}"),
        ("mnist-yellow-stripes", r"MNIST/raw/\{train,t10k\}"),
        ("cifar10", r"cifar-10-python\.tar\.gz"),
        ("svhn", r"train_32x32\.mat"),
    ],
)
def test_absent_files_of_a_short_name(tmp_path: Path, name: str, files: str) -> None:
    with pytest.raises(UserError, match=rf"in {tmp_path} and cannot be fetched .*{files}.*data_root") as error:
        load_dataset(name, DataConfig(data_root=str(tmp_path)))
    assert "\n" not in str(error.value)


class Explosion:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle with another checksum was loaded",))


def test_cifar_is_only_unpickled_with_its_published_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(tmp_path, monkeypatch)
    data = load_dataset("torchvision:CIFAR10", DataConfig(data_root=str(tmp_path)))
    assert data.parts == ("train",) * 4 + ("test",) * 4
    assert data.classes == tuple("abcdefghij")
    assert data.images.load(6).getpixel((5, 5)) == (1, 1, 1)
    (folder / "test_batch").write_bytes(pickle.dumps(Explosion()))
    with pytest.raises(UserError, match=r"torchvision:CIFAR10 is not whole .*cannot be fetched"):
        load_dataset("torchvision:CIFAR10", DataConfig(data_root=str(tmp_path)))


def test_absent_files_are_fetched_aloud_and_offline_is_one_sentence(
    tmp_path: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="keepsight")
    with pytest.raises(UserError, match=r"torchvision:SVHN is not whole in .*no route to host.*network") as error:
        load_dataset("torchvision:SVHN", DataConfig(data_root=str(tmp_path / "new")))
    assert "\n" not in str(error.value)
    assert "fetching SVHN" in caplog.text
    assert len(no_network) == 1


@pytest.mark.parametrize(
    ("typed", "words"), [("CIFAR", "did you mean 'torchvision:CIFAR10"), ("xyz", "as an object"), ("", "as an object")]
)
def test_unknown_names(typed: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_dataset(f"torchvision:{typed}")


def test_objects(tmp_path: Path) -> None:
    for label, level in (("cat", 10), ("dog", 200)):
        (tmp_path / label).mkdir()
        Image.new("L", (2, 2), level).save(tmp_path / label / "1.png")
    folder = datasets.ImageFolder(str(tmp_path))
    data = load_dataset(folder)
    assert (data.classes, data.labels.tolist(), data.parts) == (("cat", "dog"), [0, 1], ("", ""))
    assert data.images.load(1).getpixel((0, 0)) == (200, 200, 200)
    fake = load_dataset(datasets.FakeData(size=12, image_size=(3, 8, 8), num_classes=3, random_offset=1))
    assert len(fake.images) == 12
    assert len(fake.classes) >= 2
    with pytest.raises(UserError, match="ImageFolder has transforms"):
        load_dataset(datasets.ImageFolder(str(tmp_path), transform=np.asarray))
    (tmp_path / "dog" / "1.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match="image 1 of ImageFolder"):
        data.images.load(1)
