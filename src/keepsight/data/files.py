"""Image files, read safely into upright RGB. Knows nothing of labels, folders or tables.

Colour profiles are ignored; animations and multi-page files give their first frame.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from keepsight.core import ImageList, UserError
from keepsight.data.pixels import AS_STORED, PixelConfig, PixelError, to_rgb
from keepsight.data.scientific import SCIENTIFIC_EXTENSIONS, read_scientific, scientific_kind

EXTENSIONS = (
    frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
    | SCIENTIFIC_EXTENSIONS
)
"""What counts as an image in a folder, in lower case."""

# Pillow also knows formats that start other programs (EPS starts Ghostscript): the bytes must be one of these.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")

_LIMIT_LOCK = threading.Lock()


def read_image(path: Path, pixels: PixelConfig = AS_STORED) -> Image.Image:
    """The file as upright RGB.

    Raises:
        UserError: naming the path, if the file is missing, empty, no image, damaged, too large, or not covered by `pixels`.
    """
    try:
        with path.open("rb") as file:
            return decode_image(file, str(path), pixels)
    except FileNotFoundError as error:
        raise unreadable(path, "it does not exist: was it moved or deleted?") from error
    except PermissionError as error:
        raise unreadable(path, "permission was denied: make it readable") from error
    except OSError as error:
        raise unreadable(path, f"the system says '{error.strerror}'") from error


def decode_image(file: BinaryIO, name: str, pixels: PixelConfig = AS_STORED) -> Image.Image:
    """The bytes of an image file, wherever they are stored, as upright RGB.

    Args:
        file: Open at its beginning; a real file or `io.BytesIO`.
        name: What messages call the image.
        pixels: The settings.

    Raises:
        UserError: as `read_image`.
    """
    try:
        kind = scientific_kind(file, name)
        if kind is not None:
            return read_scientific(file, kind, pixels)
        with _opened(file, pixels) as image:
            pixels.check_size(*image.size)
            return to_rgb(image, pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = pixels.max_pixels or Image.MAX_IMAGE_PIXELS
        raise unreadable(
            name, f"it has more than {limit:,} pixels: scale it down, leave it out or raise max_pixels"
        ) from error
    except UnidentifiedImageError as error:
        file.seek(0)
        if not file.read(1):
            raise unreadable(name, "it is empty (0 bytes): replace it or leave it out") from error
        raise unreadable(
            name, f"its content is none of {', '.join(_FORMATS)}, FITS, DICOM, NPY: replace it or leave it out"
        ) from error
    except PixelError as error:
        raise unreadable(name, str(error)) from error
    except (MemoryError, UserError):
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes (SyntaxError, struct.error, ...)
        reason = " ".join(str(error).split())
        raise unreadable(name, f"it is truncated or damaged, {reason}: replace it or leave it out") from error


def _opened(file: BinaryIO, pixels: PixelConfig) -> Image.Image:
    """Pillow's image, not yet decoded; Pillow's own limit is lifted while it looks at the header if the user set a higher one."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels.max_pixels is None or pixels.max_pixels <= limit:
        return Image.open(file, formats=_FORMATS)
    with _LIMIT_LOCK:
        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = pixels.max_pixels
            return Image.open(file, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def unreadable(name: str | Path, reason: str) -> UserError:
    """The one sentence for an image that cannot be read."""
    return UserError(f"The image {name} cannot be read, because {reason.rstrip('.')}.")


class FileImages(ImageList):
    """Image files below a root, or anywhere by absolute path; read when they are asked for.

    Args:
        root: The directory that relative names start from.
        names: N paths in posix form, relative to root or absolute; they are also what the images are called.
        pixels: How stored values become RGB.
    """

    def __init__(self, root: Path, names: Sequence[str], pixels: PixelConfig = AS_STORED) -> None:
        self._root = root
        self._names = tuple(names)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Where the image lies."""
        return self._root / self._names[index]

    def load(self, index: int) -> Image.Image:
        """See `read_image`."""
        return read_image(self.path(index), self._pixels)

    def name(self, index: int) -> str:
        """The path as given."""
        return self._names[index]

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the file's bytes (and of the settings, see `PixelConfig.content_hash`); UserError if it cannot be read."""
        try:
            with self.path(index).open("rb") as file:
                return self._pixels.content_hash(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise unreadable(self.path(index), f"the system says '{error.strerror}'") from error


class StoredImages(ImageList):
    """Encoded images (the bytes of a PNG, JPEG, ...) that a function reads by number: rows of a table, members of an archive.

    Args:
        count: N.
        read: Gives the bytes of one; raises UserError if they cannot be read. Called from several threads.
        name: What one is called.
        pixels: How stored values become RGB.
    """

    def __init__(
        self, count: int, read: Callable[[int], bytes], name: Callable[[int], str], pixels: PixelConfig = AS_STORED
    ) -> None:
        self._count, self._read, self._name, self._pixels = count, read, name, pixels

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Image.Image:
        """See `decode_image`."""
        return decode_image(io.BytesIO(self._read(index)), self._name(index), self._pixels)

    def name(self, index: int) -> str:
        """What the source calls it."""
        return self._name(index)

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the bytes, which is that of a file with the same content (and of the settings)."""
        return self._pixels.content_hash(hashlib.sha256(self._read(index)).digest())
