"""The findings about forgetting as a page and pictures: which figures stand where, and what is written beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.core.files import write_text
from keepsight.recipes.forgetting_findings import MEAN, UNTOUCHED, AdapterSwitch, Figure, ForgettingFindings
from keepsight.recipes.forgetting_measure import Picture
from keepsight.report.forgetting import TITLES, Drawing, Line, Panel, change_text, interval_svg, scatter_svg, write_page

ROUNDING = 1e-3
"""Share of the largest feature below which the adapter and the merged weights say the same."""

SHOWN = 400
"""Points of a picture, at most."""


def write_forgetting_page(folder: Path, found: ForgettingFindings, pictures: Sequence[Picture]) -> None:
    """forgetting.html, and pca-SET.svg for every set."""
    drawings = []
    for number, picture in enumerate(pictures, 1):
        drawing = _picture(picture, found.config.seed)
        drawings.append(drawing)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", picture.name).strip(".-") or "set"
        write_text(folder / f"pca-{number}-{name[:60]}.svg", drawing.svg + "\n")
    parts: list[Panel | Drawing] = [
        _accuracies(found),
        *_intervals(found),
        _similarities(found),
        *_weights(found),
        *drawings,
    ]
    write_page(
        folder / "forgetting.html",
        f"What {found.method} forgot",
        _lead(found),
        parts,
        [("Settings", found.config.model_dump_json(indent=2))],
    )


def _lead(found: ForgettingFindings) -> list[str]:
    before = "the untouched backbone" if found.against == UNTOUCHED else f"the model fitted by {found.against}"
    told = [found.summary(), f"Backbone {found.backbone}, readout {found.readout}; compared with {before}."]
    if found.adapter is not None:
        told.append(_adapter(found.adapter))
    if found.sharpness is not None:
        s = found.sharpness
        told.append(
            f"Sharpness: the cross-entropy on {s.images} of the model's own labelled images rises from {s.loss:.4f} by "
            f"{s.rise:.4f} nats (standard deviation {s.spread:.4f} over {s.pairs} pairs) when every tensor of the backbone is "
            f"moved by {s.rho:g} of its norm in a random direction, both ways."
        )
    return [*told, *found.notes]


def _adapter(a: AdapterSwitch) -> str:
    if not a.off_identical:
        return (
            f"With the LoRA adapter off, features of {a.images} images differ from those of the untouched backbone by "
            f"{a.off_deviation:.1e} of the largest one: they are not the same."
        )
    off = (
        f"With the LoRA adapter off, the features of {a.images} images are bitwise equal to those of the untouched backbone: "
        f"switched off, the model has forgotten nothing, exactly. All figures below are those with the adapter on."
    )
    on = f"Switched on, it differs from the merged model by at most {a.on_deviation:.1e} of the largest feature"
    return f"{off} {on}{', which is rounding' if a.on_deviation < ROUNDING else ': it is not what was merged'}."


def _accuracies(found: ForgettingFindings) -> Panel:
    shown = [name for name in TITLES if any(name in s.figures for s in found.sets)]
    rows = [
        [name, f"{images:,}", classes, *(_cell(figures.get(metric)) for metric in shown)]
        for name, images, classes, figures in (
            *((s.name, s.images, str(s.classes), s.figures) for s in found.sets),
            (MEAN, sum(s.images for s in found.sets), "", found.mean),
        )
    ]
    rule = found.config.rule
    return Panel(
        "Accuracy on data that was not trained on",
        f"Before -> after in per cent, and the change in points with its 95 % interval: paired bootstrap, the same images "
        f"resampled for both. Every image is predicted once, by a probe that did not see it ({rule.folds} folds); the penalty of "
        f"the linear probe is chosen inside of each fold's training images, by the same rule before and after; k-NN takes "
        f"{rule.neighbours} neighbours. The mean's interval resamples images within the sets.",
        ["data set", "images", "classes", *(f"{TITLES[name]} %" for name in shown)],
        rows,
    )


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else change_text(figure.before, figure.change, figure.low, figure.high)


def _intervals(found: ForgettingFindings) -> list[Drawing]:
    made = []
    for metric in ("probe_accuracy", "knn_accuracy", "zero_shot_accuracy"):
        named = [(s.name, s.figures.get(metric)) for s in found.sets] + [(MEAN, found.mean.get(metric))]
        lines = [Line(name, 100 * f.change, 100 * f.low, 100 * f.high) for name, f in named if f is not None]
        if lines:
            caption = "Points of accuracy gained (right) or lost (left), with 95 % intervals; orange where it is surely a loss."
            title = f"Change of accuracy: {TITLES[metric]}"
            made.append(Drawing(title, caption, interval_svg(lines, title)))
    return made


def _similarities(found: ForgettingFindings) -> Panel:
    names = [block.readout for block in found.sets[0].blocks]
    rows = [
        [name, *(f"{s.blocks[i].cka:.3f} ({s.blocks[i].shuffled:+.3f})" for s in found.sets)]
        for i, name in enumerate(names)
    ]
    return Panel(
        "Similarity of the representations",
        "Debiased linear CKA between before and after, block by block; in brackets its control with the images of one side "
        "shuffled, which should be near 0. It explains and proves nothing: it can fall while accuracy rises, and it is circular "
        "as evidence for a method that was trained to keep it.",
        ["block and pool", *(f"{s.name} (n = {s.images:,})" for s in found.sets)],
        rows,
    )


def _weights(found: ForgettingFindings) -> list[Panel]:
    if found.weights is None:
        return []
    blocks = found.weights.blocks
    depth = len(found.sets[0].blocks) - 1
    names = {0: "before the first block", depth + 1: "after the last block"}
    rows = [["all weights", f"{found.weights.total:.2e}"]]
    rows += [[names.get(block, f"block {block}"), f"{distance:.2e}"] for block, distance in blocks.items()]
    return [
        Panel(
            "Distance of the weights",
            "||W after - W before|| / ||W before||, Frobenius norms.",
            ["weights", "relative distance"],
            rows,
        )
    ]


def _picture(picture: Picture, seed: int) -> Drawing:
    chosen = np.sort(np.random.default_rng((seed, 7)).permutation(len(picture.labels_N))[:SHOWN])
    title = f"Principal axes: {picture.name}"
    svg = scatter_svg(
        (_points(picture.before_N2[chosen]), _points(picture.after_N2[chosen])),
        picture.labels_N[chosen].tolist(),
        picture.classes,
        title,
    )
    caption = (
        f"{len(chosen)} images on the first two principal axes before, and after with the rotation between the two removed "
        "(orthogonal Procrustes on the same images, on at most 50 principal axes of each). Both panels have one scale; colours "
        "repeat where there are many classes."
    )
    return Drawing(title, caption, svg)


def _points(p_N2: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in p_N2]
