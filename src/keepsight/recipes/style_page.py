"""The findings about style as a page: which pictures stand where, and what is written beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from keepsight.core import ImageList
from keepsight.recipes.style_findings import SHARES, StyleFindings
from keepsight.report.style import Figures, Grid, Shown, write_page

PROTOTYPES = 30
"""Classes, at most, whose prototypes are shown."""

LONGEST = 224
"""Longest side of a picture on the page, px; smaller ones are at their own resolution."""


def write_style_page(path: Path, found: StyleFindings, images: ImageList) -> None:
    """Write the page; every image that is named in the findings is read once."""
    write_page(
        path,
        f"Style in {found.dataset}",
        _lead(found),
        [_probes(found), _swaps(found), _prototypes(found), _interpolations(found), *_neighbours(found), _axes(found)],
        {i: _png(images.load(i)) for i in found.images},
    )


def _png(image: Image.Image) -> bytes:
    if max(image.size) > LONGEST:
        image.thumbnail((LONGEST, LONGEST))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _shown(found: StyleFindings, i: int, wanted: str | None = None, note: str = "", apart: bool = False) -> Shown:
    """An image above its predicted class, which is set off where it is not the wanted one."""
    image = found.images[i]
    label = f", label {image.label}" if image.label is not None else ""
    title = f"{image.name}: predicted {image.predicted}{label}{note}"
    return Shown(i, image.predicted, title, wanted is not None and image.predicted != wanted, apart)


def _text(text: str, apart: bool = False) -> Shown:
    return Shown(None, text, apart=apart)


def _lead(found: StyleFindings) -> list[str]:
    swaps, rebuilt = found.swaps, found.reconstruction
    left_out = f" {found.skipped} unreadable images were left out." if found.skipped else ""
    true = f" By true classes: {swaps.kept_true} of {swaps.swapped_true}." if swaps.swapped_true else ""
    return [
        f"Method {found.method}; {found.n} images, {found.labelled} of them with a label that the model knows; "
        f"{found.style_axes} numbers of style.{left_out}",
        f"Content kept in {swaps.kept} of {swaps.swapped} swaps: there, the image nearest to one image's content with another's "
        f"style has the predicted class of the first. It has that of the second in {swaps.taken}.{true}",
        f"Distance between the style that was asked for and that of the image found: {swaps.style_distance:.2f} on average; "
        f"for an image drawn at random: {swaps.style_distance_random:.2f}.",
        f"Decoded tokens miss the real ones by {rebuilt.own:.3f} (1 - cosine); with another image's style by "
        f"{rebuilt.style_permuted:.3f}, with another image's content by {rebuilt.content_permuted:.3f}. A part whose "
        "exchange costs nothing is not used by the decoder.",
    ]


def _probes(found: StyleFindings) -> Figures:
    rows = [
        [
            f"{p.of} ({'accuracy %' if p.measure == 'accuracy' else 'share of variance %'}, {p.n} images)",
            *(f"{100 * value:.1f}" for value in (p.style, p.content, p.token, p.chance)),
        ]
        for p in found.probes
    ]
    return Figures(
        "What a linear probe reads from each part",
        "Cross-validated. The class should be hard to tell from style (near chance) and easy from content; for what is not the "
        "class it should be the other way round.",
        ["what", "from style", "from content", "from the whole token", "chance"],
        rows,
    )


def _swaps(found: StyleFindings) -> Grid:
    rows = []
    for i, nearest, cosines in zip(found.chosen, found.swaps.nearest, found.swaps.cosines, strict=True):
        wanted = found.images[i].predicted
        cells = [_shown(found, n, wanted, f", cosine {c:.2f}") for n, c in zip(nearest, cosines, strict=True)]
        rows.append([_shown(found, i), *cells])
    return Grid(
        "Swapped styles",
        "Each place shows the image of the data that is nearest to the content of the image at the left with the style of the "
        "image above; neither of the two is ever shown. Below each picture stands its predicted class, in red where it is not "
        "the class of the content. Down a column, what the images share is style.",
        [_text("content \\ style"), *(_shown(found, i) for i in found.chosen)],
        rows,
    )


def _prototypes(found: StyleFindings) -> Grid:
    first = found.prototypes[:PROTOTYPES]
    cut = f" The first {PROTOTYPES} of {len(found.prototypes)} classes." if len(found.prototypes) > PROTOTYPES else ""
    hits = sum(found.images[p.nearest[0]].predicted == p.of for p in found.prototypes)
    rows = [
        [
            _text(p.of),
            *(_shown(found, n, p.of, f", cosine {c:.2f}") for n, c in zip(p.nearest, p.cosines, strict=True)),
        ]
        for p in first
    ]
    return Grid(
        "Prototypes",
        f"The images nearest to a pure class with the mean style. For {hits} of {len(found.prototypes)} classes the nearest one is "
        f"predicted as that class.{cut}",
        [_text("class"), *(_text(str(n)) for n in range(1, len(first[0].nearest) + 1))],
        rows,
    )


def _interpolations(found: StyleFindings) -> Grid:
    first, last = found.styles
    middle = [_text(f"{100 * t:g} %") for t in SHARES[1:-1]]
    rows = [
        [_shown(found, i.content), *(_shown(found, n, found.images[i.content].predicted) for n in i.nearest)]
        for i in found.interpolations
    ]
    return Grid(
        "From one style to another",
        "The nearest images when the content stays and the style goes in equal steps from that of one image to that of another.",
        [_text("content \\ style"), _shown(found, first), *middle, _shown(found, last)],
        rows,
    )


def _neighbours(found: StyleFindings) -> list[Grid]:
    texts = {
        "style": "The images of other predicted classes whose style is nearest.",
        "content": "The images whose class probabilities are nearest.",
        "token": "The images whose whole token is nearest.",
    }
    grids = []
    for space, text in texts.items():
        lists: list[tuple[int, Sequence[int]]] = [(n.of, getattr(n, space)) for n in found.neighbours]
        longest = max((len(near) for _, near in lists), default=0)
        grids.append(
            Grid(
                f"Nearest in {space}" if space != "token" else "Nearest as tokens",
                text,
                [_text("image"), *(_text(str(k)) for k in range(1, longest + 1))],
                [[_shown(found, i), *(_shown(found, n) for n in near)] for i, near in lists],
            )
        )
    return grids


def _axes(found: StyleFindings) -> Figures:
    style = found.style
    return Figures(
        "The distribution of style",
        "Training pulls style towards independent normal axes of mean 0 and standard deviation 1. Normality is the correlation of "
        "the sorted values with the quantiles of a normal distribution. Largest correlation between two axes: "
        f"{style.largest_correlation:.2f}.",
        ["axis", "mean", "standard deviation", "normality"],
        [
            [str(a), f"{mean:.2f}", f"{sd:.2f}", f"{normal:.3f}"]
            for a, (mean, sd, normal) in enumerate(zip(style.mean, style.sd, style.normality, strict=True), 1)
        ],
    )
