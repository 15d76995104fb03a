"""Images to network input: the backbone's own preprocessing, light augmentation, and whole batches. Knows no labels.

All randomness is a pure function of the seed that comes with each image, so that a resumed run repeats it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field
from torch import Tensor

from keepsight.core import Config, ImageList, Preprocessing

Seed = int | tuple[int, ...]
"""What `numpy.random.default_rng` takes: one number, or several such as (seed, step, index), none negative."""

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class AugmentConfig(Config):
    """Light training augmentation; every part can be turned off, and with all off it is `preprocess` exactly.

    Attributes:
        scale_min: The random crop keeps between this share and all of the area that preprocessing would show.
        ratio: The crop's sides differ by up to this factor, either way.
        rotate: Largest rotation, degrees, either way.
        translate: Largest shift, as a share of the side, each way.
        zoom: Largest change of size, as a factor of 1 + zoom, either way.
        jitter: Largest relative change of brightness, of contrast and of saturation.
        flip: Probability of a left-right flip. Off by default, since a flip changes the label of digits, letters, road
            signs and left and right organs; set 0.5 for natural photographs.
    """

    scale_min: float = Field(default=0.7, gt=0, le=1)
    ratio: float = Field(default=1.2, ge=1)
    rotate: float = Field(default=10.0, ge=0, le=180)
    translate: float = Field(default=0.1, ge=0, le=1)
    zoom: float = Field(default=0.1, ge=0)
    jitter: float = Field(default=0.2, ge=0, lt=1)
    flip: float = Field(default=0.0, ge=0, le=1)

    @classmethod
    def none(cls) -> AugmentConfig:
        """Everything off."""
        return cls(scale_min=1, ratio=1, rotate=0, translate=0, zoom=0, jitter=0, flip=0)


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB image as network input [3, S, S], float32: (pixel / 255 - mean) / std after resizing with antialiasing.

    Example:
        >>> wanted = Preprocessing(size=2, mean=(0, 0, 0), std=(1, 1, 0.5))
        >>> preprocess(Image.new("RGB", (6, 4), "white"), wanted)[:, 0, 0]
        tensor([1., 1., 2.])
    """
    return normalise(torch.from_numpy(np.array(_fit(image, preprocessing))[None]), preprocessing)[0]


def augment(image: Image.Image, preprocessing: Preprocessing, config: AugmentConfig, seed: Seed) -> Tensor:
    """Like `preprocess`, with the random changes of `config`; the same seed gives the same bits. Returns [3, S, S]."""
    out = _augmented(image, preprocessing, config, seed)
    return normalise(torch.from_numpy(np.array(out)[None]), preprocessing)[0]


def view_seeds(seed: int, indices: NDArray[np.int64], views: NDArray[np.int64]) -> list[Seed]:
    """Augmentation seeds of fixed views: functions of the image and the view, not of the step."""
    return [(seed, int(index), int(view)) for index, view in zip(indices, views, strict=True)]


def load_batch(
    images: ImageList,
    indices: Sequence[int] | NDArray[np.int64],
    preprocessing: Preprocessing,
    augmentation: AugmentConfig | None = None,
    seeds: Sequence[Seed] | None = None,
    workers: int | None = None,
) -> Tensor:
    """Images by index as network input [B, 3, S, S], float32; equal, bit for bit, whatever the number of workers.

    Args:
        images: Where they come from.
        indices: B indices.
        preprocessing: The backbone's input.
        augmentation: None for preprocessing alone.
        seeds: One per image, needed with augmentation.
        workers: Decoding threads; None for one per available core.

    Raises:
        UserError: naming the image, if one cannot be read.
    """
    if augmentation is not None and (seeds is None or len(seeds) != len(indices)):
        raise ValueError("augmentation needs one seed per image")
    size = preprocessing.size
    pixels_BHWC = np.empty((len(indices), size, size, 3), dtype=np.uint8)

    def fill(places: range) -> None:
        for place in places:
            image = images.load(int(indices[place]))
            if augmentation is None or seeds is None:
                pixels_BHWC[place] = np.asarray(_fit(image, preprocessing))
            else:
                pixels_BHWC[place] = np.asarray(_augmented(image, preprocessing, augmentation, seeds[place]))

    workers = min(workers or available_cores(), max(1, len(indices)))
    if workers == 1:
        fill(range(len(indices)))
    else:
        with ThreadPoolExecutor(workers) as pool:
            # One task per thread: a task per image would cost more than resizing a small image does.
            list(pool.map(fill, [range(worker, len(indices), workers) for worker in range(workers)]))
    return normalise(torch.from_numpy(pixels_BHWC), preprocessing)


def available_cores() -> int:
    """Processors that this process may use."""
    if os.name == "posix" and os.uname().sysname == "Linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def normalise(pixels_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """8-bit pixels [B, S, S, 3] as network input [B, 3, S, S], float32: (pixel / 255 - mean) / std."""
    x_BCHW = pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return x_BCHW.div_(255).sub_(mean).div_(std)


def _fit(image: Image.Image, p: Preprocessing) -> Image.Image:
    """The part of the image that the network sees, S x S."""
    resampling = _RESAMPLING[p.interpolation]
    if p.fit == "squash":
        return image.resize((p.size, p.size), resampling)
    if p.fit == "pad":
        return _padded(image, p)
    image = _without_far_ends(image)
    shorter = math.floor(p.size / p.crop_fraction)
    # Rounding as in torchvision's Resize and CenterCrop, so that a model sees what it was evaluated with.
    if image.width <= image.height:
        resized = image.resize((shorter, int(shorter * image.height / image.width)), resampling)
    else:
        resized = image.resize((int(shorter * image.width / image.height), shorter), resampling)
    left, top = round((resized.width - p.size) / 2), round((resized.height - p.size) / 2)
    return resized.crop((left, top, left + p.size, top + p.size))


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut what the centre crop drops anyway: a 1 x 60000 strip would be enlarged to gigabytes before it is cropped."""
    width, height = image.size
    longest = 8 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _padded(image: Image.Image, p: Preprocessing) -> Image.Image:
    factor = p.size / max(image.size)
    inner = image.resize(
        (max(1, round(image.width * factor)), max(1, round(image.height * factor))), _RESAMPLING[p.interpolation]
    )
    r, g, b = (round(255 * m) for m in p.mean)  # nearest 8-bit value, so zero to within 1/2 / 255 / std once normalised
    canvas = Image.new("RGB", (p.size, p.size), (r, g, b))
    canvas.paste(inner, ((p.size - inner.width) // 2, (p.size - inner.height) // 2))
    return canvas


def _augmented(image: Image.Image, p: Preprocessing, config: AugmentConfig, seed: Seed) -> Image.Image:
    # Every number is drawn always and in this order, so that turning one part off does not change the others.
    rng = np.random.default_rng(seed)
    crop_u = rng.random(4)
    affine_u = rng.uniform(-1, 1, 4)
    jitter_u = rng.uniform(-1, 1, 3)
    flip_u = rng.random()
    out = _random_crop(image, p, config, crop_u) if config.scale_min < 1 or config.ratio > 1 else _fit(image, p)
    if config.rotate or config.translate or config.zoom:
        out = _moved(out, config, affine_u)
    if flip_u < config.flip:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if config.jitter:
        brightness, contrast, saturation = 1 + config.jitter * jitter_u
        out = ImageEnhance.Brightness(out).enhance(brightness)
        out = ImageEnhance.Contrast(out).enhance(contrast)
        out = ImageEnhance.Color(out).enhance(saturation)
    return out


def _random_crop(image: Image.Image, p: Preprocessing, config: AugmentConfig, u: NDArray[np.float64]) -> Image.Image:
    """A random part of what preprocessing would show, resized to S x S; u is [4] in [0, 1)."""
    if p.fit == "pad":
        image = _padded(image, p)
    width, height = float(image.width), float(image.height)
    if p.fit == "crop":
        width = height = min(image.size) * min(1.0, p.crop_fraction)
    area = config.scale_min + (1 - config.scale_min) * u[0]
    stretch = config.ratio ** ((2 * u[1] - 1) / 2)  # sides times and over it: they differ by ratio at most
    share_x, share_y = min(1.0, math.sqrt(area) * stretch), min(1.0, math.sqrt(area) / stretch)
    left = (image.width - width) / 2 + (1 - share_x) * width * u[2]
    top = (image.height - height) / 2 + (1 - share_y) * height * u[3]
    box = (left, top, min(left + share_x * width, image.width), min(top + share_y * height, image.height))
    return image.resize((p.size, p.size), _RESAMPLING[p.interpolation], box=box)


def _moved(image: Image.Image, config: AugmentConfig, u: NDArray[np.float64]) -> Image.Image:
    """Rotated, zoomed and shifted about the centre; u is [4] in [-1, 1).

    What comes in from outside takes the median colour of the image's border: digits on black stay on black.
    """
    size = image.width
    angle, zoom = math.radians(config.rotate * u[0]), (1 + config.zoom) ** u[1]
    shift_x, shift_y = config.translate * size * u[2], config.translate * size * u[3]
    cos, sin, centre = math.cos(angle) / zoom, math.sin(angle) / zoom, size / 2
    # Pillow wants the way back, from a place in the output to a place in the input.
    x, y = centre + shift_x, centre + shift_y
    matrix = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    pixels_HWC = np.asarray(image)
    border = np.concatenate([pixels_HWC[0], pixels_HWC[-1], pixels_HWC[:, 0], pixels_HWC[:, -1]])
    r, g, b = (int(v) for v in np.median(border, axis=0))
    # Bilinear, since bicubic takes three times as long and would be the larger part of all augmentation.
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=(r, g, b)
    )
