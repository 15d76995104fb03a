import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.files import FileImages, read_image
from keepsight.data.pixels import to_rgb


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "tiff", "ppm", "webp"])
def test_lossless_formats_give_the_pixels_back(tmp_path: Path, suffix: str) -> None:
    pixels = np.repeat(noise(6, 5, 1)[:, :, None], 3, axis=2)  # grey, which GIF's palette holds exactly
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels), **options)
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), pixels)


def test_jpeg_is_near(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.JPEG", Image.new("RGB", (16, 16), (200, 100, 50)), quality=95)
    assert np.abs(np.asarray(read_image(path)).astype(int) - (200, 100, 50)).max() <= 3


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = noise(4, 7)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = saved(tmp_path / "a.png", image, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.rot90(pixels, k=-1))


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.new("CMYK", (2, 2), (0, 255, 255, 0)))
    assert read_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_transparent_palette_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = saved(tmp_path / "a.png", image, transparency=0)
    read = read_image(path)
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert read.getpixel((1, 0)) == (200, 100, 50)


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGBA", (1, 1), (0, 0, 0, 51)))
    assert read_image(path).getpixel((0, 0)) == (204, 204, 204)
    assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 200, 257, 32768, 65535]], dtype=np.uint16)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(np.asarray(read_image(path))[0, :, 1], [0, 1, 1, 128, 255])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "YCbCr", "HSV"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_one_pixel(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (1, 1), 7))
    assert read_image(path).getpixel((0, 0)) == (7, 7, 7)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("L", (3, 3), grey) for grey in (10, 200)]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_image(path).getpixel((1, 1)) == (10, 10, 10)


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def bad_bytes(kind: str) -> bytes:
    tiff = io.BytesIO()
    if kind == "float":
        Image.fromarray(np.zeros((2, 2), np.float32)).save(tiff, "TIFF")
    elif kind == "negative":
        Image.fromarray(np.full((2, 2), -1, np.int32)).save(tiff, "TIFF")
    return {
        "empty": b"",
        "text": b"this is a text that calls itself an image",
        "truncated": png_bytes()[:900],
        "header only": png_bytes()[:20],
        "damaged": png_bytes()[:100] + bytes(300) + png_bytes()[400:],
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        "float": tiff.getvalue(),
        "negative": tiff.getvalue(),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "empty (0 bytes)"),
        ("text", "none of PNG, JPEG"),
        ("truncated", "truncated"),
        ("header only", "replace it"),
        ("damaged", "damaged"),
        ("postscript", "none of PNG, JPEG"),
        ("float", "floating-point"),
        ("negative", "outside 0..65535"),
    ],
)
def test_bad_files_are_named_in_one_sentence(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(bad_bytes(kind))
    with pytest.raises(UserError) as error:
        read_image(path)
    message = str(error.value)
    assert str(path) in message
    assert words in message
    assert "\n" not in message
    assert ". " not in message
    assert message.endswith(".")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = png_bytes()
    path = tmp_path / "cut.png"
    for length in range(
        0, len(whole) - 12, 61
    ):  # the last 12 bytes are the end marker, without which no pixel is missing
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.png"):
            read_image(path)


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "big.png", Image.new("L", (40, 30)))
    for limit in (1199, 599):  # Pillow itself warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match=rf"big\.png .*{limit:,} pixels"):
            read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1200)
    assert read_image(path).size == (40, 30)


def test_file_images_names_hashes_and_errors(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    path = saved(tmp_path / "sub" / "a.png", Image.new("RGB", (3, 2), "red"))
    images = FileImages(tmp_path, ["sub/a.png", str(path), "gone.png"])
    assert len(images) == 3
    assert images.name(0) == "sub/a.png"
    assert images.load(0).size == (3, 2)
    assert images.content_hash(0) == images.content_hash(1) == hashlib.sha256(path.read_bytes()).digest()
    for use in (images.load, images.content_hash):
        with pytest.raises(UserError, match=r"gone\.png"):
            use(2)


def test_array_images() -> None:
    grey, colour = noise(2, 4, 5), noise(4, 5)[None]
    images = ArrayImages(grey[:, :, :])
    assert (len(images), images.name(1)) == (2, "1")
    np.testing.assert_array_equal(np.asarray(images.load(1))[:, :, 2], grey[1])
    np.testing.assert_array_equal(np.asarray(ArrayImages(colour).load(0)), colour[0])
    assert images.content_hash(0) != images.content_hash(1)
    turned = ArrayImages(np.asfortranarray(grey))
    assert turned.content_hash(0) == images.content_hash(0)
    flat = ArrayImages(np.zeros((1, 2, 8), np.uint8)), ArrayImages(np.zeros((1, 4, 4), np.uint8))
    assert flat[0].content_hash(0) != flat[1].content_hash(0)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 3, 3)), np.zeros((3, 3), np.uint8), np.zeros((2, 3, 3, 5), np.uint8), np.zeros((2, 0, 3), np.uint8)],
)
def test_array_images_refuse_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(UserError, match="uint8"):
        ArrayImages(pixels)
