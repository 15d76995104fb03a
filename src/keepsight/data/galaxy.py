"""GalaxyMNIST as it is published: galaxies by shape, as two HDF5 files. Knows nothing of splitting, and fetches nothing.

train_dataset.hdf5 (8,000 galaxies) and test_dataset.hdf5 (2,000): images [N, H, W, 3] uint8, labels [N]
They lie in GalaxyMNIST/raw/ (64 px) or GalaxyMNISTHighrez/raw/ (224 px), as github.com/mwalmsley/galaxy_mnist leaves them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image

from keepsight.core import UNLABELLED, Dataset, ImageList, UserError
from keepsight.core.images import Part
from keepsight.data.array_files import read_hdf5
from keepsight.data.columns import dataset_of_columns
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.torchvision_sets import files_root

GALAXY_CLASSES = ("smooth_round", "smooth_cigar", "edge_on_disk", "unbarred_spiral")
"""The published names, in the order of the labels 0 to 3."""

GALAXY_FOLDERS = {"galaxymnist": "GalaxyMNIST", "galaxymnist-highrez": "GalaxyMNISTHighrez"}
"""The folder of each set below the root."""

_FILES: dict[Part, str] = {"train": "train_dataset.hdf5", "test": "test_dataset.hdf5"}


def read_galaxy(name: str, options: DataConfig = DEFAULTS) -> Dataset:
    """One of `GALAXY_FOLDERS`, from `options.data_root` (or keepsight's cache), or from that folder itself.

    Raises:
        UserError: if its files are not there, and as `read_galaxy_folder`.
    """
    root = files_root(options)
    usual = root / GALAXY_FOLDERS[name] / "raw"
    found = next((folder for folder in (usual, root) if is_galaxy_folder(folder)), None)
    if found is None:
        raise UserError(
            f"{name} is not in {usual}: put {' and '.join(_FILES.values())} of github.com/mwalmsley/galaxy_mnist there, unpacked, "
            f"or name the folder that has them with data_root."
        )
    return read_galaxy_folder(found, options, name)


def is_galaxy_folder(folder: Path) -> bool:
    """Whether both published files are there."""
    return all((folder / file).is_file() for file in _FILES.values())


def read_galaxy_folder(folder: Path, options: DataConfig = DEFAULTS, name: str = "galaxymnist") -> Dataset:
    """The two files in the folder as one data set, train before test.

    Raises:
        UserError: if h5py is missing, a file is damaged, has other arrays or other labels, or does not fit into memory.
    """
    keys = DataConfig(image_column="images", label_column="labels", pixels=options.pixels)
    sources: list[ImageList] = []
    labels: list[int] = []
    parts: list[Part] = []
    for part, file in _FILES.items():
        read = read_hdf5(folder / file, keys)
        # The reader numbers the classes that occur; their names are the numbers in the file.
        labels += [_label(read.classes[n], folder / file) if n != UNLABELLED else UNLABELLED for n in read.labels]
        sources.append(read.images)
        parts += [part] * len(read.images)
    return dataset_of_columns(name, _Joined(sources), labels, parts, str(folder), GALAXY_CLASSES)


def _label(text: str, path: Path) -> int:
    if text not in ("0", "1", "2", "3"):
        raise UserError(
            f"{path} has the label {text!r}: the numbers 0 to 3 ({', '.join(GALAXY_CLASSES)}) were expected."
        )
    return int(text)


class _Joined(ImageList):
    """Several lists, one after another; each image is called by its number in the whole."""

    def __init__(self, lists: Sequence[ImageList]) -> None:
        self._lists = lists
        self._ends = list(accumulate(len(images) for images in lists))

    def __len__(self) -> int:
        return self._ends[-1]

    def load(self, index: int) -> Image.Image:
        """The image as RGB."""
        images, place = self._place(index)
        return images.load(place)

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """See `ImageList.content_hash`."""
        images, place = self._place(index)
        return images.content_hash(place)

    def _place(self, index: int) -> tuple[ImageList, int]:
        which = bisect_right(self._ends, index)
        return self._lists[which], index - (self._ends[which - 1] if which else 0)
