"""Image files, read safely into upright RGB. Knows nothing of labels, folders or tables.

Colour profiles are ignored; animations and multi-page files give their first frame.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keepsight.core import ImageList, UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""What counts as an image in a folder, in lower case."""

# Pillow also knows formats that start other programs (EPS starts Ghostscript): the bytes must be one of these.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is composited on white, and 16-bit grey is scaled from 0..65535 to
    0..255.

    Raises:
        ValueError: for pixels without a defined range (32-bit floats, integers outside 0..65535).

    Example:
        >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a defined range, 8 or 16 bit was expected")
    if image.mode.startswith("I"):  # I;16, I;16B and I, which is what 16-bit PGM (and PNG in older Pillow) opens as
        values_HW = np.asarray(image).astype(np.int64)
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise ValueError("its pixels are integers outside 0..65535, 8 or 16 bit was expected")
        grey_HW = np.rint(values_HW / 257).astype(np.uint8)
        return Image.fromarray(grey_HW).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """The file as upright RGB.

    Raises:
        UserError: naming the path, if the file is missing, empty, no image, damaged, or larger than Pillow's
            `Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            return to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down or leave it out"
        raise _unreadable(path, reason) from error
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        reason = "it is empty (0 bytes)" if empty else "its content is none of " + ", ".join(_FORMATS)
        raise _unreadable(path, f"{reason}: replace it or leave it out") from error
    except FileNotFoundError as error:
        raise _unreadable(path, "it does not exist: was it moved or deleted?") from error
    except PermissionError as error:
        raise _unreadable(path, "permission was denied: make it readable") from error
    except ValueError as error:
        raise _unreadable(path, f"{error}: convert it to 8-bit RGB or leave it out") from error
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise nearly anything on damaged bytes (SyntaxError, struct.error, ...)
        raise _unreadable(path, f"it is truncated or damaged, {error}: replace it or leave it out") from error


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"The image {path} cannot be read, because {reason.rstrip('.')}.")


class FileImages(ImageList):
    """Image files below a root, or anywhere by absolute path; read when they are asked for.

    Args:
        root: The directory that relative names start from.
        names: N paths in posix form, relative to root or absolute; they are also what the images are called.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root = root
        self._names = tuple(names)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Where the image lies."""
        return self._root / self._names[index]

    def load(self, index: int) -> Image.Image:
        """See `read_image`."""
        return read_image(self.path(index))

    def name(self, index: int) -> str:
        """The path as given."""
        return self._names[index]

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the file's bytes; UserError if it cannot be read."""
        try:
            with self.path(index).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise _unreadable(self.path(index), f"the system says '{error.strerror}'") from error
