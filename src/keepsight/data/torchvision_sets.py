"""torchvision's data sets, by name or as an object. Knows nothing of splitting.

torchvision checks the MD5 sums of what it fetches. CIFAR-10 and CIFAR-100 are published as Python pickles, which torchvision itself
unpickles after that check: nothing else of keepsight ever unpickles.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from keepsight.core import Dataset, ImageList, UserError
from keepsight.core.files import cache_directory
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.columns import dataset_of_columns
from keepsight.data.frame import label_list
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.pixels import PixelConfig, PixelError, to_rgb


@dataclass(frozen=True, slots=True)
class _Known:
    """How a class of torchvision is asked for each part, which attribute holds its labels, and which files it reads."""

    parts: tuple[tuple[dict[str, Any], Part], ...]
    labels: str = "targets"
    files: str = ""


def _by_split(*splits: tuple[str, Part]) -> tuple[tuple[dict[str, Any], Part], ...]:
    return tuple(({"split": split}, part) for split, part in splits)


_TRAIN: tuple[tuple[dict[str, Any], Part], ...] = (({"train": True}, "train"), ({"train": False}, "test"))
_TWO = _by_split(("train", "train"), ("test", "test"))
_THREE = _by_split(("train", "train"), ("val", "val"), ("test", "test"))
_IDX = "/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz"

KNOWN: dict[str, _Known] = {
    "MNIST": _Known(_TRAIN, files=f"MNIST{_IDX}"),
    "FashionMNIST": _Known(_TRAIN, files=f"FashionMNIST{_IDX}"),
    "KMNIST": _Known(_TRAIN, files=f"KMNIST{_IDX}"),
    "USPS": _Known(_TRAIN),
    "CIFAR10": _Known(_TRAIN, files="cifar-10-python.tar.gz"),
    "CIFAR100": _Known(_TRAIN, files="cifar-100-python.tar.gz"),
    "SVHN": _Known(_TWO, "labels", "train_32x32.mat and test_32x32.mat"),
    "STL10": _Known(_by_split(("train", "train"), ("test", "test"), ("unlabeled", "")), "labels"),
    "Food101": _Known(_TWO, "_labels"),
    "DTD": _Known(_THREE, "_labels"),
    "Flowers102": _Known(_THREE, "_labels"),
    "FGVCAircraft": _Known(_THREE, "_labels"),
    "OxfordIIITPet": _Known(_by_split(("trainval", "train"), ("test", "test")), "_labels"),
    "EuroSAT": _Known((({}, ""),)),
}
"""The data sets that have a name here; any other can be given as an object."""


def is_torchvision_object(source: Any) -> bool:
    """Whether it is one of torchvision's data sets; the package is not imported for the question."""
    module = sys.modules.get("torchvision.datasets")
    return module is not None and isinstance(source, module.VisionDataset)


def read_torchvision_name(name: str, options: DataConfig = DEFAULTS) -> Dataset:
    """One of `KNOWN`, in any case; fetched once into `options.data_root` (or keepsight's cache) if its files are not there.

    Raises:
        UserError: for another name, or if the files are not there and cannot be fetched.
    """
    by_lower = {known.lower(): known for known in KNOWN}
    wanted = by_lower.get(name.strip().lower().replace("-", ""))
    if wanted is None:
        close = difflib.get_close_matches(name.lower(), by_lower, n=1)
        advice = (
            f"did you mean 'torchvision:{by_lower[close[0]]}'?" if close else "give any other as an object from Python."
        )
        raise UserError(f"There is no data set 'torchvision:{name}' here ({', '.join(KNOWN)}): {advice}")
    root, known = files_root(options), KNOWN[wanted]
    loaded = [(_loaded(wanted, root, arguments), part) for arguments, part in known.parts]
    return _dataset(wanted, loaded, known.labels, options)


def files_root(options: DataConfig = DEFAULTS) -> Path:
    """The folder of published files: `options.data_root`, or `torchvision` in keepsight's cache."""
    return Path(options.data_root).expanduser() if options.data_root else cache_directory() / "torchvision"


def read_torchvision_object(source: Any, options: DataConfig = DEFAULTS) -> Dataset:
    """Any of torchvision's data sets of images with one class each; keepsight splits it.

    Raises:
        UserError: if it has transforms, or its items are not an image and a class.
    """
    if source.transforms is not None:
        raise UserError(
            f"The torchvision data set {type(source).__name__} has transforms: give it without them, keepsight has its own."
        )
    labels = next((a for a in ("targets", "labels", "_labels") if getattr(source, a, None) is not None), "")
    return _dataset(type(source).__name__, [(source, "")], labels, options)


def _loaded(name: str, root: Path, arguments: dict[str, Any]) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, name)
    try:
        try:
            return kind(root=str(root), download=False, **arguments)
        except (RuntimeError, FileNotFoundError):  # "not found or corrupted"
            log.info("fetching %s with torchvision into %s", name, root)
            root.mkdir(parents=True, exist_ok=True)
            return kind(root=str(root), download=True, **arguments)
    except Exception as error:  # the network's and the disk's errors are of many kinds
        reason = " ".join(str(error).split()).rstrip(".")[:200]
        files = f"its published files ({KNOWN[name].files})" if KNOWN[name].files else "torchvision's files"
        raise UserError(
            f"torchvision:{name} is not whole in {root} and cannot be fetched ({type(error).__name__}: {reason}): check the "
            f"network connection, or put {files} there, or name the folder that has them with data_root."
        ) from error


def _dataset(name: str, loaded: Sequence[tuple[Any, Part]], labels: str, options: DataConfig) -> Dataset:
    where = f"The torchvision data set {name}"
    label_values: list[Any] = []
    parts: list[Part] = []
    for source, part in loaded:
        found: Any = getattr(source, labels) if labels else [source[i][1] for i in range(len(source))]
        values = label_list(found.numpy() if type(found).__name__ == "Tensor" else found, where)
        values = [value.item() if type(value).__name__ == "Tensor" else value for value in values]
        label_values += values
        parts += [part] * len(values)
    images = _Images([source for source, _ in loaded], options.pixels)
    classes = getattr(loaded[0][0], "classes", None)
    # Some repeat a class name, or hold tuples of names (CUB, iNaturalist): then the numbers are the names.
    named = (
        classes
        if classes is not None and len(set(classes)) == len(classes) and all(isinstance(c, str) for c in classes)
        else None
    )
    return dataset_of_columns(name, images, label_values, parts, where, named)


class _Images(ImageList):
    """The items of several data sets, one after another."""

    def __init__(self, sources: Sequence[Any], pixels: PixelConfig) -> None:
        self._items = [(source, i) for source in sources for i in range(len(source))]
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._items)

    def load(self, index: int) -> Image.Image:
        """The image as upright RGB."""
        source, place = self._items[index]
        try:
            image = source[place][0]
        except Exception as error:  # a damaged file raises nearly anything
            raise UserError(
                f"The image {index} of {type(source).__name__} cannot be read ({error}): fetch it again."
            ) from error
        if not isinstance(image, Image.Image):
            raise UserError(
                f"The image {index} of {type(source).__name__} is a {type(image).__name__}, not a Pillow image."
            )
        try:
            return to_rgb(image, self._pixels)
        except PixelError as error:
            raise UserError(f"The image {index} of {type(source).__name__} cannot be read, because {error}.") from error

    def name(self, index: int) -> str:
        """The image's number."""
        return str(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the size and the RGB pixels, which the settings are part of already."""
        image = self.load(index)
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
