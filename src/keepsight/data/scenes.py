"""Writes a COCO set of composed scenes: real stamps with transparency on real photographs. Knows no model.

Boxes and masks are what is visible: a stamp hides those below it. The same seed on the same packages gives byte-equal files.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import Field
from sklearn.datasets import load_sample_image

from keepsight.core import Config, UserError
from keepsight.core.files import atomic_directory, make_directory, write_text
from keepsight.core.progress import Track
from keepsight.core.scene import Objects, Rle, SceneDataset
from keepsight.data import scene_stamps
from keepsight.data.coco_write import write_coco
from keepsight.data.files import FileImages
from keepsight.data.masks import encode_mask, mask_box
from keepsight.data.scene_captions import Placed, captions_of
from keepsight.data.scene_stamps import Stamp, StampSource, held_out, load_stamps

SceneCaptions = Literal["all", "template"]

PARTS = ("train", "val", "test-seen", "test-unseen")
"""Held-out stamps are in the last part alone; the others show the training stamps, each in compositions of its own."""

TEMPLATES_FOLDER = Path("/usr/share/tuxpaint/templates")  # where Debian's package tuxpaint-data puts its photographs
TEXTURES = (
    "burnt_bark",
    "cliff",
    "mossy_bark",
    "mudstone",
    "ocean_splash",
    "ocean_waves",
    "rocks",
    "sun_behind_clouds",
)
"""Photographs of tuxpaint-data that show nothing of any category; scikit-learn's two are always there."""

_JPEG_QUALITY = 95
_TRIES = 30
_SMALLEST = 5  # px: a visible box has no shorter side


class ScenesConfig(Config):
    """What is written.

    Attributes:
        images: Training images.
        val: Validation images; a sixth of the training images by default.
        test: Images of each of the two test parts; an eighth of the training images by default.
        seed: Of everything that is drawn.
        split: Seed of which stamps are held out; `seed` by default. Sets of one split hold out the same stamps.
        size: Side of the images, px.
        objects: Most stamps an image.
        scale: The longer side of a stamp, smallest and largest share of the image's side.
        hidden: Largest share of a stamp that others may hide; one that would hide more, or be hidden more, is drawn again, and
            left out if it never fits.
        held_out: Share of each category's stamps that only `test-unseen` shows.
        source: ``stamps`` of Tux Paint, MNIST's ``digits``, or ``auto``: stamps where they are installed.
        captions: ``all`` that `captions_of` gives, or its ``template`` of category and arrangement alone.
    """

    images: int = Field(default=1200, ge=1)
    val: int | None = Field(default=None, ge=0)
    test: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    split: int | None = Field(default=None, ge=0)
    size: int = Field(default=168, ge=32, le=4096)
    objects: int = Field(default=3, ge=1, le=8)
    scale: tuple[float, float] = (0.3, 0.65)
    hidden: float = Field(default=0.4, ge=0, lt=1)
    held_out: float = Field(default=0.25, gt=0, lt=1)
    source: StampSource = "auto"
    captions: SceneCaptions = "all"

    def counts(self) -> dict[str, int]:
        """Images by part."""
        val = max(1, self.images // 6) if self.val is None else self.val
        test = max(1, self.images // 8) if self.test is None else self.test
        return dict(zip(PARTS, (self.images, val, test, test), strict=True))


@dataclass(frozen=True, slots=True)
class Scene:
    """One composed scene: the picture, and of each object, from the lowest to the uppermost, its stamp and visible mask [S, S]."""

    image: Image.Image
    stamps: tuple[Stamp, ...]
    masks: tuple[NDArray[np.bool_], ...]


def write_scenes(folder: Path, config: ScenesConfig | None = None) -> SceneDataset:
    """Write the set whole, or nothing.

    Args:
        folder: Must not exist, or be empty.
        config: What is written.

    Raises:
        UserError: if the folder holds something, or stamps are asked for and are not installed.
    """
    config = ScenesConfig() if config is None else config
    refuse_filled(folder)
    source, pool = load_stamps(config.source)
    unseen = held_out(pool, config.held_out, config.seed if config.split is None else config.split)
    photographs = load_photographs()
    with atomic_directory(folder) as place:
        dataset = _write_images(place, config, pool, unseen, [image for _, image in photographs])
        write_coco(dataset, place)
        recipe = _recipe(config, source, pool, unseen, photographs)
        write_text(place / "recipe.json", json.dumps(recipe, indent=1) + "\n")
    return SceneDataset(
        name=folder.resolve().name,
        images=FileImages(folder, [dataset.images.name(index) for index in range(len(dataset.images))]),
        sizes=dataset.sizes,
        objects=dataset.objects,
        captions=dataset.captions,
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        image_ids=dataset.image_ids,
        parts=dataset.parts,
    )


def refuse_filled(folder: Path) -> None:
    """Raises UserError unless the folder is free to be written."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is not a folder: choose another place for the scenes.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: choose another place for the scenes, or remove it first.")


def load_photographs() -> list[tuple[str, Image.Image]]:
    """Backgrounds by name: scikit-learn's two photographs, and those of tuxpaint-data where it is installed."""
    found = [(f"scikit-learn/{name}", Image.fromarray(load_sample_image(name))) for name in ("china.jpg", "flower.jpg")]
    for name in TEXTURES:
        path = TEMPLATES_FOLDER / f"{name}.jpg"
        if path.is_file():
            image = Image.open(path).convert("RGB")
            image.thumbnail((960, 960), Image.Resampling.LANCZOS)
            found.append((f"tuxpaint-data/{name}.jpg", image))
    return found


def _write_images(
    place: Path, config: ScenesConfig, pool: Sequence[Stamp], unseen: frozenset[str], photographs: Sequence[Image.Image]
) -> SceneDataset:
    classes = tuple(sorted({stamp.category for stamp in pool}))
    shown = {
        part: [
            [s for s in pool if s.category == name and (s.name in unseen) == (part == "test-unseen")]
            for name in classes
        ]
        for part in PARTS
    }
    names: list[str] = []
    objects: list[Objects] = []
    captions: list[tuple[str, ...]] = []
    parts: list[str] = []
    counts = config.counts()
    with Track("composing", sum(counts.values()), "images") as track:
        for number, part in enumerate(PARTS):
            if counts[part]:
                make_directory(place / part)
            for index in range(counts[part]):
                scene = compose(shown[part], photographs, config, (config.seed, 2, number, index))
                names.append(f"{part}/{index:06d}.jpg")
                data = io.BytesIO()
                scene.image.save(data, format="JPEG", quality=_JPEG_QUALITY)
                (place / names[-1]).write_bytes(data.getvalue())
                masks = [encode_mask(mask) for mask in scene.masks]
                objects.append(_objects(scene, masks, classes))
                found = _captions(scene, objects[-1], config.size)
                captions.append(found if config.captions == "all" else found[:1])
                parts.append(part)
                track.advance()
    return SceneDataset(
        name="scenes",
        images=FileImages(place, names),
        sizes=np.full((len(names), 2), config.size, dtype=np.int64),
        objects=tuple(objects),
        captions=tuple(captions),
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        image_ids=tuple(range(1, len(names) + 1)),
        parts=tuple(parts),
    )


def compose(
    pool: Sequence[Sequence[Stamp]], photographs: Sequence[Image.Image], config: ScenesConfig, seed: tuple[int, ...]
) -> Scene:
    """One scene, a function of the seed.

    Args:
        pool: Stamps of each category; a category is drawn first, so that all are equally frequent.
        photographs: Backgrounds.
        config: Sizes and shares.
        seed: Numbers, none negative.
    """
    rng = np.random.default_rng(seed)
    image = _background(photographs, config.size, rng)
    stamps: list[Stamp] = []
    whole: list[NDArray[np.bool_]] = []
    for _ in range(int(rng.integers(1, config.objects + 1))):
        members = pool[int(rng.integers(len(pool)))]
        stamp = members[int(rng.integers(len(members)))]
        for _ in range(_TRIES):
            picture, left, top = _placed(stamp, config, rng)
            mask = np.zeros((config.size, config.size), np.bool_)
            mask[top : top + picture.height, left : left + picture.width] = np.asarray(picture)[..., 3] >= 128
            if _fits([*whole, mask], config.hidden):
                image.paste(picture, (left, top), picture)
                stamps.append(stamp)
                whole.append(mask)
                break
    return Scene(image, tuple(stamps), tuple(_visible(whole)))


def _background(photographs: Sequence[Image.Image], size: int, rng: np.random.Generator) -> Image.Image:
    """A random square of a photograph, maybe mirrored, a little darker or brighter, a little out of focus."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = round(min(photograph.size) * rng.uniform(0.35, 1.0))
    left, top = (int(rng.integers(length - side + 1)) for length in photograph.size)
    mirrored, brightness, blur = rng.random() < 0.5, rng.uniform(0.7, 1.2), rng.uniform(0, 1.5)
    image = photograph.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(brightness).filter(ImageFilter.GaussianBlur(blur))


def _placed(stamp: Stamp, config: ScenesConfig, rng: np.random.Generator) -> tuple[Image.Image, int, int]:
    """A stamp at a random size and place, wholly within the image: RGBA, left, top."""
    longer = config.size * rng.uniform(*config.scale)
    x, y, *ink = rng.random(5)
    picture = Image.fromarray(stamp.rgba)
    factor = longer / max(picture.size)
    size = (max(_SMALLEST, round(picture.width * factor)), max(_SMALLEST, round(picture.height * factor)))
    if not stamp.rgba[..., :3].any() and stamp.name.isdigit():  # a digit has no colour of its own
        r, g, b = (int(255 * part) for part in ink)
        coloured = Image.new("RGB", picture.size, (r, g, b))
        coloured.putalpha(picture.getchannel("A"))
        picture = coloured
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = int(x * (config.size - size[0] + 1)), int(y * (config.size - size[1] + 1))
    return picture, left, top


def _visible(whole: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
    """What later masks leave of earlier ones."""
    visible: list[NDArray[np.bool_]] = []
    above: NDArray[np.bool_] = np.zeros((1, 1), dtype=np.bool_)
    for mask in reversed(whole):
        visible.append(mask & ~above)
        above = mask | above
    return visible[::-1]


def _fits(whole: Sequence[NDArray[np.bool_]], hidden: float) -> bool:
    """Whether enough of every object is visible."""
    for mask, seen in zip(whole, _visible(whole), strict=True):
        area = int(mask.sum())
        if not area or int(seen.sum()) < (1 - hidden) * area:
            return False
        if min(int(seen.any(axis=axis).sum()) for axis in (0, 1)) < _SMALLEST:
            return False
    return True


def _objects(scene: Scene, masks: Sequence[Rle], classes: tuple[str, ...]) -> Objects:
    return Objects(
        boxes=np.array([mask_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4),
        classes=np.array([classes.index(stamp.category) for stamp in scene.stamps], dtype=np.int64),
        crowd=np.zeros(len(masks), dtype=np.bool_),
        masks=tuple(masks),
    )


def _captions(scene: Scene, objects: Objects, size: int) -> tuple[str, ...]:
    centres = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / (2 * size)
    placed = [
        Placed(stamp.phrase, stamp.text, float(x), float(y))
        for stamp, (x, y) in zip(scene.stamps, centres.tolist(), strict=True)
    ]
    return captions_of(placed)


def _recipe(
    config: ScenesConfig,
    source: str,
    pool: Sequence[Stamp],
    unseen: frozenset[str],
    photographs: Sequence[tuple[str, Image.Image]],
) -> dict[str, Any]:
    """Everything that the set was made of."""
    held = Counter(stamp.category for stamp in pool if stamp.name in unseen)
    return {
        "command": "keepsight demo-data scenes",
        "config": config.model_dump(mode="json"),
        "counts": config.counts(),
        "source": source,
        "merged": scene_stamps.CATEGORIES if source != "mnist-5k" else {},
        "phrases": {stamp.category: stamp.phrase for stamp in pool},
        "categories": {
            name: {"stamps": number, "held_out": held[name]}
            for name, number in sorted(Counter(stamp.category for stamp in pool).items())
        },
        "backgrounds": {name: hashlib.sha256(image.tobytes()).hexdigest() for name, image in photographs},
        "stamps": [
            {
                "name": stamp.name,
                "category": stamp.category,
                "text": stamp.text,
                "group": stamp.group,
                "split": "unseen" if stamp.name in unseen else "seen",
                "sha256": stamp.digest(),
            }
            for stamp in pool
        ],
    }
