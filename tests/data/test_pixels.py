from pathlib import Path

import numpy as np
import pytest
from astropy.visualization import AsinhStretch, LogStretch, SqrtStretch
from PIL import Image
from pydantic import ValidationError

from keepsight.core import UserError
from keepsight.data.arrays import ArrayImages, PillowImages
from keepsight.data.files import FileImages, read_image
from keepsight.data.folder import read_folder
from keepsight.data.pixels import PixelConfig, PixelError, to_image, to_rgb


def grey(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all()
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()
    return pixels[:, :, 0]


def test_defaults_are_the_stored_pixels_of_every_8_and_16_bit_value() -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    sixteen = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(grey(to_image(eight)), eight)
    np.testing.assert_array_equal(grey(to_image(sixteen)), np.rint(sixteen.astype(np.int64) / 257))
    np.testing.assert_array_equal(grey(to_rgb(Image.fromarray(sixteen))), np.rint(sixteen.astype(np.int64) / 257))
    np.testing.assert_array_equal(grey(to_image(sixteen.astype(">u2"))), grey(to_image(sixteen)))
    np.testing.assert_array_equal(grey(to_image(np.eye(3, dtype=bool))), 255 * np.eye(3))


def test_shapes_and_channels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 6, 5), dtype=np.uint8)
    rgb = values[:, :, :3]
    np.testing.assert_array_equal(np.asarray(to_image(rgb)), rgb)
    first = PixelConfig(channels_first=True)
    np.testing.assert_array_equal(np.asarray(to_image(rgb.transpose(2, 0, 1), first)), rgb)
    chosen = to_image(values, PixelConfig(channels=(4, 0, 2)))
    np.testing.assert_array_equal(np.asarray(chosen), values[:, :, [4, 0, 2]])
    np.testing.assert_array_equal(grey(to_image(values, PixelConfig(channels=(3,)))), values[:, :, 3])
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    assert [to_image(rgba).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]
    deep = rgba.astype(np.uint16) * 257
    assert [to_image(deep).getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (255, 255, 255)]


def test_channels_of_pillow_images() -> None:
    image = Image.new("RGBA", (1, 1), (10, 20, 30, 40))
    assert to_rgb(image, PixelConfig(channels=(2, 1, 0))).getpixel((0, 0)) == (30, 20, 10)
    assert to_rgb(image, PixelConfig(channels=(3,))).getpixel((0, 0)) == (40, 40, 40)
    assert (
        to_rgb(Image.new("L", (1, 1), 9), PixelConfig(channels=(0,), channels_first=True)).getpixel((0, 0)) == (9,) * 3
    )
    with pytest.raises(PixelError, match="no channel 1"):
        to_rgb(Image.new("L", (1, 1)), PixelConfig(channels=(1,)))


@pytest.mark.parametrize(
    ("stretch", "reference"),
    [("sqrt", SqrtStretch()), ("log", LogStretch(a=1000)), ("asinh", AsinhStretch(a=0.1)), ("linear", lambda t: t)],
)
def test_stretches_are_astropys(stretch: str, reference: object) -> None:
    values = np.linspace(-3, 12, 400).reshape(20, 20)
    image = to_image(values, PixelConfig(value_range=(0, 10), stretch=stretch))
    t = np.clip(values / 10, 0, 1)
    expected = 255 * reference(t)  # type: ignore[operator]
    np.testing.assert_allclose(grey(image), expected, atol=0.5 + 1e-6)


def test_percentiles_are_of_this_image_over_all_used_channels() -> None:
    values = np.random.default_rng(1).normal(size=(30, 40, 6)) * np.arange(1, 7)
    config = PixelConfig(channels=(0, 2, 1), value_range="percentile", percentiles=(2, 90))
    used = values[:, :, [0, 2, 1]]
    low, high = np.percentile(used, (2, 90))
    expected = np.rint(255 * np.clip((used - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(np.asarray(to_image(values, config)), expected)
    flat = to_image(np.full((3, 3), 7.5), PixelConfig(value_range="percentile"))
    np.testing.assert_array_equal(grey(flat), 0)


def test_fill_and_not_finite_values() -> None:
    values = np.array([[0.0, np.nan], [np.inf, 10.0]])
    with pytest.raises(PixelError, match="2 of its values are NaN or infinite"):
        to_image(values, PixelConfig(value_range=(0, 10)))
    image = to_image(values, PixelConfig(value_range=(0, 10), fill=4))
    np.testing.assert_array_equal(grey(image), [[0, 102], [102, 255]])
    filled = to_image(values, PixelConfig(value_range="percentile", percentiles=(0, 100), fill=-1e9))
    np.testing.assert_array_equal(grey(filled), [[0, 0], [0, 255]])  # the fill does not move the percentiles
    with pytest.raises(PixelError, match="none of its values is finite"):
        to_image(np.full((2, 2), np.nan), PixelConfig(value_range="percentile", fill=0))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 2), np.int16), "int16, not uint8 or uint16"),
        (np.zeros((2, 2), np.float32), "float32, not uint8 or uint16"),
        (np.zeros((2, 2), np.complex64), "numbers were expected"),
        (np.zeros((2, 2, 5), np.uint8), "5 channels"),
        (np.zeros((2, 2, 4)), "4 channels"),
        (np.zeros((3, 50, 50), np.uint8), "channels_first"),
        (np.zeros((2,), np.uint8), r"shape \[2\]"),
        (np.zeros((0, 2), np.uint8), r"shape \[0, 2, 1\]"),
    ],
)
def test_what_the_defaults_do_not_cover(values: np.ndarray, words: str) -> None:
    with pytest.raises(PixelError, match=words):
        to_image(values)


@pytest.mark.parametrize(
    "bad",
    [
        {"channels": (0, 1)},
        {"channels": (-1,)},
        {"channels": ()},
        {"value_range": (3, 3)},
        {"value_range": "full"},
        {"percentiles": (50, 20)},
        {"percentiles": (0, 101)},
        {"max_pixels": 0},
        {"fill": float("nan")},
        {"stretches": "log"},
    ],
)
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PixelConfig(**bad)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    config = PixelConfig(channels=(4, 1, 0), value_range=(-1, 2.5), stretch="asinh", fill=0)
    assert PixelConfig.model_validate_json(config.model_dump_json()) == config


def test_content_hashes_know_the_settings(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    plain = FileImages(tmp_path, ["a.png"]).content_hash(0)
    settings = [
        PixelConfig(channels=(0,)),
        PixelConfig(channels=(1,)),
        PixelConfig(stretch="log"),
        PixelConfig(value_range=(0, 9)),
        PixelConfig(value_range="percentile"),
        PixelConfig(value_range="percentile", percentiles=(1, 99)),
        PixelConfig(fill=0),
    ]
    hashes = {plain, *(FileImages(tmp_path, ["a.png"], config).content_hash(0) for config in settings)}
    assert len(hashes) == 1 + len(settings)
    assert all(len(digest) == 32 for digest in hashes)
    assert FileImages(tmp_path, ["a.png"], PixelConfig(max_pixels=10**6)).content_hash(0) == plain
    array = np.zeros((1, 2, 2), np.uint8)
    assert ArrayImages(array).content_hash(0) != ArrayImages(array, settings[2]).content_hash(0)
    assert ArrayImages(array).content_hash(0) != ArrayImages(array.view(bool)).content_hash(0)


def test_floats_need_a_range_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.tif"
    Image.fromarray(np.array([[0.0, 1.0]], np.float32)).save(path)
    with pytest.raises(UserError, match=r"f\.tif .*floating-point.*value_range"):
        read_image(path)
    np.testing.assert_array_equal(grey(read_image(path, PixelConfig(value_range=(0, 2)))), [[0, 128]])
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(path)
    with pytest.raises(UserError, match=r"f\.tif .*1 of its values .*fill"):
        read_image(path, PixelConfig(value_range=(0, 2)))
    Image.fromarray(np.array([[-10, 90]], np.int32)).save(path)
    np.testing.assert_array_equal(grey(read_image(path, PixelConfig(value_range=(-10, 90)))), [[0, 255]])


def test_exif_orientation_and_16_bit_come_before_the_settings(tmp_path: Path) -> None:
    values = np.array([[0, 1000], [2000, 4000]], np.uint16)
    image = Image.fromarray(values)
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png", PixelConfig(value_range=(0, 4000)))
    np.testing.assert_array_equal(grey(read), np.rint(values[::-1, ::-1] / 4000 * 255))
    stretched = read_image(tmp_path / "a.png", PixelConfig(stretch="sqrt"))
    np.testing.assert_allclose(grey(stretched), 255 * np.sqrt(values[::-1, ::-1] / 65535), atol=0.51)


def test_max_pixels_below_and_above_pillows_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    Image.new("L", (40, 30)).save(path)
    with pytest.raises(UserError, match=r"big\.png .*1,199 pixels"):
        read_image(path, PixelConfig(max_pixels=1199))
    assert read_image(path, PixelConfig(max_pixels=1200)).size == (40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path, PixelConfig(max_pixels=1200)).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(UserError, match="100 pixels"):
        PillowImages([Image.new("L", (40, 30))]).load(0)
    with pytest.raises(PixelError, match="100 pixels"):
        to_image(np.zeros((40, 30), np.uint8))


def test_arrays_with_settings() -> None:
    values = np.random.default_rng(0).normal(size=(3, 7, 5, 6)).astype(np.float32)
    images = ArrayImages(values, PixelConfig(channels=(6, 0, 1), channels_first=True, value_range=(-2, 2)))
    assert images.load(1).size == (6, 5)
    expected = np.rint(255 * np.clip((values[1, [6, 0, 1]] + 2) / 4, 0, 1)).transpose(1, 2, 0)
    np.testing.assert_allclose(np.asarray(images.load(1)), expected, atol=1)
    with pytest.raises(UserError, match="channels_first"):
        ArrayImages(values)
    broken = values[:, 0].copy()
    broken[2, 0, 0] = np.nan
    with pytest.raises(UserError, match=r"number 2 of the array .*NaN"):
        ArrayImages(broken, PixelConfig(value_range=(0, 1))).load(2)
    with pytest.raises(UserError, match=r"number 0 of the list .*floating"):
        PillowImages([Image.new("F", (2, 2))]).load(0)


def test_a_folder_passes_the_settings_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (2, 2), 50).save(tmp_path / name / "1.png")
    data = read_folder(tmp_path, PixelConfig(value_range=(0, 100)))
    assert data.images.load(0).getpixel((0, 0)) == (128, 128, 128)
