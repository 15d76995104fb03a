import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from keepsight.core import UserError
from keepsight.data.galaxy import GALAXY_CLASSES
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig


def write_galaxies(folder: Path, side: int = 64, train: int = 8, test: int = 3) -> np.ndarray:
    """Both files as published: images [N, H, W, 3] and labels [N], uint8, without attributes; labels run backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(side).integers(0, 256, (train + test, side, side, 3), dtype=np.uint8)
    labels = (np.arange(train + test) % 4)[::-1].astype(np.uint8)
    for part, rows in (("train", slice(0, train)), ("test", slice(train, None))):
        with h5py.File(folder / f"{part}_dataset.hdf5", "w") as file:
            file.create_dataset("images", data=pixels[rows])
            file.create_dataset("labels", data=labels[rows])
    return pixels


def root(path: Path) -> DataConfig:
    return DataConfig(data_root=str(path))


@pytest.mark.parametrize(
    ("name", "folder", "side"),
    [
        ("galaxymnist", "GalaxyMNIST/raw", 64),
        ("galaxymnist-highrez", "GalaxyMNISTHighrez/raw", 224),
        ("galaxymnist", ".", 64),
    ],
)
def test_the_published_format(tmp_path: Path, name: str, folder: str, side: int) -> None:
    pixels = write_galaxies(tmp_path / folder, side)
    data = load_dataset(name, root(tmp_path))
    assert (data.name, data.classes) == (name, GALAXY_CLASSES)
    assert data.parts == ("train",) * 8 + ("test",) * 3
    assert data.labels.tolist() == [2, 1, 0, 3, 2, 1, 0, 3, 2, 1, 0]
    for index in (0, 7, 8, 10):
        np.testing.assert_array_equal(np.asarray(data.images.load(index)), pixels[index])
        assert data.images.name(index) == str(index)
    assert len({data.images.content_hash(i) for i in range(11)}) == len(data.images) == 11


def test_the_cache_is_the_default_place_and_a_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path))
    folder = tmp_path / "torchvision" / "GalaxyMNIST" / "raw"
    write_galaxies(folder)
    by_name, by_path = load_dataset("galaxymnist"), load_dataset(folder)
    assert by_path.classes == GALAXY_CLASSES
    assert [by_path.images.content_hash(i) for i in range(11)] == [by_name.images.content_hash(i) for i in range(11)]


def test_a_class_that_does_not_occur_keeps_its_place(tmp_path: Path) -> None:
    write_galaxies(tmp_path, side=4)
    with h5py.File(tmp_path / "train_dataset.hdf5", "a") as file:
        file["labels"][:] = np.array([3, 1, 3, 1, 3, 1, 3, 1], np.uint8)
    data = load_dataset("galaxymnist", root(tmp_path))
    assert data.labels.tolist() == [3, 1, 3, 1, 3, 1, 3, 1, 2, 1, 0]


def test_absent_files_say_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"galaxymnist-highrez is not in .*Highrez/raw: put train_dataset\.hdf5 and"
    ) as error:
        load_dataset("galaxymnist-highrez", root(tmp_path))
    assert "\n" not in str(error.value)
    write_galaxies(tmp_path)
    (tmp_path / "test_dataset.hdf5").unlink()
    with pytest.raises(UserError, match=r"galaxymnist is not in .*GalaxyMNIST/raw"):
        load_dataset("galaxymnist", root(tmp_path))


def test_damage_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_galaxies(tmp_path)
    path = tmp_path / "train_dataset.hdf5"
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train_dataset\.hdf5 is no HDF5 file, or a truncated") as error:
            load_dataset("galaxymnist", root(tmp_path))
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["labels"][0] = 4
    with pytest.raises(UserError, match=r"train_dataset\.hdf5 has the label '4'"):
        load_dataset("galaxymnist", root(tmp_path))
    with h5py.File(path, "a") as file:
        del file["labels"]
    with pytest.raises(UserError, match=r"train_dataset\.hdf5 has no array 'labels'"):
        load_dataset("galaxymnist", root(tmp_path))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"keepsight\[hdf5\]"):
        load_dataset("galaxymnist", root(tmp_path))
