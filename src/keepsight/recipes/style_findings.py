"""style.json: what a look at a model's style found. Knows no pixels."""

from __future__ import annotations

from keepsight.core import Config
from keepsight.evaluate.style import Probed, Reconstruction, StyleFigures, Swaps

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Steps of an interpolation between two styles."""


class LookedAt(Config):
    """An image that occurs in the findings.

    Attributes:
        name: Its name in the data.
        predicted: Class.
        label: True class, None where it is not known to the model.
    """

    name: str
    predicted: str
    label: str | None


class Prototype(Config):
    """Nearest images of decode(one-hot of a class, mean style), nearest first, with cosines."""

    of: str
    nearest: tuple[int, ...]
    cosines: tuple[float, ...]


class Interpolation(Config):
    """Nearest images of decode(content of an image, (1 - t) style of one image + t style of another), t in `SHARES`."""

    content: int
    nearest: tuple[int, ...]


class Neighbours(Config):
    """Nearest other images of one: in style (images of other predicted classes only), in content, as tokens."""

    of: int
    style: tuple[int, ...]
    content: tuple[int, ...]
    token: tuple[int, ...]


class StyleFindings(Config):
    """style.json. Numbers of images are places in the data; `images` says which they are.

    Attributes:
        dataset: Name.
        method: How the model was fitted.
        n: Images of the data that were read.
        labelled: Of these, how many have a class that the model knows.
        skipped: Unreadable images that were left out.
        style_axes: Length of the style.
        chosen: The images that are swapped.
        swaps: See `evaluate.style.Swaps`; rows and columns in the order of `chosen`.
        prototypes: One a class.
        styles: The two images between whose styles is interpolated.
        interpolations: One a content.
        neighbours: Of some of the chosen images.
        probes: What style, content and token tell of the class and of known nuisances.
        reconstruction: See `evaluate.style.Reconstruction`.
        style: See `evaluate.style.StyleFigures`.
        images: Every image that is named above, by number.
    """

    dataset: str
    method: str
    n: int
    labelled: int
    skipped: int
    style_axes: int
    chosen: tuple[int, ...]
    swaps: Swaps
    prototypes: tuple[Prototype, ...]
    styles: tuple[int, int]
    interpolations: tuple[Interpolation, ...]
    neighbours: tuple[Neighbours, ...]
    probes: tuple[Probed, ...]
    reconstruction: Reconstruction
    style: StyleFigures
    images: dict[int, LookedAt]
