"""IDX files, MNIST's format, one by one or as a folder of pairs. Knows nothing of splitting.

{train,t10k}-images-idx3-ubyte[.gz]   {train,t10k}-labels-idx1-ubyte[.gz]   (t10k or test: the test part)
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.arrays import ArrayImages
from keepsight.data.columns import dataset_of_columns, part_of_name
from keepsight.data.options import DEFAULTS, DataConfig

_IMAGES = re.compile(r"^(?P<stem>.*?)[-_.]?images[-.]idx[34]-ubyte(\.gz)?$", re.IGNORECASE)
_LABELS = re.compile(r"^(?P<stem>.*?)[-_.]?labels[-.]idx1-ubyte(\.gz)?$", re.IGNORECASE)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of bytes, compressed with gzip or not: two zero bytes, the type (8), the number of dimensions, each
    dimension as a big-endian 32-bit integer, then the values.

    Raises:
        UserError: naming the path, if the file is missing or is not that.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed or path.suffix == ".gz" else path.open("rb") as file:
            zeros, kind, ndim = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 8:
                raise UserError(f"{path} is not an IDX file of bytes: get it again.")
            shape = struct.unpack(f">{ndim}I", file.read(4 * ndim))
            count = int(np.prod(shape, dtype=np.int64))
            content = file.read(count + 1)  # one more than there may be: what follows is never unpacked
    except (OSError, EOFError, zlib.error, struct.error, OverflowError) as error:
        raise UserError(f"{path} cannot be read as an IDX file ({error}): get it again.") from error
    if len(content) != count:
        raise UserError(f"{path} is not an IDX file of bytes, or not a whole one: get it again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def idx_pairs(folder: Path) -> dict[str, tuple[Path | None, Path | None]]:
    """The pairs (images, labels) directly in a folder, by what their names begin with; empty if there is no IDX file."""
    pairs: dict[str, tuple[Path | None, Path | None]] = {}
    for path in sorted(folder.iterdir()):
        for place, pattern in enumerate((_IMAGES, _LABELS)):
            if (match := pattern.match(path.name)) and path.is_file():
                pair = list(pairs.get(match["stem"], (None, None)))
                pair[place] = pair[place] or path  # the unpacked file comes before the packed one
                pairs[match["stem"]] = (pair[0], pair[1])
    return pairs


def read_idx_folder(folder: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """All pairs of the folder as one data set, train before test; classes are the label numbers.

    Raises:
        UserError: if half of a pair is missing, a file is damaged, or images and labels do not match.
    """
    pixels, labels, parts = [], [], list[Part]()
    found = idx_pairs(folder)
    for stem in sorted(found, key=lambda stem: (("train", "", "val", "test").index(part_of_name(stem) or ""), stem)):
        images_path, labels_path = found[stem]
        if images_path is None or labels_path is None:
            there, gone = (labels_path, "images") if images_path is None else (images_path, "labels")
            raise UserError(
                f"{there} has no {gone} beside it: IDX files come in pairs, {stem}-images and {stem}-labels."
            )
        pixels.append(read_idx(images_path))
        labels.append(read_idx(labels_path))
        if labels[-1].ndim != 1 or pixels[-1].ndim not in (3, 4) or len(labels[-1]) != len(pixels[-1]):
            raise UserError(
                f"{images_path} has the shape {list(pixels[-1].shape)} but its labels {list(labels[-1].shape)}: [N, H, W] and [N] "
                f"were expected."
            )
        if pixels[-1].shape[1:] != pixels[0].shape[1:]:
            raise UserError(
                f"{images_path} holds images of another size than {found[next(iter(found))][0]}: read them one by one."
            )
        parts += [part_of_name(stem)] * len(labels[-1])
    images = ArrayImages(np.concatenate(pixels), options.pixels)
    return dataset_of_columns(
        folder.resolve().name or "data", images, np.concatenate(labels).tolist(), parts, str(folder)
    )
