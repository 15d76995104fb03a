import math
from typing import Any

import numpy as np
import pytest

from keepsight.core import Dataset, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.load import load_dataset
from keepsight.data.stripes import stripe_mask, with_stripes

PIXELS = np.random.default_rng(0).integers(1, 200, (300, 28, 28), dtype=np.uint8)  # never a stripe's colour


def dataset(pixels: np.ndarray = PIXELS) -> Dataset:
    n = len(pixels)
    parts: Any = ("train",) * (n - 3) + ("test",) * 3
    return Dataset("digits", ArrayImages(pixels), np.arange(n) % 10, tuple("0123456789"), parts)


def pixels_of(data: Dataset) -> np.ndarray:
    return np.stack([np.asarray(data.images.load(i)) for i in range(len(data.images))])


def covered(pixels_NHWC: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return (pixels_NHWC == rgb).all(axis=3)


def test_the_formula_pixel_by_pixel() -> None:
    angle, offset = 0.7, 4.2
    mask = stripe_mask(28, 20, angle, offset)
    assert mask.shape == (28, 20)
    for x, y in ((0, 0), (19, 0), (0, 27), (7, 3), (11, 26)):
        assert mask[y, x] == ((x * math.cos(angle) + y * math.sin(angle) + offset) % 9 < 3.5)


def test_two_colours_have_the_same_geometry_and_are_opaque() -> None:
    white = pixels_of(with_stripes(dataset(), "white"))
    yellow = pixels_of(with_stripes(dataset(), "yellow"))
    mask = covered(white, (255, 255, 255))
    np.testing.assert_array_equal(mask, covered(yellow, (255, 165, 79)))
    plain = np.repeat(PIXELS[..., None], 3, axis=3)
    for striped in (white, yellow):
        np.testing.assert_array_equal(striped[~mask], plain[~mask])
    assert mask.any(axis=(1, 2)).all()
    assert not mask.all(axis=(1, 2)).any()


@pytest.mark.parametrize(("spacing", "width"), [(9.0, 3.5), (6.0, 1.5), (5.0, 5.0)])
def test_the_covered_share_is_width_over_spacing(spacing: float, width: float) -> None:
    mask = covered(with_stripes(PIXELS, "white", spacing=spacing, width=width), (255, 255, 255))
    assert mask.mean() == pytest.approx(width / spacing, abs=0.01)


def test_angles_and_offsets_are_spread_over_their_range() -> None:
    mask = covered(with_stripes(PIXELS, "white"), (255, 255, 255))
    assert len({m.tobytes() for m in mask}) > 290  # on so coarse a grid two may be the same by chance
    assert mask[:, 0, 0].mean() == pytest.approx(3.5 / 9, abs=0.1)  # there only the offset counts
    # Gradients along x and y change sign together for half the angles: neither half may be missing.
    steps = np.abs(np.diff(mask.astype(int), axis=2)).sum((1, 2)), np.abs(np.diff(mask.astype(int), axis=1)).sum((1, 2))
    assert 0.4 < (steps[0] > steps[1]).mean() < 0.6
    diagonal = mask[:, 1:, 1:] == mask[:, :-1, :-1]
    other = mask[:, 1:, :-1] == mask[:, :-1, 1:]
    assert 0.4 < (diagonal.mean((1, 2)) > other.mean((1, 2))).mean() < 0.6


def test_pixels_and_a_data_set_agree_and_nothing_is_changed() -> None:
    before = PIXELS.copy()
    np.testing.assert_array_equal(
        with_stripes(PIXELS, "yellow", seed=3), pixels_of(with_stripes(dataset(), "yellow", seed=3))
    )
    colour = np.repeat(PIXELS[..., None], 3, axis=3)
    np.testing.assert_array_equal(with_stripes(PIXELS, (1, 2, 3)), with_stripes(colour, (1, 2, 3)))
    np.testing.assert_array_equal(PIXELS, before)
    np.testing.assert_array_equal(colour, np.repeat(before[..., None], 3, axis=3))


def test_a_seed_is_repeatable_and_another_differs() -> None:
    once, again, other = (with_stripes(dataset(), "white", seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(pixels_of(once), pixels_of(again))
    assert (pixels_of(once) != pixels_of(other)).any(axis=(1, 2, 3)).all()
    # An image is the same whatever else is in the set, and whenever it is loaded.
    np.testing.assert_array_equal(pixels_of(with_stripes(dataset(PIXELS[:5]), "white")), pixels_of(once)[:5])


def test_hashes_are_of_what_is_seen() -> None:
    same = dataset(np.repeat(PIXELS[:1], 6, axis=0))
    changed = [with_stripes(same, "white"), with_stripes(same, "yellow"), with_stripes(same, "white", seed=1)]
    changed += [
        with_stripes(same, "white", 9.0, 2.0),
        with_stripes(same, "white", 8.0, 3.5),
        with_stripes(dataset(), "white"),
    ]
    hashes = {data.images.content_hash(0) for data in [same, *changed[:5]]}
    assert len(hashes) == 6
    assert changed[0].images.content_hash(0) == changed[5].images.content_hash(0)
    assert changed[0].images.content_hash(1) != changed[0].images.content_hash(0)  # the same digit, other stripes
    assert with_stripes(same, "white", 9, 3).images.content_hash(2) == with_stripes(
        same, "white", 9.0, 3.0
    ).images.content_hash(2)


def test_labels_parts_and_names_stay() -> None:
    plain, striped = dataset(), with_stripes(dataset(), "yellow")
    assert striped.name == "digits-yellow-stripes"
    assert (striped.classes, striped.parts) == (plain.classes, plain.parts)
    np.testing.assert_array_equal(striped.labels, plain.labels)
    assert striped.images.name(7) == plain.images.name(7)
    assert len(striped.images) == 300


def test_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepsight.assets.load_mnist_5k", lambda: (PIXELS[:20], np.arange(20) // 2))
    white, yellow = load_dataset("mnist-5k-white-stripes"), load_dataset("mnist-5k-yellow-stripes")
    assert (white.name, yellow.name) == ("mnist-5k-white-stripes", "mnist-5k-yellow-stripes")
    np.testing.assert_array_equal(pixels_of(white), with_stripes(PIXELS[:20], "white"))
    np.testing.assert_array_equal(pixels_of(yellow), with_stripes(PIXELS[:20], "yellow"))
    np.testing.assert_array_equal(white.labels, np.arange(20) // 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"colour": "green"}, "no colour 'green' .*white, yellow"),
        ({"colour": (0, 0, 256)}, "from 0 to 255"),
        ({"colour": (0, 0)}, "from 0 to 255"),
        ({"colour": "white", "width": 10.0}, "width <= spacing"),
        ({"colour": "white", "width": 0.0}, "width <= spacing"),
        ({"colour": "white", "spacing": math.inf}, "width <= spacing"),
        ({"colour": "white", "seed": -1}, "seed"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    for images in (PIXELS, dataset()):
        with pytest.raises(UserError, match=words):
            with_stripes(images, **arguments)


def test_bad_pixels() -> None:
    for pixels in (PIXELS.astype(float), PIXELS[0], np.zeros((2, 4, 4, 4), np.uint8)):
        with pytest.raises(UserError, match="uint8 and shape"):
            with_stripes(pixels, "white")
