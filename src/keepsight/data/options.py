"""What a user may say about where the images and labels of a data set are found. Knows no format."""

from __future__ import annotations

from keepsight.core import Config
from keepsight.data.pixels import AS_STORED, PixelConfig


class DataConfig(Config):
    """How `load_dataset` reads a source; the defaults find the usual names by themselves.

    Attributes:
        image_column: Column of a table, Parquet, data frame or hub data set that holds the paths or the images; key of an .npz or
            HDF5 file; extension in WebDataset shards (`jpg`). None looks for the usual names (see docs/data.md).
        label_column: The same for the labels; in WebDataset shards an extension (`cls`, `txt`) or a key of the .json.
        split_column: Column with train, val, test or nothing; None takes a column called `split` where there is one.
        hub_config: Configuration (subset) of a Hugging Face data set.
        hub_revision: Branch, tag or commit of a Hugging Face data set.
        data_root: Folder for torchvision's files, and the folder that relative paths of a data frame start from. None:
            `torchvision` in keepsight's cache, and the working directory.
        pixels: How stored values become 8-bit RGB.
    """

    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    hub_config: str | None = None
    hub_revision: str | None = None
    data_root: str | None = None
    pixels: PixelConfig = AS_STORED


DEFAULTS = DataConfig()
"""Everything found by its usual name."""
