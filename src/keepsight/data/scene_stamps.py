"""The stamps that scenes are composed of: pictures with transparency, their category and description, and which are held out.

Knows nothing of composing. Tux Paint's stamps are in seventeen top-level folders, some of which hold three: `CATEGORIES` says
which are merged.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from keepsight import assets
from keepsight.core.progress import log
from keepsight.data import stamps
from keepsight.data.duplicates import near_pairs, perceptual_hash, thumbnail

StampSource = Literal["auto", "stamps", "digits"]

CATEGORIES: dict[str, str] = {
    "animals": "animals",
    "cartoon": "animals",  # penguins
    "clothes": "clothes",
    "people": "clothes",
    "food": "food",
    "hobbies": "hobbies",
    "sports": "hobbies",
    "household": "household",
    "medical": "household",
    "military": "vehicles",
    "naturalforces": "space",
    "plants": "plants",
    "seasonal": "seasonal",
    "space": "space",
    "symbols": "symbols",
    "town": "town",
    "town/flags": "symbols",
    "town/roadsigns": "symbols",
    "vehicles": "vehicles",
}
"""The category of a folder of stamps; the longest entry counts. Eleven categories."""

PHRASES: dict[str, str] = {
    "animals": "an animal",
    "clothes": "a garment",
    "food": "a food",
    "hobbies": "a toy",
    "household": "a tool",
    "plants": "a plant",
    "seasonal": "a decoration",
    "space": "a planet",
    "symbols": "a symbol",
    "town": "a building",
    "vehicles": "a vehicle",
}
"""How captions speak of a category: short, and the same for all that is in it."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS_A_CLASS = 100

LARGEST = 256  # px: stamps are kept no larger, since scenes show them smaller
NEAR_BITS, NEAR_ALIKE = 10, 0.97  # of perceptual hashes, and of thumbnails, on one side of the split

_WORDS_AT_MOST = 6
_LOWERED = frozenset({"A", "An", "The", "Some", "Two", "Three", "Four", "Five", "Several", "Many"})
_VERBS = frozenset({"is", "are", "was", "can", "has", "have", "lets", "stands"})  # of a sentence, not a name
_VARIANT = re.compile(r"(_(mirror|flip|filled|outline|photo|cartoon|front|side|new|old|small|large|open|closed))+$")


@dataclass(frozen=True, slots=True)
class Stamp:
    """One picture to compose with.

    Attributes:
        name: Its path below the stamps' folder, or the digit's number.
        category: One of `Stamps.categories`.
        phrase: What captions by category call it.
        text: What captions by description call it; the phrase where there is no short description.
        rgba: [h, w, 4] uint8, cut to what is not transparent.
        group: Stamps of the same motif have the same number.
    """

    name: str
    category: str
    phrase: str
    text: str
    rgba: NDArray[np.uint8]
    group: int

    def digest(self) -> str:
        """Sha256 of the picture."""
        return hashlib.sha256(f"{self.rgba.shape}".encode() + self.rgba.tobytes()).hexdigest()


def load_stamps(source: StampSource = "auto") -> tuple[str, tuple[Stamp, ...]]:
    """The stamps that are here, and what they are: 'tuxpaint-stamps-default' or 'mnist-5k'.

    Raises:
        UserError: Stamps are asked for, and the package that brings them is not installed; or the digits cannot be fetched.
    """
    if source == "stamps" or (source == "auto" and any(stamps.STAMPS_FOLDER.glob("*/**/*.png"))):
        return "tuxpaint-stamps-default", _tux_paint()
    if source == "auto":
        log.warning(
            "Debian's package tuxpaint-stamps-default is not installed: scenes are composed of MNIST's digits instead."
        )
    return "mnist-5k", _digits()


def _tux_paint() -> tuple[Stamp, ...]:
    images = stamps.read_stamps().images
    names, pictures = [], []
    for name in (images.name(index) for index in range(len(images))):
        picture = _cut(Image.open(stamps.STAMPS_FOLDER / name).convert("RGBA"))
        if category_of(name) is not None and picture is not None:
            names.append(name)
            pictures.append(picture)
    categories = [str(category_of(name)) for name in names]
    groups = motif_groups(names, pictures)
    texts = [_description(name, PHRASES[category]) for name, category in zip(names, categories, strict=True)]
    return tuple(
        Stamp(name, category, PHRASES[category], text, picture, group)
        for name, category, text, picture, group in zip(names, categories, texts, pictures, groups, strict=True)
    )


def category_of(name: str) -> str | None:
    """The category of a stamp by its path; None for a folder that is not in the table.

    Example:
        >>> category_of("town/houses/barn.png"), category_of("town/flags/un.png"), category_of("new/x.png")
        ('town', 'symbols', None)
    """
    folders = name.split("/")[:-1]
    for length in range(len(folders), 0, -1):
        if (found := CATEGORIES.get("/".join(folders[:length]))) is not None:
            return found
    return None


def _cut(image: Image.Image) -> NDArray[np.uint8] | None:
    """The part that is not transparent, at most `LARGEST` px a side; None if there is none."""
    box = image.getchannel("A").point([0] * 128 + [255] * 128).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    if max(image.size) > LARGEST:
        factor = LARGEST / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.array(image)


def _description(name: str, phrase: str) -> str:
    """The English line of the text beside the stamp, if it is short enough for a caption."""
    path = stamps.STAMPS_FOLDER / name
    places = (path.with_suffix(".txt"), path.with_name(path.stem.removesuffix("_mirror") + ".txt"))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return phrase
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    sentence = re.split(r"[.!?:;,()…]", lines[0].strip())[0].strip()
    words = sentence.split()
    named = len(words) <= 3 or words[0] in _LOWERED
    if not 1 <= len(words) <= _WORDS_AT_MOST or not named or _VERBS & set(words):
        return phrase
    if words[0] in _LOWERED:
        words[0] = words[0].lower()
    return " ".join(words)


def stem_of(name: str) -> str:
    """A stamp's path without what tells variants of one motif apart: mirror, filled, outline, photo, numbers, ...

    Example:
        >>> stem_of("food/Cake_photo_1.png"), stem_of("food/cake2.png"), stem_of("symbols/7_filled.png")
        ('food/cake', 'food/cake', 'symbols/7')
    """
    folder, _, file = name.rpartition("/")
    stem = file.rsplit(".", 1)[0].lower()
    while True:
        shorter = re.sub(r"^\d+_?(?=[a-z])|(?<=[a-z])_?\d+$", "", _VARIANT.sub("", stem))
        if shorter == stem or not shorter:
            return f"{folder}/{stem}"
        stem = shorter


def motif_groups(names: list[str], pictures: list[NDArray[np.uint8]]) -> list[int]:
    """The group [N] of each stamp: equal stems (in any folder of the same category), or pictures alike, mirrored or not."""
    parent = list(range(len(names)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    def join(a: int, b: int) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    first: dict[tuple[str | None, str], int] = {}
    for place, name in enumerate(names):
        join(first.setdefault((category_of(name), stem_of(name).rpartition("/")[2]), place), place)
    small = [thumbnail(_on_white(picture)) for picture in pictures]
    both = np.stack([*small, *(each[:, ::-1] for each in small)])
    hashes = np.array([perceptual_hash(np.ascontiguousarray(each)) for each in both], dtype=np.uint64)
    rows = np.arange(len(both))
    flat = both.reshape(len(both), -1)
    pairs, _, _ = near_pairs(hashes, flat, np.zeros(len(both), np.int64), rows, NEAR_BITS, NEAR_ALIKE)
    for a, b in (pairs % len(names)).tolist():
        join(a, b)
    return [root(place) for place in range(len(names))]


def _on_white(picture: NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(picture)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)


def _digits() -> tuple[Stamp, ...]:
    """MNIST's digits as ink: opacity is the pixel, the colour is drawn when a scene is composed."""
    pixels_NHW, labels_N = assets.load_mnist_5k()
    found = []
    for label, word in enumerate(DIGITS):
        for index in np.flatnonzero(labels_N == label)[:DIGITS_A_CLASS].tolist():
            rgba = np.zeros((*pixels_NHW[index].shape, 4), np.uint8)
            rgba[..., 3] = pixels_NHW[index]
            picture = _cut(Image.fromarray(rgba))
            if picture is not None:
                found.append(Stamp(f"{index}", word, f"a {word}", f"a handwritten {word}", picture, index))
    return tuple(found)


def held_out(pool: tuple[Stamp, ...], share: float, seed: int) -> frozenset[str]:
    """Names of the stamps that training never shows: whole groups, about this share of each category.

    A group may reach over two categories (a toy and the real thing): it is held out in both or in neither.

    Args:
        pool: All stamps.
        share: Of each category.
        seed: Which.
    """
    names: set[str] = set()
    decided: dict[int, bool] = {}
    for place, category in enumerate(sorted({stamp.category for stamp in pool})):
        groups: dict[int, list[Stamp]] = {}
        for stamp in pool:
            if stamp.category == category:
                groups.setdefault(stamp.group, []).append(stamp)
        wanted = share * sum(len(group) for group in groups.values())
        out = sum(len(groups[group]) for group in groups if decided.get(group))
        order = np.random.default_rng((seed, 1, place)).permutation(sorted(groups)).tolist()
        kept = any(decided.get(group) is False for group in groups)
        for number, group in enumerate(order):
            if group not in decided:
                last = number == len(order) - 1 and not kept
                fits = not last and out + len(groups[group]) <= wanted + 0.5
                decided[group] = fits
                out += len(groups[group]) if fits else 0
                kept = kept or not fits
        names |= {stamp.name for group, members in groups.items() if decided[group] for stamp in members}
    return frozenset(names)
