"""Boxes, masks and images stay together, whatever moves them; and answers find back to the stored image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from keepsight.core import Preprocessing, UserError
from keepsight.core.scene import Objects, SceneDataset
from keepsight.data.arrays import ArrayImages
from keepsight.data.masks import encode_mask, mask_box
from keepsight.data.scene_transforms import Placement, SceneAugmentConfig, load_scene_batch
from keepsight.data.transforms import load_batch

Fit = Literal["crop", "squash", "pad"]
FITS: tuple[Fit, ...] = ("crop", "squash", "pad")
SIDE = 64
BOXES = ((20, 10, 50, 40), (60, 20, 100, 60))
COLOURS = ((255, 0, 0), (0, 255, 0))


def wanted(fit: Fit) -> Preprocessing:
    return Preprocessing(size=SIDE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), fit=fit, interpolation="bilinear")


def scenes(height: int = 90, width: int = 120, boxes: tuple[tuple[int, int, int, int], ...] = BOXES) -> SceneDataset:
    """One image with coloured rectangles on black, and a crowd region over all of it."""
    pixels = np.zeros((1, height, width, 3), np.uint8)
    masks: list[NDArray[np.bool_]] = []
    for (left, top, right, bottom), colour in zip(boxes, COLOURS, strict=True):
        mask = np.zeros((height, width), bool)
        mask[top:bottom, left:right] = True
        masks.append(mask)
        pixels[0, mask] = colour
    masks.append(np.ones((height, width), bool))
    encoded = tuple(encode_mask(mask) for mask in masks)
    objects = Objects(
        np.array([mask_box(mask) for mask in encoded]), np.array([0, 1, 0]), np.array([False, False, True]), encoded
    )
    return SceneDataset(
        name="rectangles",
        images=ArrayImages(pixels),
        sizes=np.array([[height, width]]),
        objects=(objects,),
        captions=(("red left of green",),),
        classes=("red", "green"),
        category_ids=(1, 2),
        image_ids=(1,),
        parts=("train",),
    )


def box_of(mask_SS: torch.Tensor) -> torch.Tensor:
    """Left, top, right, bottom of a mask, px."""
    y, x = mask_SS.nonzero(as_tuple=True)
    return torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


def corners(boxes_N4: torch.Tensor) -> torch.Tensor:
    """From centres and sizes in shares to corners in px."""
    return torch.cat([boxes_N4[:, :2] - boxes_N4[:, 2:] / 2, boxes_N4[:, :2] + boxes_N4[:, 2:] / 2], 1) * SIDE


@pytest.mark.parametrize("fit", FITS)
def test_without_augmentation_images_are_those_of_classification(fit: Fit) -> None:
    data = scenes()
    images, (target,) = load_scene_batch(data, [0], wanted(fit))
    torch.testing.assert_close(images, load_batch(data.images, [0], wanted(fit)), rtol=0, atol=0)
    assert target.classes.tolist() == [0, 1]  # the crowd region is left out
    assert target.masks.shape == (0, 0, 0)
    assert target.words.shape == (0, 0)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("seed", range(12))
def test_boxes_masks_and_pixels_stay_together(fit: Fit, seed: int) -> None:
    config = SceneAugmentConfig(flip=0.5, zoom_out=2.0, jitter=0)
    images, (target,) = load_scene_batch(scenes(), [0], wanted(fit), config, [(seed, 3)], masks=True)
    assert len(target.classes)
    for box, label, mask in zip(corners(target.boxes), target.classes, target.masks, strict=True):
        torch.testing.assert_close(box_of(mask), box, rtol=0, atol=1.01)
        coloured = images[0, int(label)] > 0.5
        different = (coloured != mask).sum()
        assert different <= 2 * (mask.shape[0] + mask.shape[1]) * 0.25  # at edges only, by rounding


def test_flips_move_left_to_right() -> None:
    flip = SceneAugmentConfig.none().model_copy(update={"flip": 1.0})
    plain, (before,) = load_scene_batch(scenes(), [0], wanted("squash"), masks=True)
    flipped, (after,) = load_scene_batch(scenes(), [0], wanted("squash"), flip, [0], masks=True)
    torch.testing.assert_close(flipped, plain.flip(3), rtol=0, atol=0)
    torch.testing.assert_close(after.boxes[:, 0], 1 - before.boxes[:, 0])
    assert torch.equal(after.masks, before.masks.flip(2))


def test_everything_off_is_preprocessing() -> None:
    plain, (before,) = load_scene_batch(scenes(), [0], wanted("pad"), masks=True)
    off, (after,) = load_scene_batch(scenes(), [0], wanted("pad"), SceneAugmentConfig.none(), [5], masks=True)
    assert torch.equal(plain, off)
    assert torch.equal(before.boxes, after.boxes)
    assert torch.equal(before.masks, after.masks)


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    config = SceneAugmentConfig(crop=1.0)
    a, (one,) = load_scene_batch(scenes(), [0], wanted("crop"), config, [(1, 2, 3)], masks=True)
    b, (two,) = load_scene_batch(scenes(), [0], wanted("crop"), config, [(1, 2, 3)], masks=True)
    c, _ = load_scene_batch(scenes(), [0], wanted("crop"), config, [(1, 2, 4)], masks=True)
    assert torch.equal(a, b)
    assert torch.equal(one.boxes, two.boxes)
    assert not torch.equal(a, c)


def test_objects_cropped_away_are_dropped() -> None:
    data = scenes(60, 180, ((2, 10, 30, 40), (80, 10, 100, 40)))  # the centre crop shows columns 60 to 120
    _, (target,) = load_scene_batch(data, [0], wanted("crop"), masks=True)
    assert target.classes.tolist() == [1]
    assert len(target.masks) == 1
    partly = scenes(60, 180, ((32, 10, 64, 40), (80, 10, 100, 40)))  # an eighth of the first one is within
    _, (kept,) = load_scene_batch(partly, [0], wanted("crop"))
    assert kept.classes.tolist() == [0, 1]
    off = SceneAugmentConfig.none()  # but augmentation asks for a quarter
    _, (dropped,) = load_scene_batch(partly, [0], wanted("crop"), off, [0])
    assert dropped.classes.tolist() == [1]


def test_words_and_sizes() -> None:
    seen: list[tuple[str, ...]] = []

    def words(captions: tuple[str, ...]) -> torch.Tensor:
        seen.append(captions)
        return torch.tensor([[1, 5, 2]])

    config = SceneAugmentConfig(sizes=(32, 48))
    sides = set()
    for seed in range(8):
        images, (target,) = load_scene_batch(scenes(), [0], wanted("squash"), config, [seed], masks=True, words=words)
        assert target.masks.shape[1:] == images.shape[2:]
        sides.add(images.shape[3])
    assert sides == {32, 48}
    assert seen[0] == ("red left of green",)
    assert target.words.tolist() == [[1, 5, 2]]


def test_an_image_of_another_size_is_refused() -> None:
    data = scenes()
    data.sizes[0] = (120, 90)
    with pytest.raises(UserError, match=r"is 120 x 90 px, but its annotations are for 90 x 120"):
        load_scene_batch(data, [0], wanted("pad"))


@pytest.mark.parametrize("fit", FITS)
def test_answers_find_back_to_the_stored_pixels(fit: Fit) -> None:
    data = scenes(90, 120, ((40, 10, 60, 40), (62, 20, 90, 60)))  # all within the centre crop
    _, (target,) = load_scene_batch(data, [0], wanted(fit), masks=True)
    placement = Placement.of((90, 120), wanted(fit))
    back = placement.boxes(corners(target.boxes) / SIDE)
    torch.testing.assert_close(back, torch.from_numpy(data.objects[0].boxes[:2]), rtol=0, atol=1e-3)
    for mask, box in zip(placement.masks(target.masks), data.objects[0].boxes, strict=False):
        assert mask.shape == (90, 120)
        torch.testing.assert_close(box_of(mask), torch.from_numpy(box), rtol=0, atol=1.5)
    whole = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    shown = placement.masks(whole)[0]
    assert int(shown.sum()) == (90 * 90 if fit == "crop" else 90 * 120)


def test_boxes_beyond_the_image_are_cut_off_at_its_border() -> None:
    placement = Placement.of((50, 200), wanted("pad"))
    assert placement.boxes(torch.tensor([[0.0, 0.0, 1.0, 1.0]])).tolist() == [[0, 0, 200, 50]]
