"""Images of words, rendered in many fonts, sizes and colours on plain grounds and photographs. Knows no model.

Words are of the letters a to z in lower case, the most frequent ones of MiniLM's vocabulary without rude ones. Test words are none
of the training words, and typefaces of the test part are none of the training part's. The same settings on the same packages give
the same pixels.
"""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydantic import Field

from keepsight.assets import load_tensors
from keepsight.assets.minilm import TOKENIZER
from keepsight.core import Config, ImageList, UserError
from keepsight.data.scenes import load_photographs
from keepsight.data.word_set import WordPart, WordSet

FONTS_FOLDER = Path("/usr/share/fonts")  # where Debian's packages put theirs

TYPEFACES: dict[WordPart, dict[str, tuple[str, ...]]] = {
    "train": {
        "dejavu sans": ("DejaVu Sans", "DejaVu Sans Condensed", "DejaVu Sans Mono"),
        "times": ("STIXGeneral", "Liberation Serif", "FreeSerif", "Nimbus Roman"),
        "helvetica": ("Liberation Sans", "Liberation Sans Narrow", "FreeSans", "Nimbus Sans", "Nimbus Sans Narrow"),
        "courier": ("Liberation Mono", "FreeMono", "Nimbus Mono PS"),
        "computer modern": ("cmr10", "cmb10", "cmti10"),
        "computer modern typewriter": ("cmtt10",),
        "century": ("C059",),
        "avant garde": ("URW Gothic",),
    },
    "test": {
        "dejavu serif": ("DejaVu Serif", "DejaVu Serif Condensed"),
        "computer modern sans": ("cmss10",),
        "palatino": ("P052",),
        "bookman": ("URW Bookman",),
        "noto mono": ("Noto Sans Mono", "Noto Mono"),
    },
}
"""Families of fonts by typeface: those of one typeface look alike, and stand on the same side. Each typeface is equally frequent.

The DejaVu and Computer Modern families and STIX come with matplotlib, the others with Debian; what is not there is left out.
"""

RUDE = frozenset(
    codecs.decode(
        """
        nany nefr nff onfgneq onfgneqf ovgpu oen oernfg oernfgf ohz ohgg pbpx pbpxl penc pevccyr pevccyrq phz phag qnza qnzarq
        qvpx qlxr rerpg rerpgvba rebgvp snt shpx shpxrq shpxre shpxvat trabpvqr tlcfl uvgyre ubybpnhfg ubzb ubbxre vqvbg
        vqvbgf xyna yhfg zbeba anxrq anmv anmvf arteb artebrf avttre avccyr avccyrf ahqr betnfz cnagvrf cravf cvff cvffrq cbea
        cbeab cbeabtencuvp cbeabtencul cebfgvghgr cebfgvghgrf cebfgvghgvba chffl encr encrq encvfg ergneq frzra frk frkhny
        frkl fuvg fuvggl fynir fynirf fynirel fyhg fcrez fhvpvqny fhvpvqr gubat gvg gvgf genaal intvan ivetva ivetvavgl jnax
        juber
        """,
        "rot13",
    ).split()
)
"""Words that no page should show, some rude in one of their senses only; in rot13, so that this file does not show them."""

_DRAWN = 64  # px an em: letters are drawn large and then made smaller
_CONTRAST = 80  # of 255: the least difference in brightness between a word and the mean of its ground
_TRIES = 50


class WordImagesConfig(Config):
    """What is rendered.

    Attributes:
        train: Training images, each of another word.
        test: Test images, each of another word.
        seed: Of everything that is drawn.
        letters: Shortest and longest word.
        vocabulary: Words are drawn from so many, the most frequent ones.
        height: Of the images, px.
        aspect: Width of the images by their height. A word fills the width, or the height where it is short.
        fill: Share of the width or height that it fills, smallest and largest.
        rotation: Most, degrees either way.
        photographs: Share of the images on a photograph.
    """

    train: int = Field(default=1200, ge=1)
    test: int = Field(default=300, ge=1)
    seed: int = Field(default=0, ge=0)
    letters: tuple[int, int] = (3, 6)
    vocabulary: int = Field(default=6000, ge=2)
    height: int = Field(default=96, ge=16, le=1024)
    aspect: float = Field(default=2.0, ge=1, le=8)
    fill: tuple[float, float] = (0.8, 0.96)
    rotation: float = Field(default=4.0, ge=0, le=30)
    photographs: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class Face:
    """One font.

    Attributes:
        typeface: A key of `TYPEFACES`.
        name: Family and style.
        file: Where it lies.
    """

    typeface: str
    name: str
    file: Path


@dataclass(frozen=True, slots=True)
class Drawing:
    """What one image is of: the word, its font, and the seed of everything else."""

    word: str
    face: Face
    seed: tuple[int, ...]


def render_words(config: WordImagesConfig | None = None) -> WordSet:
    """The test words, then the training words; images are drawn when they are asked for.

    Raises:
        UserError: if there are too few fonts or words.
    """
    config = WordImagesConfig() if config is None else config
    rng = np.random.default_rng((config.seed, 0))
    known = vocabulary(*config.letters)[: config.vocabulary]
    if len(known) < config.train + config.test:
        raise UserError(
            f"{config.train} training and {config.test} test words were asked for, and there are {len(known)} different ones of "
            f"{config.letters[0]} to {config.letters[1]} letters: ask for fewer, or raise vocabulary."
        )
    words = rng.permutation(known).tolist()
    faces = find_faces()
    drawings: list[Drawing] = []
    parts: list[WordPart] = []
    counts: dict[WordPart, int] = {
        "test": config.test,
        "train": config.train,
    }  # more training words keep the test words
    taken = 0
    for number, (part, count) in enumerate(counts.items()):
        typefaces = sorted({face.typeface for face in faces[part]})
        for index, word in enumerate(words[taken : taken + count]):
            seed = (config.seed, 1, number, index)
            draw = np.random.default_rng((*seed, 0))
            typeface = typefaces[int(draw.integers(len(typefaces)))]
            members = [face for face in faces[part] if face.typeface == typeface]
            drawings.append(Drawing(word, members[int(draw.integers(len(members)))], (*seed, 1)))
            parts.append(part)
        taken += count
    images = WordImages(drawings, config)
    return WordSet("words", images, tuple(drawing.word for drawing in drawings), tuple(parts))


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    tokenizer = json.loads(bytes(load_tensors("minilm_l6")[TOKENIZER].numpy()).decode())
    pieces: dict[str, int] = tokenizer["model"]["vocab"]
    ordered = sorted(pieces, key=lambda piece: pieces[piece])
    return tuple(
        piece for piece in ordered if piece.isascii() and piece.isalpha() and piece.islower() and piece not in RUDE
    )


def vocabulary(shortest: int, longest: int) -> list[str]:
    """Words of a to z of so many letters, in the order of MiniLM's vocabulary, which is about that of their frequency.

    Pieces of words ("##ing") and `RUDE` ones are not among them, names are.
    """
    return [word for word in _vocabulary() if shortest <= len(word) <= longest]


def find_faces() -> dict[WordPart, tuple[Face, ...]]:
    """The fonts of `TYPEFACES` that are here, by part; matplotlib's own copy before Debian's.

    Raises:
        UserError: if a part has none.
    """
    sides = {
        family: (part, typeface)
        for part, named in TYPEFACES.items()
        for typeface, families in named.items()
        for family in families
    }
    found: dict[tuple[str, str], tuple[WordPart, Face]] = {}
    for file in _font_files():
        try:
            family, style = ImageFont.truetype(str(file), 16).getname()
        except OSError:
            continue
        side = sides.get(family or "")
        if side is not None:
            name = f"{family} {style or ''}".strip()
            found.setdefault((family or "", style or ""), (side[0], Face(side[1], name, file)))
    faces: dict[WordPart, tuple[Face, ...]] = {
        part: tuple(sorted((face for side, face in found.values() if side == part), key=lambda face: face.name))
        for part in TYPEFACES
    }
    if not all(faces.values()):
        raise UserError(
            "Rendering words needs fonts, and none that are known were found: install matplotlib, which brings some, with "
            "pip install 'keepsight[figures]'."
        )
    return faces


def _font_files() -> list[Path]:
    """Of matplotlib, which is not imported, then of Debian."""
    package = importlib.util.find_spec("matplotlib")
    places = (
        [Path(place) / "mpl-data" / "fonts" / "ttf" for place in (package.submodule_search_locations or ())]
        if package
        else []
    )
    own = [file for place in places for file in sorted(place.glob("*.ttf"))]
    return own + sorted(file for kind in ("ttf", "otf") for file in FONTS_FOLDER.rglob(f"*.{kind}"))


@final
class WordImages(ImageList):
    """Words, each drawn when it is asked for.

    Args:
        drawings: What to draw.
        config: How.
    """

    def __init__(self, drawings: Sequence[Drawing], config: WordImagesConfig) -> None:
        self._drawings, self._config = tuple(drawings), config
        self._photographs = [image for _, image in load_photographs()]
        self._hashes: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._drawings)

    def load(self, index: int) -> Image.Image:
        """The image as RGB."""
        return draw_word(self._drawings[index], self._photographs, self._config)

    def name(self, index: int) -> str:
        """A number, the word and its font."""
        drawing = self._drawings[index]
        return f"{index:04d} {drawing.word} ({drawing.face.name})"

    def content_hash(self, index: int) -> bytes:
        """Sha256 of the size and the RGB pixels."""
        if index not in self._hashes:
            image = self.load(index)
            self._hashes[index] = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        return self._hashes[index]

    def on_photograph(self, index: int) -> bool:
        """Whether the ground is a photograph."""
        return _on_photograph(np.random.default_rng(self._drawings[index].seed), self._config)


def draw_word(drawing: Drawing, photographs: Sequence[Image.Image], config: WordImagesConfig) -> Image.Image:
    """One image, a function of its arguments."""
    rng = np.random.default_rng(drawing.seed)
    height, width = config.height, round(config.height * config.aspect)
    ground = _ground(photographs if _on_photograph(rng, config) else (), width, height, rng)
    ink = _ink(np.asarray(ground.resize((1, 1), Image.Resampling.BOX), dtype=np.float64)[0, 0], rng)
    mask = _mask(drawing, config.rotation * rng.uniform(-1, 1))
    share = rng.uniform(*config.fill)
    factor = share * min(width / mask.width, height / mask.height)
    mask = mask.resize(
        (max(1, round(mask.width * factor)), max(1, round(mask.height * factor))), Image.Resampling.LANCZOS
    )
    left, top = int(rng.random() * (width - mask.width + 1)), int(rng.random() * (height - mask.height + 1))
    ground.paste(ink, (left, top), mask)
    return ground.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.01) * height))


def _on_photograph(rng: np.random.Generator, config: WordImagesConfig) -> bool:
    """The first number that is drawn for an image."""
    return bool(rng.random() < config.photographs)


def _ground(photographs: Sequence[Image.Image], width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A random part of one of the photographs, or a random colour without any."""
    if not photographs:
        r, g, b = (int(value) for value in rng.integers(256, size=3))
        return Image.new("RGB", (width, height), (r, g, b))
    photograph = photographs[int(rng.integers(len(photographs)))]
    scale = rng.uniform(0.25, 0.9) * min(photograph.width / width, photograph.height / height)
    w, h = width * scale, height * scale
    left, top = rng.random() * (photograph.width - w), rng.random() * (photograph.height - h)
    return photograph.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def _ink(ground_C: NDArray[np.float64], rng: np.random.Generator) -> tuple[int, int, int]:
    """A random colour that is darker or brighter than the ground's mean colour by enough (luma of ITU-R BT.601)."""
    luma_C = np.array((0.299, 0.587, 0.114))
    for _ in range(_TRIES):
        r, g, b = (int(value) for value in rng.integers(256, size=3))
        if abs(luma_C @ (np.array((r, g, b)) - ground_C)) >= _CONTRAST:
            return r, g, b
    return (0, 0, 0) if luma_C @ ground_C > 127 else (255, 255, 255)


def _mask(drawing: Drawing, angle: float) -> Image.Image:
    """The word as opacity, turned, cut to what is not empty. A font of its own for each drawing: several threads draw."""
    font = ImageFont.truetype(str(drawing.face.file), _DRAWN, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(drawing.word)
    mask = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), drawing.word, fill=255, font=font)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    return mask.crop(mask.getbbox())
