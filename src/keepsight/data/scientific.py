"""Scientific image files: FITS, DICOM and .npy arrays, by their settings to RGB. Knows no paths and no labels.

Of a DICOM file only the elements that describe pixels are read: names, dates and other texts of a patient never are, so that no
message can show them. Errors are `PixelError` with the reason alone.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from keepsight.core import UserError
from keepsight.data.pixels import PixelConfig, PixelError, Values, to_image, too_many_channels

SCIENTIFIC_EXTENSIONS = frozenset({".fits", ".fit", ".fts", ".dcm", ".dicom", ".npy"})
"""In lower case."""

Kind = Literal["fits", "dicom", "npy"]


def scientific_kind(file: BinaryIO, name: str) -> Kind | None:
    """What the first bytes say, or for a DICOM file without its preamble the name; None for everything else."""
    head = file.read(132)
    file.seek(0)
    if head.startswith(b"SIMPLE  ="):
        return "fits"
    if head[128:132] == b"DICM" or (head and name.lower().endswith((".dcm", ".dicom"))):
        return "dicom"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    return None


def read_scientific(file: BinaryIO, kind: Kind, config: PixelConfig) -> Image.Image:
    """The file as RGB.

    Raises:
        PixelError: with the reason, if it cannot be shown by the settings.
        UserError: if the package that reads it is missing.
    """
    return {"fits": read_fits, "dicom": read_dicom, "npy": read_npy}[kind](file, config)


def read_npy(file: BinaryIO, config: PixelConfig) -> Image.Image:
    """One array [H, W], [H, W, C] or [C, H, W]; see `to_image`. Pickled objects are refused."""
    try:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    except ValueError as error:
        raise PixelError("its .npy header is damaged: write it again with numpy.save") from error
    if dtype.hasobject:
        raise PixelError("it holds Python objects, which are never unpickled: save it as an array of numbers")
    _check_shape(tuple(shape), config, config.channels_first)
    if _size(file) - file.tell() < int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise PixelError("it is truncated: replace it or leave it out")
    file.seek(0)
    return to_image(np.load(file, allow_pickle=False), config)


def read_fits(file: BinaryIO, config: PixelConfig) -> Image.Image:
    """The first image unit, or the one that `hdu` names, as a viewer shows it: the first stored row is at the bottom.

    Axes of length 1 before the last two are dropped; a cube is [C, H, W], of which only the chosen channels are read.
    """
    try:
        from astropy.io import fits
    except ImportError as error:
        raise _missing("FITS images", "astropy", "fits") from error
    # Not memory-mapped, which astropy cannot do for scaled integers: `section` reads only what is asked for.
    with fits.open(file, mode="readonly", memmap=False) as units:
        unit = _fits_unit(list(units), config)
        shape = tuple(n for i, n in enumerate(unit.shape) if n != 1 or i >= len(unit.shape) - 2)
        _check_shape(shape, config, channels_first=True)
        where = unit.fileinfo()
        if where is not None and where["datLoc"] + where["datSpan"] > _size(file):
            raise PixelError("it is truncated: replace it or leave it out")
        if len(shape) == 3 and config.channels is not None:
            if max(config.channels) >= shape[0]:
                raise PixelError(f"it has {shape[0]} channels, so that there is no channel {max(config.channels)}")
            index = (0,) * (len(unit.shape) - 3)  # axes of length 1 before the cube's three
            values = np.stack([np.array(unit.section[(*index, c)]) for c in config.channels])
            config = config.model_copy(update={"channels": None})
        else:
            values = np.array(unit.section[tuple(slice(None) for _ in unit.shape)]).reshape(shape)
    if config.value_range == "type":
        config = config.model_copy(update={"value_range": "percentile"})
    return ImageOps.flip(to_image(values, config, channels_first=True))


def _fits_unit(units: list[Any], config: PixelConfig) -> Any:
    if config.hdu is not None:
        if config.hdu >= len(units):
            raise PixelError(f"it has {len(units)} FITS units, so that there is no unit {config.hdu}: set hdu lower")
        unit = units[config.hdu]
        if not unit.is_image or len(unit.shape) < 2:
            raise PixelError(f"its FITS unit {config.hdu} is no image: set hdu to one that is")
        return unit
    for unit in units:
        if unit.is_image and len(unit.shape) >= 2:
            return unit
    raise PixelError("none of its FITS units is an image: leave it out")


_DICOM_TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "PixelData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]


def read_dicom(file: BinaryIO, config: PixelConfig) -> Image.Image:
    """The first frame, rescaled (slope and intercept, or the modality table), windowed by the file unless a range is given.

    Where the file has no window, the range of its stored bits is used. MONOCHROME1, in which low values are bright, is inverted.
    """
    try:
        import pydicom.pixels
    except ImportError as error:
        raise _missing("DICOM images", "pydicom", "dicom") from error
    try:
        data = pydicom.dcmread(file, specific_tags=list(_DICOM_TAGS))
    except Exception as error:
        raise PixelError("it is no DICOM file, or a damaged one: replace it or leave it out") from error
    if "PixelData" not in data or not all(tag in data for tag in ("Rows", "Columns", "PhotometricInterpretation")):
        raise PixelError("it is a DICOM file without an image: leave it out")
    config.check_size(int(data.Columns), int(data.Rows))
    values = _dicom_frame(data)
    meaning = str(data.PhotometricInterpretation)
    if meaning == "PALETTE COLOR":
        return to_image(pydicom.pixels.apply_color_lut(values, data), config, channels_first=False)
    if not meaning.startswith("MONOCHROME"):
        return to_image(values, config, channels_first=False)
    values = pydicom.pixels.apply_modality_lut(values, data)
    if config.value_range == "type":
        config = config.model_copy(update={"value_range": _dicom_range(data)})
    image = to_image(values, config, channels_first=False)
    return ImageOps.invert(image) if meaning == "MONOCHROME1" else image


def _dicom_frame(data: Any) -> Values:
    import pydicom.pixels

    try:
        return np.asarray(pydicom.pixels.pixel_array(data, index=0))
    except (RuntimeError, NotImplementedError) as error:
        syntax = data.file_meta.TransferSyntaxUID.name
        raise PixelError(
            f"no decoder for its compression ({syntax}) is installed or it is damaged: install one with 'pip install python-gdcm' "
            f"or convert it to an uncompressed file"
        ) from error
    except Exception as error:  # damaged headers raise nearly anything, with texts that may quote the file
        raise PixelError("its pixel data are truncated or damaged: replace it or leave it out") from error


def _dicom_range(data: Any) -> tuple[float, float]:
    """What is black and white after rescaling (DICOM PS3.3, C.11.2.1.2), by the file's first window or its stored bits."""
    centre, width = (_first(data.get(tag)) for tag in ("WindowCenter", "WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        if str(data.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT":
            return centre - width / 2, centre + width / 2
        low = centre - 0.5 - (width - 1) / 2
        return low, low + max(width - 1, 1e-3)
    bits, signed = int(data.BitsStored), bool(data.PixelRepresentation)
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, high = sorted(slope * end + intercept for end in ends)
    return low, high


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])


def _check_shape(shape: tuple[int, ...], config: PixelConfig, channels_first: bool) -> None:
    """Sizes are checked before the values are read."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise PixelError(f"its values have the shape {list(shape)}, but [H, W] or [H, W, C] was expected")
    height, width = shape[-2:] if len(shape) == 2 or channels_first else shape[:2]
    config.check_size(width, height)
    count = 1 if len(shape) == 2 else shape[0 if channels_first else 2]
    if count > 4 and config.channels is None:
        raise too_many_channels(count, shape)


def _size(file: BinaryIO) -> int:
    place = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    return size


def _missing(what: str, package: str, extra: str) -> UserError:
    return UserError(f"{what} need the package {package}: install it with pip install 'keepsight[{extra}]'.")
