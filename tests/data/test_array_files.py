from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from keepsight.core import UserError
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.pixels import PixelConfig

RNG = np.random.default_rng(0)


def images(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *(shape or (4, 5))), dtype=np.uint8)


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"x": 4, "y": 4}, ("",) * 4),
        ({"Images": 4, "labels": 4, "ra": 4}, ("",) * 4),
        ({"x_train": 3, "y_train": 3, "x_test": 2, "y_test": 2}, ("train",) * 3 + ("test",) * 2),
        (
            {
                "train_images": 3,
                "train_labels": 3,
                "val_images": 2,
                "val_labels": 2,
                "test_images": 1,
                "test_labels": 1,
            },
            ("train",) * 3 + ("val",) * 2 + ("test",),
        ),
    ],
)
def test_usual_keys(tmp_path: Path, suffix: str, keys: dict[str, int], parts: tuple[str, ...]) -> None:
    arrays = {}
    for key, n in keys.items():
        label = key.lower() in ("y", "labels") or "labels" in key or key.startswith("y_")
        arrays[key] = np.arange(n)[:, None] % 2 if label else images(n, 4, 5, 3)
    data = load_dataset(save(tmp_path / f"a{suffix}", arrays))
    assert data.parts == parts
    first = next(key for key in keys)
    np.testing.assert_array_equal(np.asarray(data.images.load(2)), arrays[first][2])
    assert data.labels[:3].tolist() == [0, 1, 0]


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_named_keys_channels_and_text_labels(tmp_path: Path, suffix: str) -> None:
    cubes = RNG.normal(size=(4, 6, 3, 3)).astype(np.float32)
    kinds = (
        np.array([b"spiral", b"ring", b"ring", b"spiral"])
        if suffix == ".h5"
        else np.array(["spiral", "ring", "ring", "spiral"])
    )
    path = save(tmp_path / f"a{suffix}", {"cubes": cubes, "kind": kinds, "x": images(4)})
    pixels = PixelConfig(channels=(5, 0, 1), channels_first=True, value_range="percentile")
    data = load_dataset(path, DataConfig(image_column="cubes", label_column="kind", pixels=pixels))
    assert data.classes == ("ring", "spiral")
    assert data.labels.tolist() == [1, 0, 0, 1]
    assert data.images.load(0).size == (3, 3)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros(3)}, "no arrays of images and labels"),
        ({"x": np.zeros((3, 2, 2), np.uint8)}, "'x' but no labels"),
        ({"x_train": images(3), "y_train": np.arange(3), "x_test": images(2)}, "'x_test' but no labels"),
        ({"x": images(3), "y": np.arange(2)}, "one label an image"),
        ({"x": images(3), "y": np.zeros((3, 4))}, r"shape \[3, 4\]"),
        ({"x": images(3), "y": np.array([0.0, 1.0, np.nan])}, "floating-point"),
        ({"x": images(3).astype(float), "y": np.arange(3)}, "float64"),
        ({"x": images(3, 2, 2, 7), "y": np.arange(3)}, "7 channels"),
        (
            {"x_train": images(3), "y_train": np.arange(3), "x_test": images(1, 9, 9), "y_test": np.arange(1)},
            "different sizes",
        ),
    ],
)
def test_bad_arrays(tmp_path: Path, suffix: str, arrays: dict[str, np.ndarray], words: str) -> None:
    path = save(tmp_path / f"a{suffix}", arrays)
    with pytest.raises(UserError, match=words) as error:
        load_dataset(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_damaged_files_and_wrong_keys(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", {"x": images(30, 30, 30), "y": np.arange(30) % 2})
    with pytest.raises(UserError, match="no array 'pictures': its arrays are 'x', 'y'"):
        load_dataset(path, DataConfig(image_column="pictures"))
    whole = path.read_bytes()
    for damage in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"truncated or damaged one"):
            load_dataset(path)


def test_flipped_bytes_in_an_npz(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"x": images(30, 30, 30), "y": np.arange(30) % 2})
    whole = bytearray(path.read_bytes())
    whole[5000:5100] = bytes(100)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.npz .*damaged"):
        load_dataset(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2))
    with pytest.raises(UserError, match="never unpickled"):
        load_dataset(tmp_path / "a.npz")


def test_more_than_the_memory_is_refused_before_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", {"x": np.zeros((8, 500, 500), np.uint8), "y": np.arange(8) % 2})
    assert path.stat().st_size < 20_000
    little = type("Memory", (), {"available": 1_000_000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(UserError, match="GiB of memory"):
        load_dataset(path)


def test_hdf5_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.h5", {"x": images(2), "y": np.arange(2)})
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'keepsight\[hdf5\]'"):
        load_dataset(path)


def test_hdf5_never_leads_to_other_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(32)))
    other = save(tmp_path / "other.h5", {"x": images(2), "y": np.arange(2)})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["y"] = np.arange(2)
        file["images"] = h5py.ExternalLink(str(other), "x")
        file.create_dataset("x", (2, 4, 4), np.uint8, external=[(str(secret), 0, 32)])
        layout = h5py.VirtualLayout((2, 4, 5), np.uint8)
        layout[:] = h5py.VirtualSource(str(other), "x", (2, 4, 5))
        file.create_virtual_dataset("data", layout)
    with pytest.raises(UserError, match=r"'y' but no images .* its arrays are 'y', name"):
        load_dataset(tmp_path / "a.h5")


def test_labels_that_are_not_utf_8(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", {"x": images(2), "y": np.array([b"\xff", b"a"])})
    with pytest.raises(UserError, match="not UTF-8"):
        load_dataset(path)
