"""Stored values to the 8-bit RGB that pretrained models see, by explicit settings. Knows no file format and no labels.

Errors here are `PixelError` with the reason alone ("it has ..."): whoever read the values knows the image's name and says both.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from keepsight.core import Config

Values = NDArray[Any]
"""Stored values of one image: [H, W], [H, W, C] or, where declared, [C, H, W]; bool, integers or floats."""


class PixelError(ValueError):
    """An image that the settings do not cover; the message is a clause with "it" for the image, and what to do."""


_NO_RANGE = "set value_range to 'percentile' or to its darkest and brightest value"


class PixelConfig(Config):
    """How stored values become 8-bit RGB; saved with a model, since it is part of what the model was trained on.

    With v the stored value, t = clip((v - low) / (high - low), 0, 1) and the 8-bit value is round(255 * s(t)). The defaults
    leave 8-bit images as they are and divide 16-bit ones by 257.

    Attributes:
        channels: None takes grey, RGB and RGBA (composited on white) as they are. Otherwise one channel number (grey) or three
            (red, green, blue), counted from 0: needed for images of 2, 5 or more channels.
        channels_first: Arrays with three axes are [C, H, W] rather than [H, W, C]. FITS cubes always are.
        value_range: What becomes black and white (low, high). ``type``: the whole range of the type, 0 to 255 or 0 to 65535;
            for DICOM the file's own window, or else the range of its stored bits; for FITS, which has no such range,
            ``percentile``; other types are refused. ``percentile``: `percentiles` of this image, over all used channels.
            Two numbers: the same range for every image.
        percentiles: Lower and upper percentile, 0 to 100.
        stretch: s(t). ``linear``: t. ``sqrt``: sqrt(t). ``log``: ln(1 + 1000 t) / ln(1001). ``asinh``: asinh(10 t) / asinh(10).
        fill: The stored value that NaN and infinite pixels take; None refuses an image that has any. Percentiles are taken over the
            finite pixels only.
        max_pixels: Images with more pixels (width times height) are refused before they are decoded; None is Pillow's own limit,
            89,478,485.
        hdu: Number of the FITS unit that holds the image, from 0; None is the first that holds one.
    """

    channels: tuple[int, ...] | None = None
    channels_first: bool = False
    value_range: Literal["type", "percentile"] | tuple[float, float] = "type"
    percentiles: tuple[float, float] = (0.5, 99.5)
    stretch: Literal["linear", "sqrt", "log", "asinh"] = "linear"
    fill: float | None = None
    max_pixels: int | None = Field(default=None, gt=0)
    hdu: int | None = Field(default=None, ge=0)

    @field_validator("channels")
    @classmethod
    def _channels(cls, channels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if channels is not None and (len(channels) not in (1, 3) or min(channels) < 0):
            raise ValueError("give one channel number (grey) or three (red, green, blue), counted from 0")
        return channels

    @field_validator("value_range")
    @classmethod
    def _value_range(cls, value_range: str | tuple[float, float]) -> str | tuple[float, float]:
        if not isinstance(value_range, str) and value_range[0] >= value_range[1]:
            raise ValueError("the first value (black) must be below the second (white)")
        return value_range

    @field_validator("percentiles")
    @classmethod
    def _percentiles(cls, percentiles: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError("percentiles go from 0 to 100, the lower one first")
        return percentiles

    def content_hash(self, stored: bytes) -> bytes:
        """The content hash of an image under these settings: `stored` itself for the defaults, else one that differs with them.

        Args:
            stored: Sha256 of the stored content, 32 bytes.

        Example:
            >>> PixelConfig(max_pixels=10).content_hash(b"x" * 32) == b"x" * 32
            True
            >>> PixelConfig(stretch="log").content_hash(b"x" * 32) == b"x" * 32
            False
        """
        # max_pixels decides whether an image is read, not what it looks like.
        changed = self.model_copy(update={"max_pixels": None})
        if changed == PixelConfig():
            return stored
        return hashlib.sha256(stored + changed.model_dump_json(exclude_defaults=True).encode()).digest()

    def check_size(self, width: int, height: int) -> None:
        """Raises PixelError for a size over `max_pixels`."""
        limit = self.max_pixels or Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise PixelError(f"it has more than {limit:,} pixels: scale it down, leave it out or raise max_pixels")


AS_STORED = PixelConfig()
"""The defaults."""


def to_image(values: Values, config: PixelConfig = AS_STORED, *, channels_first: bool | None = None) -> Image.Image:
    """Values [H, W], [H, W, C] or [C, H, W] as an 8-bit RGB image, by `config`.

    Args:
        values: Bool, integers or floats.
        config: The settings.
        channels_first: Overrides the setting of that name.

    Raises:
        PixelError: with the reason, for a shape, type, size, range or channel that the settings do not cover.

    Example:
        >>> to_image(np.array([[0.0, 0.5, 2.0]]), PixelConfig(value_range=(0, 1))).convert("L").tobytes()
        b'\\x00\\x80\\xff'
    """
    values_HWC, alpha_HW = _used_channels(
        values, config, config.channels_first if channels_first is None else channels_first
    )
    bytes_HWC = _to_bytes(values_HWC, config)
    image = Image.fromarray(bytes_HWC[:, :, 0] if bytes_HWC.shape[2] == 1 else bytes_HWC).convert("RGB")
    if alpha_HW is None:
        return image
    image.putalpha(Image.fromarray(_to_bytes(alpha_HW[:, :, None], AS_STORED)[:, :, 0]))
    return _on_white(image)


def to_rgb(image: Image.Image, config: PixelConfig = AS_STORED) -> Image.Image:
    """Any Pillow image as upright 8-bit RGB, by `config`.

    The EXIF orientation is applied, transparency is composited on white, and 16-bit grey is scaled from 0..65535 to 0..255.

    Raises:
        PixelError: for pixels without a defined range (32-bit floats, integers outside 0..65535) unless `config` gives one, and as
            `to_image`.

    Example:
        >>> to_rgb(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
        (255, 255, 255)
    """
    config.check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    plain_8_bit = image.mode != "F" and not image.mode.startswith("I")
    if plain_8_bit and config.channels is None and config.value_range == "type" and config.stretch == "linear":
        return _on_white(image) if image.has_transparency_data else image.convert("RGB")
    return to_image(_pillow_values(image, config), config, channels_first=False)


def _pillow_values(image: Image.Image, config: PixelConfig) -> Values:
    """[H, W] or [H, W, C] of an upright image."""
    if image.mode == "F":
        if config.value_range == "type":
            raise PixelError(f"its pixels are floating-point numbers without a defined range: {_NO_RANGE}")
        return np.asarray(image)
    if image.mode.startswith("I"):  # I;16, I;16B and I, which is what 16-bit PGM (and PNG in older Pillow) opens as
        values_HW = np.asarray(image).astype(np.int64)
        if config.value_range != "type":
            return values_HW
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise PixelError(f"its pixels are integers outside 0..65535, 8 or 16 bit was expected: {_NO_RANGE}")
        return values_HW.astype(np.uint16)
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _used_channels(values: Values, config: PixelConfig, channels_first: bool) -> tuple[Values, Values | None]:
    """The channels that are shown [H, W, 1 or 3], and an alpha channel [H, W] if there is one."""
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.ndim == 3 and channels_first:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or 0 in values.shape:
        raise PixelError(f"its values have the shape {list(values.shape)}, but [H, W] or [H, W, C] was expected")
    config.check_size(values.shape[1], values.shape[0])
    count = values.shape[2]
    if config.channels is not None:
        if max(config.channels) >= count:
            raise PixelError(
                f"it has {count} channels, so that there is no channel {max(config.channels)}: channels are counted from 0"
            )
        return values[:, :, list(config.channels)], None
    if count in (1, 3):
        return values, None
    if count == 4 and values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return values[:, :, :3], values[:, :, 3]
    raise too_many_channels(count, values.shape)


def too_many_channels(count: int, shape: tuple[int, ...]) -> PixelError:
    """The reason for a number of channels among which the user has to choose."""
    return PixelError(
        f"it has {count} channels (shape {list(shape)}): choose one or three of them with channels, or set channels_first if the "
        f"channels are the first axis"
    )


def _to_bytes(values_HWC: Values, config: PixelConfig) -> NDArray[np.uint8]:
    """Range, stretch and rounding."""
    if values_HWC.dtype == np.uint8 and config.value_range == "type" and config.stretch == "linear":
        return np.ascontiguousarray(values_HWC)
    if values_HWC.dtype.kind not in "buif":
        raise PixelError(f"its values are of type {values_HWC.dtype}, but numbers were expected")
    small = values_HWC.dtype.itemsize <= 2 or values_HWC.dtype.name == "float32"
    x_HWC: NDArray[np.floating[Any]] = values_HWC.astype(
        np.float32 if small else np.float64
    )  # always a copy, in the machine's byte order
    finite = np.isfinite(x_HWC)
    all_finite = bool(finite.all())
    if not all_finite and config.fill is None:
        raise PixelError(
            f"{int((~finite).sum()):,} of its values are NaN or infinite: set fill to the value that they shall take"
        )
    low, high = _range(x_HWC if all_finite else x_HWC[finite], values_HWC.dtype, config)
    if config.fill is not None:
        x_HWC[~finite] = config.fill
    # A flat image under percentiles has no range: all of it is black.
    t_HWC = np.clip((x_HWC - low) / (high - low), 0, 1) if high > low else np.zeros_like(x_HWC)
    scaled: NDArray[np.uint8] = np.rint(255 * _stretched(t_HWC, config.stretch)).astype(np.uint8)
    return scaled


def _range(finite: Values, stored: np.dtype[Any], config: PixelConfig) -> tuple[float, float]:
    if isinstance(config.value_range, tuple):
        return config.value_range
    if config.value_range == "percentile":
        if finite.size == 0:
            raise PixelError("none of its values is finite: leave it out")
        low, high = np.percentile(finite, config.percentiles)
        return float(low), float(high)
    if stored.kind == "b":
        return 0.0, 1.0
    if stored.kind == "u" and stored.itemsize <= 2:
        return 0.0, float(np.iinfo(stored).max)
    raise PixelError(f"its values are {stored.name}, not uint8 or uint16, and have no range of their own: {_NO_RANGE}")


def _stretched(t: NDArray[Any], stretch: str) -> NDArray[Any]:
    if stretch == "sqrt":
        return np.asarray(np.sqrt(t))
    if stretch == "log":
        return np.asarray(np.log1p(1000 * t) / np.log(1001))
    if stretch == "asinh":
        return np.asarray(np.arcsinh(10 * t) / np.arcsinh(10))
    return t
