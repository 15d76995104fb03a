"""The one entry to data: a name, a path or an object in, a checked `Dataset` out. Knows no format and nothing of splitting."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import UNLABELLED, Dataset, UserError
from keepsight.core.progress import log
from keepsight.data.array_files import read_hdf5, read_npz
from keepsight.data.files import EXTENSIONS
from keepsight.data.folder import read_folder
from keepsight.data.frame import dataset_from_arrays, dataset_from_frame
from keepsight.data.galaxy import is_galaxy_folder, read_galaxy_folder
from keepsight.data.hub import is_hub_object, is_saved_folder, read_hub_name, read_hub_object, read_saved_folder
from keepsight.data.idx import idx_pairs, read_idx_folder
from keepsight.data.labels import check_class_names
from keepsight.data.medfm import is_medfm_list, read_medfm_list
from keepsight.data.medical import PUBLISHED, published_reader
from keepsight.data.named import NAMES, read_named
from keepsight.data.options import DEFAULTS
from keepsight.data.options import DataConfig as DataConfig
from keepsight.data.parquet import parquet_files, read_parquet
from keepsight.data.pixels import PixelConfig as PixelConfig
from keepsight.data.shards import read_shards, shard_files
from keepsight.data.table import read_csv
from keepsight.data.torchvision_sets import is_torchvision_object, read_torchvision_name, read_torchvision_object

_FILES: dict[str, Callable[[Path, DataConfig], Dataset]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".npz": read_npz,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".tar": read_shards,
}


def load_dataset(source: Any, options: DataConfig | None = None, *, check: bool = True) -> Dataset:
    """Images with labels from wherever they are.

    Args:
        source: A text or path: a name (see `NAMES`), a folder of images, of Parquet files, of WebDataset shards, of IDX
            files, of GalaxyMNIST, APTOS 2019, ISIC 2018 or MedFM or saved by the package `datasets`, a .csv, .tsv, .parquet, .npz,
            .h5, .hdf5 or .tar file, a list of MedFM (.txt), a pattern of shards, `hf:ORG/NAME`, `torchvision:NAME`, or a folder
            after one of `medical.PUBLISHED`, such as `medfm-endo:FOLDER`. Or an object: (images, labels), a pandas data frame, a
            data set of the package `datasets` or of torchvision, or a `Dataset`. A text that is both a name and a folder here means
            the data of that name; './name' or a `Path` means the folder.
        options: Columns, keys and pixels; None finds the usual names.
        check: False lets images without any label do: for predicting, embedding and checking.

    Raises:
        UserError: if it is none of them, is damaged, or (unless check is off) cannot be learnt from (see `check_dataset`).
    """
    options = DEFAULTS if options is None else options
    if isinstance(source, str | Path):
        dataset, name = _read_text(source, options), str(source)
    else:
        dataset, name = _read_object(source, options), f"The data set of type {type(source).__name__}"
    if check:
        check_dataset(dataset, name)
    elif len(dataset.images) == 0:
        raise UserError(f"{name} holds no images.")
    return dataset


def _read_text(source: str | Path, options: DataConfig) -> Dataset:
    text = str(source)
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name; '~somebody' without a home
        raise UserError(
            f"There is no data at {text[:100]!r} ({str(error)[:60].rstrip('.')}): check the spelling."
        ) from error
    if isinstance(source, str):
        scheme, colon, rest = source.partition(":")
        if colon and scheme.lower() == "hf":
            return read_hub_name(rest, options)
        if colon and scheme.lower() == "torchvision":
            return read_torchvision_name(rest, options)
        if colon and scheme.lower() in PUBLISHED:
            return _read_published(scheme.lower(), Path(rest).expanduser(), options)
    if text in NAMES and (isinstance(source, str) or not path.exists()):
        if path.exists():
            log.warning("%s is taken as the data set of that name: write ./%s for the folder here.", source, source)
        return read_named(text, options)
    if path.is_dir():
        return _read_directory(path, options)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".txt" and is_medfm_list(path):
        return read_medfm_list(path, options)
    if path.is_file() and suffix in _FILES:
        return _FILES[suffix](path, options)
    if not path.exists() and suffix == ".tar" and "{" in text:
        return read_shards(text, options)
    if path.exists():
        raise UserError(
            f"{path} is a file of an unknown type: expected a folder of images, or a {', '.join(sorted(_FILES))} file."
        )
    raise UserError(_nothing_there(text, path))


def _read_published(name: str, folder: Path, options: DataConfig) -> Dataset:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the one that {name} was unpacked to, as {name}:FOLDER.")
    return PUBLISHED[name](folder, options)


def _read_directory(path: Path, options: DataConfig) -> Dataset:
    """A folder by what is in it; one with any image near its top is an image folder."""
    if is_saved_folder(path):
        return read_saved_folder(path, options)
    if not os.access(path, os.R_OK | os.X_OK):
        return read_folder(path, options.pixels)  # which says so
    if (reader := published_reader(path)) is not None:
        return reader(path, options)
    if _holds_images(path):
        return read_folder(path, options.pixels)
    if idx_pairs(path):
        return read_idx_folder(path, options)
    if is_galaxy_folder(path):
        return read_galaxy_folder(path, options)
    if parquet_files(path):
        return read_parquet(path, options)
    if shard_files(path):
        return read_shards(path, options)
    return read_folder(path, options.pixels)


def _holds_images(path: Path) -> bool:
    """Whether an image lies in the folder or at most two folders deeper."""
    for place, folders, files in os.walk(path):
        if any(Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".") for name in files):
            return True
        deepest = len(Path(place).parts) - len(path.parts) == 2
        folders[:] = [] if deepest else [folder for folder in folders if not folder.startswith(".")]
    return False


def _read_object(source: Any, options: DataConfig) -> Dataset:
    pandas = sys.modules.get("pandas")
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple) and len(source) == 2:
        return dataset_from_arrays(source[0], source[1], pixels=options.pixels)
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return dataset_from_frame(source, options)
    if is_hub_object(source):
        return read_hub_object(source, options)
    if is_torchvision_object(source):
        return read_torchvision_object(source, options)
    raise UserError(
        f"Data of type {type(source).__name__} cannot be read: give a path or a name, (images, labels), a pandas data frame, "
        f"or a data set of the package datasets or of torchvision."
    )


def check_dataset(dataset: Dataset, source: str) -> None:
    """Raises UserError unless there are images, named classes, and training labels of at least two classes."""
    if len(dataset.images) == 0:
        raise UserError(f"{source} holds no images: expected labelled images of at least two classes.")
    check_class_names(dataset.classes, source)
    in_training = np.array([part in ("", "train") for part in dataset.parts])
    learnt_from = in_training & (dataset.labels != UNLABELLED)
    labels = dataset.labels[learnt_from]
    if len(labels) == 0:
        where = " outside of its val and test parts" if (dataset.labels != UNLABELLED).any() else ""
        raise UserError(
            f"{source} has {len(dataset.images)} images but no labels{where}: put some images into one folder per "
            f"class, or fill the label column."
        )
    if dataset.targets is not None:
        if not (dataset.targets[learnt_from] == 1).any():
            raise UserError(
                f"{source} is multi-label data, but no training image has any of its classes: check the labels."
            )
        return
    if len(present := np.unique(labels)) < 2:
        raise UserError(
            f"{source} has training labels of one class only ({dataset.classes[present[0]]!r}): a classifier needs at "
            f"least two."
        )


def _nothing_there(source: str, path: Path) -> str:
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close_names = difflib.get_close_matches(source.lower(), NAMES, n=1)
    close_files = [str(path.parent / name) for name in difflib.get_close_matches(path.name, neighbours, n=1)]
    close = close_names or close_files
    advice = f"did you mean {close[0]!r}?" if close else "check the spelling."
    return f"There is no folder, CSV file or named data set {source!r} (names: {', '.join(NAMES)}): {advice}"
