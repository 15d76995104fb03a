"""Many images and labels as arrays in one file: .npz (NumPy) and .h5, .hdf5 (HDF5). Knows nothing of splitting.

Keys in any case: images are `x`, `images`, `image`, `data`, `pixels` or `arr_0`; labels are `y`, `labels`, `label`,
`targets`, `target`, `classes`, `ans` or `arr_1`. A part before or after it makes that part: `x_train`, `y_train`, `x_test`, or
`train_images`, `val_labels` (MedMNIST). Options name other keys, for files without parts.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages
from keepsight.data.columns import dataset_of_columns, part_of_name
from keepsight.data.frame import label_list
from keepsight.data.options import DEFAULTS, DataConfig

_IMAGES = ("x", "images", "image", "data", "pixels", "arr_0")
_LABELS = ("y", "labels", "label", "targets", "target", "classes", "ans", "arr_1")

Read = Callable[[str], NDArray[Any]]
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]


def read_npz(path: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """An .npz file as a data set; objects are never unpickled.

    Raises:
        UserError: if it is damaged, needs more memory than there is, or its arrays are not as the module says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for member in archive.namelist():
                if member.endswith(".npy"):
                    with archive.open(member) as file:
                        version = np.lib.format.read_magic(file)
                        header = (
                            np.lib.format.read_array_header_1_0
                            if version == (1, 0)
                            else np.lib.format.read_array_header_2_0
                        )
                        shape, _, dtype = header(file)
                        shapes[member[:-4]] = (tuple(shape), dtype)
        with np.load(path, allow_pickle=False) as arrays:
            return _dataset(path, shapes, lambda key: np.asarray(arrays[key]), options)
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{path} is no .npz file, or a truncated or damaged one ({reason}): write or fetch it again."
        ) from error


def read_hdf5(path: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """An HDF5 file as a data set; arrays lie at its top.

    Raises:
        UserError: if h5py is missing, and as `read_npz`.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError("HDF5 files need the package h5py: install it with pip install 'keepsight[hdf5]'.") from error
    try:
        with h5py.File(path, "r") as file:
            # Links and external or virtual storage lead to other files, which are never opened.
            own = [key for key in file if isinstance(file.get(key, getlink=True), h5py.HardLink)]
            items = {str(key): file[key] for key in own if file.get(key, getclass=True) is h5py.Dataset}
            arrays = {key: item for key, item in items.items() if not item.external and not item.is_virtual}
            shapes = {key: (tuple(item.shape), item.dtype) for key, item in arrays.items()}
            return _dataset(path, shapes, lambda key: np.asarray(arrays[key][()]), options)
    except (OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{path} is no HDF5 file, or a truncated or damaged one ({reason}): write or fetch it again."
        ) from error


def _dataset(path: Path, shapes: Shapes, read: Read, options: DataConfig) -> Dataset:
    pairs = _pairs(path, list(shapes), options)
    _check(path, pairs, shapes)
    values: list[NDArray[Any]] = []
    labels: list[Any] = []
    parts: list[Part] = []
    for part, (image_key, label_key) in pairs.items():
        values.append(read(image_key))
        found = label_list(read(label_key), f"{path} ({label_key})")
        if len(found) != len(values[-1]):
            raise UserError(
                f"{path} has {len(values[-1])} images in {image_key!r} but {len(found)} labels in {label_key!r}."
            )
        labels += found
        parts += [part] * len(found)
    images = ArrayImages(values[0] if len(values) == 1 else np.concatenate(values), options.pixels)
    return dataset_of_columns(path.stem or "data", images, labels, parts, str(path))


def _pairs(path: Path, keys: list[str], options: DataConfig) -> dict[Part, tuple[str, str]]:
    """For every part, the keys of its images and labels; train first."""
    listed = ", ".join(repr(key) for key in keys[:20]) or "none"
    wanted = (options.image_column, options.label_column)
    for key in wanted:
        if key is not None and key not in keys:
            raise UserError(f"{path} has no array {key!r}: its arrays are {listed}.")
    found: dict[Part, list[str | None]] = {}
    for key in keys:
        part, kind = _meaning(key)
        for place, names in enumerate((_IMAGES, _LABELS)):
            chosen = wanted[place]
            if key == chosen or (chosen is None and kind in names):
                pair = found.setdefault("" if key == chosen else part, [None, None])
                best = pair[place]
                # Where several would do, the first of the usual names is meant.
                if best is None or (best != chosen and names.index(kind) < names.index(_meaning(best)[1])):
                    pair[place] = key
    pairs: dict[Part, tuple[str, str]] = {}
    order: tuple[Part, ...] = ("train", "", "val", "test")
    for part in order:
        images, labels = found.get(part, (None, None))
        if images is not None and labels is not None:
            pairs[part] = (images, labels)
        elif images is not None or labels is not None:
            gone = "labels" if labels is None else "images"
            raise UserError(
                f"{path} has an array {images or labels!r} but no {gone} that belong to it: its arrays are {listed}, name "
                f"the right ones with image_column and label_column."
            )
    if not pairs:
        raise UserError(
            f"{path} has no arrays of images and labels (such as x and y, or train_images and train_labels): its arrays are "
            f"{listed}, name the right ones with image_column and label_column."
        )
    return pairs


def _meaning(key: str) -> tuple[Part, str]:
    """The part in a key and what is left: 'x_train' is ('train', 'x')."""
    key = key.lower()
    if key in _IMAGES or key in _LABELS:
        return "", key
    head, tail = re.match(r"^([a-z]+)[_.-]?(.*)$", key), re.match(r"^(.*)[_.-]([a-z]+)$", key)
    if head and (part := part_of_name(head[1])):
        return part, head[2]
    if tail and (part := part_of_name(tail[2])):
        return part, tail[1]
    return "", key


def _check(path: Path, pairs: dict[Part, tuple[str, str]], shapes: Shapes) -> None:
    """Types, shapes and memory, before any value is read."""
    needed = 0
    first, _ = shapes[next(iter(pairs.values()))[0]]
    for key in (key for pair in pairs.values() for key in pair):
        shape, dtype = shapes[key]
        # HDF5's texts are objects with metadata, and nothing is unpickled there.
        if dtype.hasobject and not dtype.metadata:
            raise UserError(
                f"The array {key!r} of {path} holds Python objects, which are never unpickled: save it as numbers or text."
            )
        needed += int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    for image_key, label_key in pairs.values():
        (shape, _), (labels, _) = shapes[image_key], shapes[label_key]
        if not labels or not shape or labels[0] != shape[0]:
            raise UserError(
                f"{path} has images of shape {list(shape)} in {image_key!r} but labels of shape {list(labels)} in "
                f"{label_key!r}: one label an image was expected."
            )
        if shape[1:] != first[1:]:
            raise UserError(
                f"{path} has images of different sizes, {list(first)} and {list(shape)}: all parts must have the same."
            )
    available = psutil.virtual_memory().available
    if needed * (1 if len(pairs) == 1 else 2) > available:  # parts are joined, for which there is a copy
        raise UserError(
            f"The arrays of {path} need {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are free: store the "
            f"images as files, Parquet or WebDataset shards, which are read one by one."
        )
