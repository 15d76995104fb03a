"""Tux Paint's stamps: small drawings and photographs with transparency, in folders by theme. Knows nothing of splitting."""

from __future__ import annotations

from pathlib import Path

from keepsight.core import Dataset, UserError
from keepsight.data.files import FileImages
from keepsight.data.labels import index_labels

STAMPS_FOLDER = Path("/usr/share/tuxpaint/stamps")  # where Debian's package puts it


def read_stamps() -> Dataset:
    """All PNG stamps, composited on white; the class is the theme (the folder directly in the stamps' own).

    Raises:
        UserError: The package that brings them is not installed.
    """
    root = STAMPS_FOLDER
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/**/*.png") if path.is_file())
    if not names:
        raise UserError(
            f"stamps are read from Debian's package tuxpaint-stamps-default, which is not installed ({root} is missing): run "
            f"'apt install tuxpaint-stamps-default' or choose another data set."
        )
    labels, classes = index_labels([name.split("/")[0] for name in names], "stamps")
    return Dataset("stamps", FileImages(root, names), labels, classes, tuple("" for _ in names))
