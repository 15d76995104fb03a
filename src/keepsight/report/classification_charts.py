"""Charts of classified images: reliability, confusion and scatter plots of features. Other charts are in `charts`.

From figures to Vega-Lite and a table of the same figures. Knows no run, no record and no page's looks; see `charts` for the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keepsight.report.chart_parts import (
    Spec,
    by_group,
    chart,
    chosen,
    equal_line,
    finite,
    interval,
    layered,
    numeric,
    plain,
    shown,
    table,
    tips,
    unlike,
    unlisted,
    whiskers,
    writer,
)
from keepsight.report.page import Chart, Table

LABELLED = 30
"""A confusion matrix of more classes has no names on its axes, and its table holds the pairs that are confused most."""
_PAIRS = 20
_POINTS = 400  # points of a scatter plot whose table has a row for each
_COLOURED = 16  # classes of a scatter plot that have a legend


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of like confidence: mean confidence, share that is right with its interval, and their number."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Cloud:
    """A panel of points; `classes` has the class number of each."""

    title: str
    points: tuple[tuple[float, float], ...]
    classes: tuple[int, ...]


def reliability_chart(title: str, bins: Mapping[str, Sequence[Bin]], *, caption: str, description: str) -> Chart:
    """The share of right answers against the confidence; on the diagonal, confidence keeps what it promises."""
    groups = unlike(bins)
    values: list[Spec] = [
        {
            "group": name,
            "confidence": finite(each.confidence),
            "accuracy": finite(each.accuracy),
            "low": finite(each.low),
            "high": finite(each.high),
            "n": int(each.n),
            "confidence_figure": f"{each.confidence:.3f}",
            "accuracy_figure": f"{each.accuracy:.3f}",
            "interval": interval(lambda value: f"{value:.3f}", each.low, each.high),
            "n_figure": f"{each.n:,}",
        }
        for name, made in zip(groups, bins.values(), strict=True)
        for each in made
    ]
    axes = {"confidence_figure": "Confidence, mean of the bin", "accuracy_figure": "Share of right answers"}
    tooltip = tips(group="Predictions", **axes, interval="Interval", n_figure="Predictions in the bin")
    x, y = (
        numeric("confidence", axes["confidence_figure"], (0, 1)),
        numeric("accuracy", axes["accuracy_figure"], (0, 1)),
    )
    dashed = by_group(groups, "color", "strokeDash")
    line: Spec = {
        "mark": {"type": "line", "style": "curve"},
        "encoding": {"x": x, "y": y, **dashed, **shown(groups)},
    }
    point: Spec = {
        "mark": {"type": "point", "filled": True, "style": "value"},
        "encoding": {
            "x": x,
            "y": y,
            "size": {"field": "n", "type": "quantitative", "legend": None, "scale": {"range": [25, 220]}},
            **by_group(groups, "color", "shape"),
            **shown(groups),
            "tooltip": tooltip,
        },
    }
    spec = {
        "usermeta": {"width": 560},
        "width": "container",
        "height": 380,
        "data": {"values": values},
        "layer": layered([equal_line(0, 1), whiskers("y", "low", "high", x, groups, tooltip), line, point], groups),
        **unlisted(dashed, "strokeDash"),
    }
    fields = ("group", "confidence_figure", "accuracy_figure", "interval", "n_figure")
    headings = ("Predictions", *axes.values(), "Interval", "Predictions in the bin")
    return chart(
        title, caption, description, spec, table(title, headings, [[row[field] for field in fields] for row in values])
    )


def confusion_chart(
    title: str, classes: Sequence[str], counts_KK: Sequence[Sequence[int]], *, caption: str, description: str
) -> Chart:
    """Answers of each true class (row) as shares of its images, counts in the tooltip.

    With more than `LABELLED` classes the axes have no names, and the table holds the pairs that are confused most.
    """
    names, many = unlike(classes), len(classes) > LABELLED
    totals = [int(sum(row)) for row in counts_KK]
    cells = [{"t": t, "a": a, "n": int(n)} for t, row in enumerate(counts_KK) for a, n in enumerate(row) if n]
    looked_up = [
        {"number": number, "name": name, "of": of} for number, (name, of) in enumerate(zip(names, totals, strict=True))
    ]
    axis = {"labels": not many, "ticks": False, "domain": False, "grid": False}
    across = {"type": "nominal", "sort": None, "scale": {"domain": names, "padding": 0}}
    encoding: Spec = {
        "x": {**across, "field": "answer", "title": "Answer", "axis": {**axis, "labelAngle": -45}},
        "y": {**across, "field": "truth", "title": "True class", "axis": axis},
        "tooltip": [
            *tips(truth="True class", answer="Answer"),
            {"field": "n", "type": "quantitative", "title": "Images", "format": ","},
            {"field": "of", "type": "quantitative", "title": "of the class's images", "format": ","},
            {"field": "share", "type": "quantitative", "title": "Share of the class", "format": ".1%"},
        ],
    }
    # opacity over the page's ground suits light and dark; the root lifts rare confusions from the ground
    strength = {"type": "sqrt", "domain": [0, 1], "range": [0, 1]}
    legend = {
        "format": ".0%",
        "values": [0.02, 0.1, 0.25, 0.5, 1],
        "symbolType": "square",
        "symbolSize": 160,
        "columns": 5,
    }
    share = {
        "field": "share",
        "type": "quantitative",
        "title": "Share of the class",
        "scale": strength,
        "legend": legend,
    }
    rect: Spec = {"mark": {"type": "rect", "style": "heat"}, "encoding": {**encoding, "opacity": share}}
    texts: list[Spec] = [
        {
            "transform": [{"filter": f"datum.share {which} 0.5"}],
            "mark": {"type": "text", "style": style},
            "encoding": {**encoding, "text": {"field": "n", "type": "quantitative", "format": ","}},
        }
        for which, style in (("<", "on-weak"), (">=", "on-strong"))
    ]
    side = max(180, min(26 * len(names), 560)) if not many else 560
    spec = {
        "usermeta": {"width": side + (60 if many else 220), "square": many},
        "width": "container",
        "height": side,
        "data": {"values": cells},
        "transform": [
            {
                "lookup": "t",
                "from": {"data": {"values": looked_up}, "key": "number", "fields": ["name", "of"]},
                "as": ["truth", "of"],
            },
            {
                "lookup": "a",
                "from": {"data": {"values": looked_up}, "key": "number", "fields": ["name"]},
                "as": ["answer"],
            },
            {"calculate": "datum.n / datum.of", "as": "share"},
        ],
        "layer": [rect, *(texts if len(names) <= 12 else [])],
    }
    return chart(title, caption, description, spec, _confusion_table(title, names, counts_KK, totals))


def _confusion_table(
    title: str, names: Sequence[str], counts_KK: Sequence[Sequence[int]], totals: Sequence[int]
) -> Table:
    if len(names) <= LABELLED:
        rows = [
            (name, *(f"{n:,}" for n in row), f"{of:,}") for name, row, of in zip(names, counts_KK, totals, strict=True)
        ]
        return table(
            title,
            ("True class", *names, "Images"),
            rows,
            "Counts of answers; a row is a true class, a column an answer.",
        )
    wrong = [(int(n), t, a) for t, row in enumerate(counts_KK) for a, n in enumerate(row) if n and a != t]
    most = sorted(wrong, key=lambda pair: (-pair[0], pair[1], pair[2]))[:_PAIRS]
    share = [(names[t], names[a], f"{n:,}", f"{n / totals[t]:.1%}") for n, t, a in most]
    made = table("", ("True class", "Answer", "Images", "Share of the class"), share)
    said = f"The {len(most)} pairs that are confused most, of {len(wrong)} that are confused at all."
    return made.model_copy(update={"title": f"{plain(title)}: most confused pairs", "caption": said})


def scatter_chart(
    title: str, clouds: Sequence[Cloud], classes: Sequence[str], *, caption: str, description: str
) -> Chart:
    """Panels of points side by side, on one scale, coloured by class; above 16 classes without a legend.

    The table has every point, or the means of the classes where there are more than 400.
    """
    names = unlike(classes)
    points = [point for cloud in clouds for point in cloud.points if None not in map(finite, point)]
    ends = [
        [float(f"{end(point[axis] for point in points):.4g}") for end in (min, max)] if points else [0, 1]
        for axis in (0, 1)
    ]
    write = writer([number for point in points for number in point])
    legend: Spec = {} if len(names) <= _COLOURED else {"legend": None}
    groups = {channel: {**encoding, **legend} for channel, encoding in by_group(names, "color", "shape").items()}
    position = {
        axis: {**numeric(axis, said, domain), "scale": {"domain": domain, "zero": False, "nice": True, "padding": 6}}
        for axis, said, domain in (("x", "First component", ends[0]), ("y", "Second component", ends[1]))
    }
    interactive = len(names) <= _COLOURED and len(names) > 1
    opacity = shown(names, 0.75) if interactive else {"opacity": {"value": 0.75}}
    panels: list[Spec] = [
        {
            "title": plain(cloud.title),
            "width": 240,
            "height": 240,
            "data": {"values": _dots(cloud)},
            "transform": [
                {
                    "lookup": "c",
                    "from": {"data": {"name": "classes"}, "key": "number", "fields": ["name"]},
                    "as": ["group"],
                }
            ],
            "mark": {"type": "point", "filled": True, "size": 22, "style": "value"},
            "encoding": {**position, **groups, **opacity, "tooltip": tips(group="Class")},
        }
        for cloud in clouds
    ]
    spec: dict[str, Any] = {
        "usermeta": {"panel": 240},
        "datasets": {"classes": [{"number": number, "name": name} for number, name in enumerate(names)]},
        "columns": len(clouds),
        "concat": panels,
        **(chosen(names) if interactive else {}),
    }
    return chart(title, caption, description, spec, _scatter_table(title, clouds, names, write))


def _scatter_table(
    title: str, clouds: Sequence[Cloud], names: Sequence[str], write: Callable[[float | None], str]
) -> Table:
    """Each point; of more than `_POINTS` in all, the middle of each class, since nobody reads thousands of rows."""
    axes = ("First component", "Second component")
    pairs = [
        (cloud, point, number) for cloud in clouds for point, number in zip(cloud.points, cloud.classes, strict=True)
    ]
    if len(pairs) <= _POINTS:
        rows = [(cloud.title, names[number], *map(write, point)) for cloud, point, number in pairs]
        return table(title, ("Panel", "Class", *axes), rows)
    means = []
    for cloud in clouds:
        of_class: dict[int, list[tuple[float, float]]] = {}
        for point, number in zip(cloud.points, cloud.classes, strict=True):
            of_class.setdefault(number, []).append(point)
        for number, points in sorted(of_class.items()):
            middle = [write(sum(point[axis] for point in points) / len(points)) for axis in (0, 1)]
            means.append((cloud.title, names[number], f"{len(points):,}", *middle))
    made = table("", ("Panel", "Class", "Points", *(f"{axis}, mean" for axis in axes)), means)
    said = f"The middle of each class; {len(pairs):,} points are drawn."
    return made.model_copy(update={"title": f"{plain(title)}: the classes as a table", "caption": said})


def _dots(cloud: Cloud) -> list[Spec]:
    """Points with four digits, which is finer than a screen."""
    return [
        {"x": float(f"{x:.4g}"), "y": float(f"{y:.4g}"), "c": int(number)}
        for (x, y), number in zip(cloud.points, cloud.classes, strict=True)
        if finite(x) is not None and finite(y) is not None
    ]
