"""What tuned models forgot, as a page of its own and as sections of a run's page; from records alone.

Which figures stand where, and what is written beside them. Knows no features, no model and no HTML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from keepsight.core import UserError
from keepsight.report.charts import Curve, CurvePoint, Spot, curves_chart, interval_chart
from keepsight.report.classification_charts import Cloud, scatter_chart
from keepsight.report.forgetting import TITLES, change_text
from keepsight.report.forgetting_records import (
    FINDINGS,
    MEAN,
    UNTOUCHED,
    AdapterSwitch,
    Figure,
    ForgettingFindings,
    SetPoints,
    SharpnessFindings,
    read_findings,
    read_points,
)
from keepsight.report.galleries import read_galleries
from keepsight.report.page import Block, Chart, Listing, Page, Pictures, Table, Text, sections

ROUNDING = 1e-3
"""Share of the largest feature below which the adapter and the merged weights say the same."""

ACCURACIES = tuple(name for name in TITLES if name.endswith("_accuracy"))
CONTROL = "shuffled control"

_READING = (
    "It explains and proves nothing: it can fall while accuracy rises, and it is circular as evidence for a method that was "
    "trained to keep it."
)


def forgetting_page(folder: Path) -> Page:
    """The page of one measurement; UserError where there is none in the folder, or it is damaged."""
    found, points = read_findings(folder), read_points(folder)
    return Page(
        version=found.version,
        kind="forgetting",
        title=f"What {found.method} forgot",
        answer=answer(found.method, found),
        lead=(found.summary(), _about(found), *found.notes),
        sections=sections(
            [
                ("Accuracy on data that was not trained on", [_accuracies(found), *_intervals(found)]),
                ("The adapter off and on", [_adapter(found.adapter)]),
                ("Similarity of the representations", _similarities(found)),
                ("Weights", [_weights(found)]),
                ("Sharpness of the loss", [_sharpness(found.sharpness)]),
                ("Principal axes before and after", [_picture(each) for each in points]),
                ("Where the networks look", _looks(folder)),
                ("Settings", [_settings(found)]),
            ]
        ),
    )


def forgetting_sections(folder: Path) -> list[tuple[str, list[Block]]]:
    """What the methods of a run forgot, from the subfolders METHOD of its `forgetting/`; nothing where there are none.

    One section a method; with several methods one that compares them comes first. A measurement that is damaged is named, and the
    others are shown.
    """
    found: dict[str, ForgettingFindings] = {}
    made: list[tuple[str, list[Block]]] = []
    folders = sorted(folder.iterdir()) if folder.is_dir() else []
    for each in folders:
        if each.name.startswith(".") or not (each / FINDINGS).is_file():
            continue
        title = f"What {each.name} forgot"
        try:
            findings, points, looks = read_findings(each), read_points(each), _looks(each)
        except UserError as error:
            made.append((title, [Text(text=f"Not shown: {error}")]))
            continue
        found[each.name] = findings
        made.append((title, _blocks(each.name, findings, points, looks)))
    return [("What was forgotten", _compared(found)), *made] if len(found) > 1 else made


def answer(method: str, found: ForgettingFindings) -> str:
    """In a sentence what happened to the mean accuracy of linear probes on other data."""
    of = found.mean.get("probe_accuracy")
    sets = f"{len(found.sets)} data sets" if len(found.sets) > 1 else "one data set"
    where = f"on {sets} that it was not trained on (n = {sum(s.images for s in found.sets):,})"
    if of is None:
        return f"What {method} forgot was measured {where}; no figure was measured on every set."
    if of.kind == "identical":
        return f"{method} forgot nothing {where}: every prediction of the linear probes is the one from before."
    change = (
        f"{100 * of.change:+.1f} points [{100 * of.low:+.1f}, {100 * of.high:+.1f}] of linear-probe accuracy {where}"
    )
    against = "" if found.against == UNTOUCHED else f", compared with {found.against}"
    knn = found.mean.get("knn_accuracy")
    if knn is not None:
        against = f"; k-NN {100 * knn.change:+.1f} points [{100 * knn.low:+.1f}, {100 * knn.high:+.1f}]{against}"
    if of.high < 0:
        return f"{method} forgot: {change}{against}."
    if knn is not None and knn.high < 0:
        return f"{method} forgot, which k-NN shows and the linear probe does not: {change}{against}."
    if of.low > 0:
        return f"{method} forgot nothing that shows, and gained: {change}{against}."
    return f"{method} changed nothing that can be told from zero: {change}{against}."


def _blocks(
    name: str, found: ForgettingFindings, points: Sequence[SetPoints], looks: Sequence[Pictures]
) -> list[Block]:
    """All of one measurement for a section of a longer page."""
    made: list[Block | None] = [Text(text=answer(name, found), lead=True), Text(text=_about(found))]
    made += [Text(text=note) for note in found.notes]
    made += [_accuracies(found), *_intervals(found), _adapter(found.adapter), *_similarities(found), _weights(found)]
    made += [_sharpness(found.sharpness), *(_picture(each) for each in points), *looks, _settings(found)]
    return [block for block in made if block is not None]


def _compared(found: dict[str, ForgettingFindings]) -> list[Block]:
    """The means of several methods side by side."""
    shown = [metric for metric in TITLES if any(metric in f.mean for f in found.values())]
    rows = tuple(
        (name, f"{sum(s.images for s in f.sets):,}", *(_cell(f.mean.get(metric)) for metric in shown))
        for name, f in found.items()
    )
    table = Table(
        title="Mean of the suite",
        caption="Before -> after in per cent, and the change in points with its 95 % interval: paired bootstrap, images resampled "
        "within the sets. Two methods can be compared where they were measured on the same sets.",
        headings=("method", "images", *(f"{TITLES[metric]} %" for metric in shown)),
        rows=rows,
    )
    changes = [(name, f.mean.get("probe_accuracy")) for name, f in found.items()]
    chart = _interval_chart("Change of the mean accuracy: linear probe", changes)
    return [table] if chart is None else [table, chart]


def _about(found: ForgettingFindings) -> str:
    before = "the untouched backbone" if found.against == UNTOUCHED else f"the model fitted by {found.against}"
    return f"Backbone {found.backbone}, readout {found.readout}; compared with {before}."


def _adapter(a: AdapterSwitch | None) -> Text | None:
    if a is None:
        return None
    if not a.off_identical:
        return Text(
            text=f"With the LoRA adapter off, features of {a.images} images differ from those of the untouched backbone by "
            f"{a.off_deviation:.1e} of the largest one: they are not the same."
        )
    off = (
        f"With the LoRA adapter off, the features of {a.images} images are bitwise equal to those of the untouched backbone: "
        f"switched off, the model has forgotten nothing, exactly. All other figures are those with the adapter on."
    )
    on = f"Switched on, it differs from the merged model by at most {a.on_deviation:.1e} of the largest feature"
    return Text(
        text=f"{off} {on}{', which is rounding' if a.on_deviation < ROUNDING else ': it is not what was merged'}."
    )


def _sharpness(s: SharpnessFindings | None) -> Text | None:
    if s is None:
        return None
    return Text(
        text=f"Sharpness: the cross-entropy on {s.images} of the model's own labelled images rises from {s.loss:.4f} by "
        f"{s.rise:.4f} nats (standard deviation {s.spread:.4f} over {s.pairs} pairs) when every tensor of the backbone is "
        f"moved by {s.rho:g} of its norm in a random direction, both ways."
    )


def _accuracies(found: ForgettingFindings) -> Table:
    shown = [name for name in TITLES if any(name in s.figures for s in found.sets)]
    rows = [
        (name, f"{images:,}", classes, *(_cell(figures.get(metric)) for metric in shown))
        for name, images, classes, figures in (
            *((s.name, s.images, str(s.classes), s.figures) for s in found.sets),
            (MEAN, sum(s.images for s in found.sets), "", found.mean),
        )
    ]
    rule = found.config.get("rule", {})
    folds, neighbours = rule.get("folds"), rule.get("neighbours")
    return Table(
        title="Accuracy before and after",
        caption=f"Before -> after in per cent, and the change in points with its 95 % interval: paired bootstrap, the same images "
        f"resampled for both. Every image is predicted once, by a probe that did not see it ({folds} folds); the penalty of "
        f"the linear probe is chosen inside of each fold's training images, by the same rule before and after; k-NN takes "
        f"{neighbours} neighbours. The mean's interval resamples images within the sets.",
        headings=("data set", "images", "classes", *(f"{TITLES[name]} %" for name in shown)),
        rows=tuple(rows),
        marked=(len(rows) - 1,),
    )


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else change_text(figure.before, figure.change, figure.low, figure.high)


def _intervals(found: ForgettingFindings) -> list[Chart | None]:
    made = []
    for metric in ACCURACIES:
        named = [*((s.name, s.figures.get(metric)) for s in found.sets), (MEAN, found.mean.get(metric))]
        made.append(_interval_chart(f"Change of accuracy: {TITLES[metric]}", named))
    return made


def _interval_chart(title: str, named: Sequence[tuple[str, Figure | None]]) -> Chart | None:
    spots = [
        Spot(name, 100 * f.change, 100 * f.low, 100 * f.high, note=f"{100 * f.before:.1f} % before")
        for name, f in named
        if f is not None
    ]
    if not spots:
        return None
    return interval_chart(
        title,
        spots,
        axis="change of accuracy, points",
        caption="Points of accuracy gained (right of zero) or lost (left), with 95 % intervals; a ring marks a sure loss.",
        description=f"{title}: a row each with its interval, against zero.",
        reference=0.0,
        marked=[spot.name for spot in spots if spot.high is not None and spot.high < 0],
    )


def _similarities(found: ForgettingFindings) -> list[Block | None]:
    rows = [
        (s.name, f"{s.images:,}", f"{s.blocks[-1].cka:.3f}", f"{s.blocks[-1].shuffled:+.3f}")
        for s in found.sets
        if s.blocks
    ]
    table = Table(
        title=f"Similarity of the readout {found.readout}",
        caption=f"Debiased linear CKA between before and after, and its control with the images of one side shuffled, which should "
        f"be near 0. {_READING}",
        headings=("data set", "n", "CKA", "control"),
        rows=tuple(rows),
    )
    return [_block_chart(found), table if rows else None]


def _block_chart(found: ForgettingFindings) -> Chart | None:
    """CKA block by block, a line a set, and the controls of all sets together; None where the blocks of the two differ."""
    count = min(len(s.blocks) for s in found.sets) - 1
    if count < 1:
        return None
    curves = [
        Curve(
            s.name,
            tuple(
                CurvePoint(float(i + 1), s.blocks[i].cka, note=f"control {s.blocks[i].shuffled:+.3f}")
                for i in range(count)
            ),
        )
        for s in found.sets
    ]
    controls = [[s.blocks[i].shuffled for s in found.sets] for i in range(count)]
    points = (CurvePoint(float(i + 1), sum(c) / len(c), min(c), max(c)) for i, c in enumerate(controls))
    curves.append(Curve(CONTROL, tuple(points)))
    pool = found.sets[0].blocks[0].readout.partition(":")[2]
    lowest = min(point.low if point.low is not None else point.y for curve in curves for point in curve.points)
    images = ", ".join(f"{s.name} n = {s.images:,}" for s in found.sets)
    return curves_chart(
        "Similarity to the representation before, block by block",
        curves,
        x_axis=f"block (pool: {pool})" if pool else "block",
        y_axis="CKA with before",
        caption=f"Debiased linear CKA between before and after; {images}. The control, with the images of one side shuffled, "
        f"should be near 0: the line is its mean over the sets, the band their range. {_READING}",
        description="CKA of each block before and after tuning, one line a data set, with a shuffled control.",
        y_domain=(min(-0.05, lowest), 1.0),
    )


def _weights(found: ForgettingFindings) -> Table | None:
    if found.weights is None:
        return None
    blocks = found.weights.blocks
    depth = len(found.sets[0].blocks) - 1
    names = {0: "before the first block", depth + 1: "after the last block"}
    rows = [("all weights", f"{found.weights.total:.2e}")]
    rows += [(names.get(block, f"block {block}"), f"{distance:.2e}") for block, distance in blocks.items()]
    return Table(
        title="Distance of the weights",
        caption="||W after - W before|| / ||W before||, Frobenius norms.",
        headings=("weights", "relative distance"),
        rows=tuple(rows),
        marked=(0,),
    )


def _picture(points: SetPoints) -> Chart:
    return scatter_chart(
        f"Principal axes: {points.name}",
        [Cloud("before", points.before, points.labels), Cloud("after, rotated back", points.after, points.labels)],
        points.classes,
        caption=f"{len(points.labels)} images on the first two principal axes before, and after with the rotation between the two "
        f"removed (orthogonal Procrustes on the same images, on at most 50 principal axes of each). Both panels have one scale.",
        description=f"Two clouds of points, before and after tuning, on the same images of {points.name}, by class.",
    )


def _looks(folder: Path) -> list[Pictures]:
    return [gallery.pictures for gallery in read_galleries(folder) or ()]


def _settings(found: ForgettingFindings) -> Listing:
    text = json.dumps(found.config, indent=2, ensure_ascii=False)
    return Listing(title="How forgetting was measured", text=text)
