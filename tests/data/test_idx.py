import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from keepsight.core import UserError
from keepsight.data.load import load_dataset


def write(path: Path, values: np.ndarray) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "names", [("train-images-idx3", "train-labels-idx1"), ("train-images.idx3", "train-labels.idx1")]
)
def test_pairs_are_train_then_test(tmp_path: Path, suffix: str, names: tuple[str, str]) -> None:
    for part, n in (("train", 6), ("t10k", 3)):
        images, labels = (f"{name.replace('train', part)}-ubyte{suffix}" for name in names)
        write(tmp_path / images, np.full((n, 4, 5), n, np.uint8))
        write(tmp_path / labels, np.arange(n, dtype=np.uint8) % 3)
    data = load_dataset(tmp_path)
    assert data.parts == ("train",) * 6 + ("test",) * 3
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert data.images.load(7).getpixel((0, 0)) == (3, 3, 3)
    assert data.images.load(0).size == (5, 4)


def test_bad_pairs(tmp_path: Path) -> None:
    images, labels = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    write(images, np.zeros((4, 2, 2), np.uint8))
    with pytest.raises(UserError, match="no labels beside it"):
        load_dataset(tmp_path)
    write(labels, np.arange(3, dtype=np.uint8))
    with pytest.raises(UserError, match=r"\[4, 2, 2\] but its labels \[3\]"):
        load_dataset(tmp_path)
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole one"):
        load_dataset(tmp_path)
    labels.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as an IDX file"):
        load_dataset(tmp_path)


def test_a_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    content = struct.pack(">HBBI", 0, 8, 1, 5) + bytes(20_000_000)
    (tmp_path / "labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    write(tmp_path / "images-idx3-ubyte", np.zeros((5, 2, 2), np.uint8))
    tracemalloc.start()
    with pytest.raises(UserError, match="not a whole one"):
        load_dataset(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
