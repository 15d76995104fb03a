"""Moves of images, boxes and masks alike, and the way back to stored pixels. Knows no data set and draws nothing.

Every move (crop, resize, pad, flip) is one step, carried out by torchvision's v2 functions on the image, the boxes and the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from keepsight.core import Preprocessing


@dataclass(frozen=True, slots=True)
class Step:
    """One move: crop (top, left, height, width), resize (height, width), pad (left, top, right, bottom), or flip ()."""

    kind: Literal["crop", "resize", "pad", "flip"]
    values: tuple[int, ...] = ()


def fitting(size: tuple[int, int], p: Preprocessing) -> tuple[Step, ...]:
    """The steps of preprocessing, as `transforms.preprocess` takes them; sizes are height, width."""
    height, width = size
    side = (p.size, p.size)
    if p.fit == "squash":
        return (Step("resize", side),)
    if p.fit == "pad":
        factor = p.size / max(size)
        inner = (max(1, round(height * factor)), max(1, round(width * factor)))
        top, left = (p.size - inner[0]) // 2, (p.size - inner[1]) // 2
        pad = (left, top, p.size - inner[1] - left, p.size - inner[0] - top)
        return (Step("resize", inner), Step("pad", pad))
    steps: list[Step] = []
    longest = 8 * min(size)  # a strip would be enlarged to gigabytes before it is cropped
    if max(size) > longest:
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        height, width = min(height, longest), min(width, longest)
        steps.append(Step("crop", (top, left, height, width)))
    shorter = math.floor(p.size / p.crop_fraction)
    if width <= height:
        resized = (int(shorter * height / width), shorter)
    else:
        resized = (shorter, int(shorter * width / height))
    top, left = round((resized[0] - p.size) / 2), round((resized[1] - p.size) / 2)
    return (*steps, Step("resize", resized), Step("crop", (top, left, *side)))


def moved_image(image: Image.Image, p: Preprocessing, steps: Sequence[Step]) -> Image.Image:
    """The image after the steps; what is padded takes the mean colour."""
    fill = [round(255 * mean) for mean in p.mean]
    for step in steps:
        image = _moved(image, step, InterpolationMode(p.interpolation), fill)
    return image


def _moved(thing: Any, step: Step, interpolation: InterpolationMode, fill: Any) -> Any:
    """A Pillow image, boxes or masks after one step."""
    match step.kind:
        case "crop":
            return TF.crop(thing, *step.values)
        case "resize":
            return TF.resize(thing, list(step.values), interpolation=interpolation, antialias=True)
        case "pad":
            return TF.pad(thing, list(step.values), fill=fill)
        case "flip":
            return TF.horizontal_flip(thing)


def moved_boxes(boxes_N4: Tensor, size: tuple[int, int], steps: Sequence[Step]) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] in px of the input, cut off at its border, and which share of each is left [N]."""
    moved: Any = tv_tensors.BoundingBoxes(boxes_N4, format="XYXY", canvas_size=size)
    scale = 1.0
    for step in steps:
        before = moved.canvas_size
        moved = _moved(moved, step, InterpolationMode.BILINEAR, 0)
        if step.kind == "resize":
            scale *= step.values[0] / before[0] * step.values[1] / before[1]
    height, width = moved.canvas_size
    plain: Tensor = moved.as_subclass(Tensor).clamp(min=0)
    plain = torch.minimum(plain, plain.new_tensor([width, height, width, height]))
    areas = ((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])) * scale
    left = (plain[:, 2] - plain[:, 0]) * (plain[:, 3] - plain[:, 1])
    return plain, left / areas.clamp(min=1e-12)


def moved_masks(masks: Sequence[NDArray[np.bool_]], side: int, steps: Sequence[Step]) -> Tensor:
    """Masks [N, S, S]: a pixel of the input is in a mask if at least half of it is.

    Resized as images, with antialiasing: nearest-neighbour resizing, torchvision's rule for its masks, takes the upper left of the
    pixels that become one and so moves masks against images by up to half a pixel of the input.
    """
    if not masks:
        return torch.empty(0, side, side, dtype=torch.bool)
    stacked = torch.from_numpy(np.stack(masks)).to(torch.float32)
    moved: Any = tv_tensors.Image(stacked)
    for step in steps:
        moved = _moved(moved, step, InterpolationMode.BILINEAR, 0)
    plain: Tensor = moved.as_subclass(Tensor)
    return plain >= 0.5


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image's pixels are in the network's input after preprocessing (without augmentation), and the way back.

    A point (x, y) of the stored image, px, is at (x * scale_x + shift_x, y * scale_y + shift_y) px of the input.

    Example:
        >>> wanted = Preprocessing(size=100, mean=(0, 0, 0), std=(1, 1, 1), fit="pad")
        >>> placement = Placement.of((50, 200), wanted)  # height, width
        >>> placement.boxes(torch.tensor([[0.0, 0.4, 0.5, 1.0]])).tolist()
        [[0.0, 6.0, 100.0, 50.0]]
    """

    size: tuple[int, int]
    side: int
    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float

    @classmethod
    def of(cls, size: tuple[int, int], preprocessing: Preprocessing) -> Placement:
        """The placement of an image of the size (height, width)."""
        sx = sy = 1.0
        tx = ty = 0.0
        height, width = size
        for step in fitting(size, preprocessing):
            match step.kind:
                case "crop":
                    ty, tx = ty - step.values[0], tx - step.values[1]
                    height, width = step.values[2:]
                case "resize":
                    fy, fx = step.values[0] / height, step.values[1] / width
                    sx, sy, tx, ty = sx * fx, sy * fy, tx * fx, ty * fy
                    height, width = step.values
                case "pad":
                    tx, ty = tx + step.values[0], ty + step.values[1]
                    height, width = height + step.values[1] + step.values[3], width + step.values[0] + step.values[2]
        return cls(size, preprocessing.size, sx, sy, tx, ty)

    def boxes(self, boxes_N4: Tensor) -> Tensor:
        """Left, top, right, bottom in units of the input's side, as `Answer` has them, in px of the stored image and within it."""
        shift = boxes_N4.new_tensor([self.shift_x, self.shift_y] * 2)
        scale = boxes_N4.new_tensor([self.scale_x, self.scale_y] * 2)
        height, width = self.size
        pixels = (boxes_N4 * self.side - shift) / scale
        return torch.minimum(pixels.clamp(min=0), pixels.new_tensor([width, height, width, height]))

    def masks(self, masks_NSS: Tensor) -> Tensor:
        """Masks [N, S, S] of the input's pixels as masks [N, h, w] of the stored image; False where the input did not reach."""
        height, width = self.size
        # Pixel centres of the stored image, in grid_sample's units: -1 and 1 are the borders of the input.
        x = ((torch.arange(width) + 0.5) * self.scale_x + self.shift_x) * (2 / self.side) - 1
        y = ((torch.arange(height) + 0.5) * self.scale_y + self.shift_y) * (2 / self.side) - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].to(masks_NSS.device)
        inside = (grid.abs() <= 1).all(dim=-1)[0]
        out = torch.zeros((len(masks_NSS), height, width), dtype=torch.bool, device=masks_NSS.device)
        for number, mask_SS in enumerate(masks_NSS):  # one at a time: 100 masks of a photograph as floats are gigabytes
            found = F.grid_sample(mask_SS[None, None].float(), grid, padding_mode="border", align_corners=False)
            out[number] = (found[0, 0] >= 0.5) & inside
        return out
