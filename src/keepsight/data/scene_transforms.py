"""Scenes to network input: images, boxes and masks moved together (`data.moves`). Knows no task head.

All randomness is a pure function of the seed that comes with each image, so that a resumed run repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field
from torch import Tensor

from keepsight.core import Config, Preprocessing, UserError
from keepsight.core.scene import SceneDataset, Target
from keepsight.data.masks import decode_mask
from keepsight.data.moves import Placement as Placement
from keepsight.data.moves import Step, fitting, moved_boxes, moved_image, moved_masks
from keepsight.data.transforms import Seed, available_cores, normalise

DETR_SIZES = tuple(range(480, 801, 32))
"""The sides that DETR draws from (Carion and others, 2020, section 4); the backbone must take inputs of any of them."""

Words = Callable[[tuple[str, ...]], Tensor]
"""Captions of an image as word indices [C, T]."""


class SceneAugmentConfig(Config):
    """Light augmentation of scenes; with all off it is preprocessing exactly.

    Attributes:
        scale_min: The random crop keeps between this share and all of the area that preprocessing would show.
        ratio: The crop's sides differ by up to this factor, either way.
        crop: Probability of a crop at all; else everything is shown.
        zoom_out: Images that are not cropped are put onto a canvas (of the mean colour) up to this factor larger; 1 is off.
        jitter: Largest relative change of brightness, of contrast and of saturation.
        flip: Probability of a left-right flip. Off by default, since a flip makes captions about left and right wrong, and mirrors
            letters; set 0.5 for boxes and masks in natural photographs.
        min_visible: Objects of whose box less than this share is left are dropped.
        sizes: Sides of the input, px, of which each batch draws one, as the paper's multi-scale training (`DETR_SIZES`); none keeps
            the backbone's own.
    """

    scale_min: float = Field(default=0.6, gt=0, le=1)
    ratio: float = Field(default=1.25, ge=1)
    crop: float = Field(default=0.5, ge=0, le=1)
    zoom_out: float = Field(default=1.0, ge=1)
    jitter: float = Field(default=0.2, ge=0, lt=1)
    flip: float = Field(default=0.0, ge=0, le=1)
    min_visible: float = Field(default=0.25, ge=0, le=1)
    sizes: tuple[int, ...] = ()

    @classmethod
    def none(cls) -> SceneAugmentConfig:
        """Everything off."""
        return cls(scale_min=1, ratio=1, crop=0, zoom_out=1, jitter=0, flip=0)


def load_scene_batch(
    dataset: SceneDataset,
    indices: Sequence[int] | NDArray[np.int64],
    preprocessing: Preprocessing,
    augmentation: SceneAugmentConfig | None = None,
    seeds: Sequence[Seed] | None = None,
    masks: bool = False,
    words: Words | None = None,
    workers: int | None = None,
) -> tuple[Tensor, tuple[Target, ...]]:
    """Scenes by index as network input [B, 3, S, S], float32, and what is to be learnt of each.

    Without augmentation the images are those of `transforms.load_batch`, bit for bit. Crowd regions are left out, and so is
    what is not visible any more.

    Args:
        dataset: Where they come from.
        indices: B indices.
        preprocessing: The backbone's input.
        augmentation: None for preprocessing alone.
        seeds: One an image, needed with augmentation.
        masks: Give masks, too; objects without one are then left out, and so are those whose mask has no pixel at the input's size.
        words: Makes word indices of an image's captions; None gives none.
        workers: Decoding threads; None for one per available core.

    Raises:
        UserError: naming the image, if one cannot be read or is of another size than its annotations say.
    """
    if augmentation is not None and (seeds is None or len(seeds) != len(indices)):
        raise ValueError("augmentation needs one seed per image")
    if augmentation is not None and augmentation.sizes and seeds:
        drawn = np.random.default_rng((*_numbers(seeds[0]), 1)).choice(augmentation.sizes)
        preprocessing = preprocessing.model_copy(update={"size": int(drawn)})
    size = preprocessing.size
    pixels_BHWC = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    targets: list[Target] = [Target()] * len(indices)

    def fill(places: range) -> None:
        for place in places:
            seed = None if augmentation is None or seeds is None else seeds[place]
            image, target = _scene(dataset, int(indices[place]), preprocessing, augmentation, seed, masks, words)
            pixels_BHWC[place], targets[place] = np.asarray(image), target

    workers = min(workers or available_cores(), max(1, len(indices)))
    if workers == 1:
        fill(range(len(indices)))
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, [range(worker, len(indices), workers) for worker in range(workers)]))
    return normalise(torch.from_numpy(pixels_BHWC), preprocessing), tuple(targets)


def _numbers(seed: Seed) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)


def _scene(
    dataset: SceneDataset,
    index: int,
    p: Preprocessing,
    config: SceneAugmentConfig | None,
    seed: Seed | None,
    masks: bool,
    words: Words | None,
) -> tuple[Image.Image, Target]:
    """One image S x S with its target."""
    image = dataset.images.load(index)
    height, width = dataset.sizes[index].tolist()
    if image.size != (width, height):
        raise UserError(
            f"The image {dataset.images.name(index)} is {image.width} x {image.height} px, but its annotations are for "
            f"{width} x {height}: write the size of the file as it is."
        )
    # Every number is drawn always and in this order, so that turning one part off does not change the others.
    rng = np.random.default_rng(seed)
    crop_u, jitter_u, flip_u = rng.random(6), rng.uniform(-1, 1, 3), rng.random()
    if config is None:
        steps = fitting((height, width), p)
    else:
        steps = _drawn((height, width), p, config, crop_u)
        if flip_u < config.flip:
            steps = (*steps, Step("flip"))
    found = dataset.objects[index]
    kept = ~found.crowd
    if masks:
        kept &= np.array([mask is not None for mask in found.masks], dtype=bool)
    rows = np.flatnonzero(kept)
    boxes, labels = torch.from_numpy(found.boxes[rows]), torch.from_numpy(found.classes[rows])
    boxes_N4, left_N = moved_boxes(boxes, (height, width), steps)
    stays_N = left_N >= (config.min_visible if config is not None else 0)
    stays_N &= ((boxes_N4[:, 2:] - boxes_N4[:, :2]) > 0.5).all(dim=1)  # px: less is nothing at the input's size
    masks_NSS = torch.empty(0, 0, 0, dtype=torch.bool)
    if masks:
        stored = [decode_mask(rle) for row in rows.tolist() if (rle := found.masks[row]) is not None]
        masks_NSS = moved_masks(stored, p.size, steps)
        stays_N &= masks_NSS.flatten(1).any(dim=1)
        masks_NSS = masks_NSS[stays_N]
    out = moved_image(image, p, steps)
    if config is not None and config.jitter:
        brightness, contrast, saturation = 1 + config.jitter * jitter_u
        out = ImageEnhance.Brightness(out).enhance(brightness)
        out = ImageEnhance.Contrast(out).enhance(contrast)
        out = ImageEnhance.Color(out).enhance(saturation)
    boxes_N4 = boxes_N4[stays_N] / p.size
    centres = torch.cat([(boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2, boxes_N4[:, 2:] - boxes_N4[:, :2]], dim=1)
    target = Target(boxes=centres, classes=labels[stays_N], masks=masks_NSS)
    if words is not None:
        target = Target(target.boxes, target.classes, target.masks, words(dataset.captions[index]))
    return out, target


def _drawn(
    size: tuple[int, int], p: Preprocessing, config: SceneAugmentConfig, u: NDArray[np.float64]
) -> tuple[Step, ...]:
    """Preprocessing of a random part of what it would show, or of a larger canvas; u is [6] in [0, 1)."""
    height, width = size
    if u[0] < config.crop and (config.scale_min < 1 or config.ratio > 1):
        shown_h, shown_w = float(height), float(width)
        if p.fit == "crop":
            shown_h = shown_w = min(size) * min(1.0, p.crop_fraction)
        area = config.scale_min + (1 - config.scale_min) * u[1]
        stretch = config.ratio ** ((2 * u[2] - 1) / 2)  # sides times and over it: they differ by ratio at most
        w = max(1, round(shown_w * min(1.0, math.sqrt(area) * stretch)))
        h = max(1, round(shown_h * min(1.0, math.sqrt(area) / stretch)))
        left = int((width - shown_w) / 2 + (shown_w - w) * u[3])
        top = int((height - shown_h) / 2 + (shown_h - h) * u[4])
        if p.fit == "pad":
            return (Step("crop", (top, left, h, w)), *fitting((h, w), p))
        return (Step("crop", (top, left, h, w)), Step("resize", (p.size, p.size)))
    factor = 1 + (config.zoom_out - 1) * u[5]
    more_h, more_w = round(height * (factor - 1)), round(width * (factor - 1))
    if not more_h and not more_w:
        return fitting(size, p)
    left, top = int(more_w * u[3]), int(more_h * u[4])
    pad = Step("pad", (left, top, more_w - left, more_h - top))
    return (pad, *fitting((height + more_h, width + more_w), p))
