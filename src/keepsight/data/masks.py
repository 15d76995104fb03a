"""Masks in COCO's run-length encoding, to and from pixels and polygons. Knows no file and no image.

Works on faster-coco-eval's mask functions (the extra `scenes`), which are COCO's own, with checks of lengths added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UserError
from keepsight.core.scene import Rle


class MaskError(ValueError):
    """A segmentation that is no mask of its image; `wrong_size` where it is one of another size."""

    def __init__(self, reason: str, *, wrong_size: bool = False) -> None:
        super().__init__(reason)
        self.wrong_size = wrong_size


def _library() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise UserError(
            "Reading and writing masks needs the package faster-coco-eval: install it with pip install 'keepsight[scenes]'."
        ) from error
    return mask


def encode_mask(mask_HW: NDArray[np.bool_]) -> Rle:
    """A mask [h, w] in run-length encoding."""
    found = _library().encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return _rle(found)


def decode_mask(rle: Rle) -> NDArray[np.bool_]:
    """The mask [h, w] of a run-length encoding; raises `MaskError` if the runs do not fit into it."""
    try:
        mask_HW: NDArray[np.uint8] = _library().decode({"size": list(rle.size), "counts": rle.counts})
    except (ValueError, RuntimeError) as error:
        raise MaskError(str(error)) from error
    return mask_HW.astype(np.bool_)


def mask_box(rle: Rle) -> NDArray[np.float32]:
    """Left, top, right, bottom of the smallest box around the mask, px; zeros for an empty one."""
    left, top, width, height = _library().toBbox({"size": list(rle.size), "counts": rle.counts})
    return np.array([left, top, left + width, top + height], dtype=np.float32)


def mask_area(rle: Rle) -> int:
    """Pixels in the mask."""
    return int(_library().area({"size": list(rle.size), "counts": rle.counts}))


def polygon_mask(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """The union of polygons, each x1, y1, x2, y2, ... in px, as a mask of the size (height, width).

    Raises:
        MaskError: for less than three corners, an odd number of values, or corners far out of the image (whose outline would
            take memory without bound).
    """
    height, width = size
    corners = []
    for polygon in polygons:
        try:
            values = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise MaskError("a polygon is not a list of numbers") from error
        if values.ndim != 1 or len(values) < 6 or len(values) % 2:
            raise MaskError("a polygon needs pairs of numbers for at least three corners")
        xy = values.reshape(-1, 2)
        if not np.isfinite(xy).all() or (xy < (-width, -height)).any() or (xy > (2 * width, 2 * height)).any():
            raise MaskError("a polygon leads far out of the image")
        corners.append(values.tolist())
    if not corners:
        raise MaskError("there is no polygon")
    library = _library()
    return _rle(library.merge(library.frPyObjects(corners, height, width)))


def coco_mask(segmentation: Any, size: tuple[int, int]) -> Rle:
    """COCO's `segmentation` of an image of the size (height, width): polygons, or runs, compressed (text) or not (numbers).

    Raises:
        MaskError: if it is none of these, or of another size.

    Example:
        >>> coco_mask({"size": [2, 2], "counts": [1, 2, 1]}, (2, 2))
        Rle(size=(2, 2), counts=b'121')
    """
    if isinstance(segmentation, list):
        return polygon_mask(segmentation, size)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise MaskError("a segmentation is polygons, or an object of size and counts")
    if list(segmentation["size"]) != list(size):
        raise MaskError(
            f"the mask is of {segmentation['size']}, the image of {list(size)} (height, width)", wrong_size=True
        )
    counts = segmentation["counts"]
    height, width = size
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise MaskError("the runs do not add up to the size", wrong_size=True)
        return _rle(_library().frPyObjects({"size": [height, width], "counts": counts}, height, width))
    if not isinstance(counts, str) or not counts.isascii():
        raise MaskError("the runs are neither numbers nor COCO's text")
    rle = Rle((height, width), counts.encode())
    decode_mask(rle)  # the runs of a damaged text may lead out of the image
    return rle


def _rle(found: dict[str, Any]) -> Rle:
    height, width = found["size"]
    return Rle((int(height), int(width)), bytes(found["counts"]))
