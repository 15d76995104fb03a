import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from timm.data import create_transform
from torchvision.transforms import v2

from keepsight.core import Preprocessing, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.files import FileImages
from keepsight.data.transforms import AugmentConfig, augment, load_batch, preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
P = Preprocessing(size=24, mean=MEAN, std=STD)
PLAIN = Preprocessing(size=24, mean=(0, 0, 0), std=(1, 1, 1))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with a little noise, which tells directions and sizes apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x / 3)], axis=2)
    return Image.fromarray(np.clip(base + rng.normal(0, 8, base.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(24, 24), (40, 24), (24, 41), (100, 67), (13, 17), (28, 28), (1, 1), (3, 20)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_crop_is_torchvisions(size: tuple[int, int], interpolation: str, crop_fraction: float) -> None:
    p = Preprocessing(size=24, mean=MEAN, std=STD, interpolation=interpolation, crop_fraction=crop_fraction)  # type: ignore[arg-type]
    reference = v2.Compose(
        [
            v2.Resize(int(24 / crop_fraction), interpolation=getattr(v2.InterpolationMode, interpolation.upper())),
            v2.CenterCrop(24),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    image = picture(*size)
    torch.testing.assert_close(preprocess(image, p), reference(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("crop_fraction", [1.0, 0.9])
def test_crop_is_timms(crop_fraction: float) -> None:
    reference = create_transform(
        (3, 24, 24), mean=MEAN, std=STD, interpolation="bicubic", crop_pct=crop_fraction, crop_mode="center"
    )
    image = picture(61, 45)
    p = Preprocessing(size=24, mean=MEAN, std=STD, crop_fraction=crop_fraction)
    torch.testing.assert_close(preprocess(image, p), reference(image), rtol=0, atol=1e-6)


def test_squash_is_torchvisions() -> None:
    p = PLAIN.model_copy(update={"fit": "squash"})
    image = picture(50, 31)
    resize = v2.Resize((24, 24), interpolation=v2.InterpolationMode.BICUBIC)
    reference = v2.functional.pil_to_tensor(resize(image)) / 255
    torch.testing.assert_close(preprocess(image, p), reference)


def test_pad_keeps_everything_and_fills_with_the_mean() -> None:
    p = P.model_copy(update={"fit": "pad"})
    x = preprocess(Image.new("RGB", (48, 24), "white"), p)
    white = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(x[:, 6:18], white.view(3, 1, 1).expand(3, 12, 24))
    outside = torch.cat([x[:, :6], x[:, 18:]], dim=1)
    assert outside.abs().max() <= 0.5 / 255 / min(STD) + 1e-6
    assert preprocess(Image.new("RGB", (1, 900)), p).shape == (3, 24, 24)


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_strips_need_little_memory(size: tuple[int, int], fit: str) -> None:
    p = Preprocessing(size=518, mean=MEAN, std=STD, fit=fit)  # type: ignore[arg-type]
    x = preprocess(Image.new("RGB", size, "white"), p)
    assert x.shape == (3, 518, 518)
    assert x.isfinite().all()


def test_far_ends_change_nothing_in_the_middle() -> None:
    long = np.zeros((300, 20, 3), np.uint8)
    long[130:170] = np.asarray(picture(20, 40))
    middle = Image.fromarray(long[75:225])  # an even cut, still longer than what is shown
    torch.testing.assert_close(preprocess(Image.fromarray(long), P), preprocess(middle, P), rtol=0, atol=0.05)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_no_augmentation_is_preprocessing_exactly(fit: str) -> None:
    p = P.model_copy(update={"fit": fit})
    image = picture(40, 33)
    for seed in range(5):
        assert torch.equal(augment(image, p, AugmentConfig.none(), seed), preprocess(image, p))


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_augmentation_is_a_function_of_the_seed(fit: str) -> None:
    p = P.model_copy(update={"fit": fit})
    image = picture(40, 33)
    outputs = [augment(image, p, AugmentConfig(flip=0.5), (0, 3, i)) for i in range(12)]
    for i in reversed(range(12)):
        assert torch.equal(augment(image, p, AugmentConfig(flip=0.5), (0, 3, i)), outputs[i])
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    assert all(out.shape == (3, 24, 24) and out.dtype == torch.float32 and out.isfinite().all() for out in outputs)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_min": 0.3},
        {"ratio": 1.5},
        {"rotate": 30},
        {"translate": 0.2},
        {"zoom": 0.3},
        {"jitter": 0.4},
        {"flip": 1},
    ],
)
def test_every_part_has_an_effect_of_its_own(change: dict[str, float]) -> None:
    config = AugmentConfig.none().model_copy(update=change)
    image = picture(30, 30)
    plain = preprocess(image, PLAIN)
    assert max(float((augment(image, PLAIN, config, seed) - plain).abs().mean()) for seed in range(4)) > 0.01


def test_default_augmentation_is_light_and_never_flips() -> None:
    image = picture(30, 30)
    plain = preprocess(image, PLAIN)
    for seed in range(30):
        out = augment(image, PLAIN, AugmentConfig(), seed)
        assert (out - plain).abs().mean() < (out - plain.flip(2)).abs().mean()


def test_flip_is_a_mirror_and_as_frequent_as_asked() -> None:
    image = picture(30, 30)
    mirrored = preprocess(image, PLAIN).flip(2)
    config = AugmentConfig.none().model_copy(update={"flip": 0.25})
    flipped = sum(torch.equal(augment(image, PLAIN, config, seed), mirrored) for seed in range(400))
    assert 70 <= flipped <= 130  # 100 expected, standard deviation 8.7


def centre_of_mass(x: torch.Tensor) -> tuple[float, float]:
    weight = x.mean(dim=0) / x.mean(dim=0).sum()
    place = torch.arange(x.shape[1]) + 0.5
    return float((weight.sum(dim=0) * place).sum()), float((weight.sum(dim=1) * place).sum())


def test_moves_go_as_far_as_said() -> None:
    image = Image.new("RGB", (96, 96))
    ImageDraw.Draw(image).ellipse((40, 40, 56, 56), fill="white")
    p = Preprocessing(size=96, mean=(0, 0, 0), std=(1, 1, 1))
    config = AugmentConfig.none().model_copy(update={"translate": 0.25})
    shifts = []
    for seed in range(40):
        x, y = centre_of_mass(augment(image, p, config, seed))
        rng = np.random.default_rng(seed)
        rng.random(4)
        u = rng.uniform(-1, 1, 4)
        assert x - 48.5 == pytest.approx(24 * u[2], abs=0.6)
        assert y - 48.5 == pytest.approx(24 * u[3], abs=0.6)
        shifts.append((x, y))
    assert np.ptp(np.array(shifts), axis=0).min() > 24


def test_rotation_is_about_the_centre_by_the_angle() -> None:
    image = picture(64, 64)
    p = Preprocessing(size=64, mean=(0, 0, 0), std=(1, 1, 1))
    config = AugmentConfig.none().model_copy(update={"rotate": 20})
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rng.random(4)
        angle = 20 * rng.uniform(-1, 1, 4)[0]
        turned = [
            v2.functional.pil_to_tensor(image.rotate(sign * angle, Image.Resampling.BILINEAR)) / 255 for sign in (1, -1)
        ]
        out = augment(image, p, config, seed)[:, 16:48, 16:48]
        assert min(float((out - t[:, 16:48, 16:48]).abs().max()) for t in turned) < 0.02


def test_corners_take_the_colour_of_the_border() -> None:
    config = AugmentConfig.none().model_copy(update={"rotate": 45, "translate": 0.3})
    for colour in ("black", "white", (200, 30, 90)):
        image = Image.new("RGB", (30, 30), colour)
        for seed in range(5):
            torch.testing.assert_close(
                augment(image, PLAIN, config, seed), preprocess(image, PLAIN), rtol=0, atol=1.5 / 255
            )


def test_crops_keep_the_area_they_promise() -> None:
    """On a horizontal and a vertical ramp the range of the output is the share of the side that is shown."""
    ramp = np.tile(np.linspace(0, 255, 400), (400, 1))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], axis=2).astype(np.uint8))
    config = AugmentConfig.none().model_copy(update={"scale_min": 0.4, "ratio": 1.3})
    areas = []
    for seed in range(60):
        x = augment(image, PLAIN, config, seed)
        share = [(float(x[0].max() - x[0].min())), float(x[1].max() - x[1].min())]
        assert max(share) / min(share) < 1.3 * 1.08
        areas.append(share[0] * share[1] * (24 / 23) ** 2)
    assert min(areas) > 0.36
    assert max(areas) > 0.85
    assert min(areas) < 0.55


def test_batches_are_their_images() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    images = ArrayImages(pixels)
    indices = np.array([3, 3, 8, 0, 1])
    expected = torch.stack([preprocess(images.load(int(i)), P) for i in indices])
    augmented = torch.stack([augment(images.load(int(i)), P, AugmentConfig(), (1, n)) for n, i in enumerate(indices)])
    seeds = [(1, n) for n in range(5)]
    for workers in (None, 1, 2, 3, 16):
        assert torch.equal(load_batch(images, indices, P, workers=workers), expected)
        assert torch.equal(load_batch(images, indices, P, AugmentConfig(), seeds, workers), augmented)
    assert load_batch(images, [], P).shape == (0, 3, 24, 24)
    assert expected.is_contiguous()
    assert load_batch(images, indices, P).is_contiguous()
    with pytest.raises(ValueError, match="one seed per image"):
        load_batch(images, indices, P, AugmentConfig())


@pytest.mark.parametrize("workers", [1, 3])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    images = FileImages(tmp_path, ["good.png", "good.png", "bad.png", "good.png"])
    with pytest.raises(UserError, match=r"bad\.png"):
        load_batch(images, range(4), P, workers=workers)
