"""Charts of values with intervals: rows, trade-offs, curves. Charts of classified images are in `classification_charts`.

From figures to Vega-Lite and a table of the same figures. Knows no run, no record and no page's looks.

Every mark names what it stands for when the mouse rests on it. Groups differ in shape or dashes as well as in colour. A value that
is not finite is not drawn; the table says so. `usermeta` in a specification tells the page how wide it may be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepsight.report.chart_parts import (
    LISTED,
    Spec,
    by_group,
    chart,
    equal_line,
    finite,
    interval,
    layered,
    named,
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
from keepsight.report.page import Chart

_NAMED = 12  # points of a trade-off that have their names beside them
_DOTTED = 40  # points of a curve that are drawn as dots


@dataclass(frozen=True, slots=True)
class Spot:
    """A value with its interval, in a row of its own."""

    name: str
    value: float
    low: float | None
    high: float | None
    group: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Two values of one thing, each with its interval."""

    name: str
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None
    group: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point of a curve, with an interval of y."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A named line."""

    name: str
    points: tuple[CurvePoint, ...]


def _groups(names: Sequence[str]) -> list[str]:
    """Groups in their order of appearance."""
    return list(dict.fromkeys(named(name, "other") for name in names))


def interval_chart(
    title: str,
    spots: Sequence[Spot],
    *,
    axis: str,
    caption: str,
    description: str,
    reference: float | None = None,
    marked: Sequence[str] = (),
) -> Chart:
    """A row for each value, with its interval; `reference` is a vertical line, names in `marked` have a ring."""
    names, groups = unlike(spot.name for spot in spots), _groups([spot.group for spot in spots])
    write = writer([number for spot in spots for number in (spot.value, spot.low, spot.high)])
    values: list[Spec] = [
        {
            "name": name,
            "value": finite(spot.value),
            "low": finite(spot.low),
            "high": finite(spot.high),
            "group": named(spot.group, "other"),
            "note": plain(spot.note),
            "figure": write(spot.value),
            "interval": interval(write, spot.low, spot.high),
            "marked": spot.name in marked,
        }
        for name, spot in zip(names, spots, strict=True)
    ]
    notes = {"note": "Note"} if any(spot.note for spot in spots) else {}
    tooltip = tips(name="Name", figure=plain(axis), interval="Interval", **notes)
    rows = {"field": "name", "type": "nominal", "title": None, "scale": {"domain": names}, "sort": None}
    x = numeric("value", axis)
    line: Spec = {
        "data": {"values": [{"reference": finite(reference)}]},
        "mark": {"type": "rule", "style": "reference"},
        "encoding": {"x": {"field": "reference", "type": "quantitative"}},
    }
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 75, "style": "value"},
        "encoding": {
            "x": x,
            "y": rows,
            **by_group(groups, "color", "shape"),
            **shown(groups),
            "tooltip": tooltip,
        },
    }
    ring: Spec = {
        "transform": [{"filter": "datum.marked"}],
        "mark": {"type": "point", "filled": False, "size": 260, "style": "marked"},
        "encoding": {"x": x, "y": rows, "tooltip": tooltip},
    }
    layers = [whiskers("x", "low", "high", rows, groups, tooltip), point]
    layers += [ring] if any(row["marked"] for row in values) else []
    layers = [line, *layers] if finite(reference) is not None else layers
    spec = {
        "width": "container",
        "height": 24 * max(1, len(names)),
        "data": {"values": values},
        "layer": layered(layers, groups),
    }
    data = table(
        title,
        ("Name", axis, "Interval", "Group", "Note"),
        [
            (row["name"], row["figure"], row["interval"], spot.group, row["note"])
            for row, spot in zip(values, spots, strict=True)
        ],
    )
    return chart(title, caption, description, spec, data)


def _tradeoff_values(tradeoffs: Sequence[Tradeoff], connected: Sequence[str]) -> list[Spec]:
    write_x = writer([number for each in tradeoffs for number in (each.x, each.x_low, each.x_high)])
    write_y = writer([number for each in tradeoffs for number in (each.y, each.y_low, each.y_high)])
    return [
        {
            "name": name,
            **{field: finite(getattr(each, field)) for field in ("x", "x_low", "x_high", "y", "y_low", "y_high")},
            "group": named(each.group, "other"),
            "note": plain(each.note),
            "x_figure": write_x(each.x),
            "x_interval": interval(write_x, each.x_low, each.x_high),
            "y_figure": write_y(each.y),
            "y_interval": interval(write_y, each.y_low, each.y_high),
            "joined": bool(each.group) and each.group in connected,
            "place": place,
        }
        for place, (name, each) in enumerate(zip(unlike(each.name for each in tradeoffs), tradeoffs, strict=True))
    ]


def tradeoff_chart(
    title: str,
    tradeoffs: Sequence[Tradeoff],
    *,
    x_axis: str,
    y_axis: str,
    caption: str,
    description: str,
    connected: Sequence[str] = (),
) -> Chart:
    """Two values of each against one another, with both intervals; groups in `connected` are joined by a line in their order."""
    values, groups = _tradeoff_values(tradeoffs, connected), _groups([each.group for each in tradeoffs])
    notes = {"note": "Note"} if any(each.note for each in tradeoffs) else {}
    fields = {
        "x_figure": plain(x_axis),
        "x_interval": "its interval",
        "y_figure": plain(y_axis),
        "y_interval": "its interval",
    }
    tooltip = tips(name="Name", **fields, **notes)
    x, y = numeric("x", x_axis), numeric("y", y_axis)
    joined: Spec = {
        "transform": [{"filter": "datum.joined"}],
        "mark": {"type": "line", "style": "joined"},
        "encoding": {
            "x": x,
            "y": y,
            "order": {"field": "place", "type": "quantitative"},
            "detail": {"field": "group", "type": "nominal"},
            **by_group(groups, "color"),
            **shown(groups, 0.6),
        },
    }
    point: Spec = {
        "mark": {"type": "point", "filled": True, "size": 80, "style": "value"},
        "encoding": {"x": x, "y": y, **by_group(groups, "color", "shape"), **shown(groups), "tooltip": tooltip},
    }
    label: Spec = {
        "mark": {"type": "text", "align": "left", "dx": 7, "dy": -8, "style": "name"},
        "encoding": {"x": x, "y": y, "text": {"field": "name"}, **shown(groups), "tooltip": tooltip},
    }
    layers = [joined] if any(row["joined"] for row in values) else []
    layers += [
        whiskers("x", "x_low", "x_high", y, groups, tooltip),
        whiskers("y", "y_low", "y_high", x, groups, tooltip),
    ]
    layers += [label, point] if len(values) <= _NAMED else [point]
    spec = {"width": "container", "height": 360, "data": {"values": values}, "layer": layered(layers, groups)}
    columns = ("name", "x_figure", "x_interval", "y_figure", "y_interval")
    rows = [
        (*(row[field] for field in columns), each.group, row["note"])
        for row, each in zip(values, tradeoffs, strict=True)
    ]
    headings = ("Name", x_axis, f"Interval of {x_axis}", y_axis, f"Interval of {y_axis}", "Group", "Note")
    return chart(title, caption, description, spec, table(title, headings, rows))


def _curve_values(curves: Sequence[Curve]) -> list[Spec]:
    points = [point for curve in curves for point in curve.points]
    write_x = writer([point.x for point in points])
    write_y = writer([number for point in points for number in (point.y, point.low, point.high)])
    return [
        {
            "group": name,
            "x": finite(point.x),
            "y": finite(point.y),
            "low": finite(point.low),
            "high": finite(point.high),
            "note": plain(point.note),
            "x_figure": write_x(point.x),
            "y_figure": write_y(point.y),
            "interval": interval(write_y, point.low, point.high),
        }
        for name, curve in zip(unlike(curve.name for curve in curves), curves, strict=True)
        for point in curve.points
    ]


def curves_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    x_axis: str,
    y_axis: str,
    caption: str,
    description: str,
    log_x: bool = False,
    diagonal: bool = False,
    y_domain: tuple[float, float] | None = None,
) -> Chart:
    """Lines with bands where there are intervals; `diagonal` is the line y = x. With `log_x`, x at or below 0 is not drawn."""
    values, groups = _curve_values(curves), unlike(curve.name for curve in curves)
    y = numeric("y", y_axis, y_domain)
    drawn = [row for row in values if row["x"] is not None and row["y"] is not None and (row["x"] > 0 or not log_x)]
    xs = [row["x"] for row in drawn] or [1.0]
    x = numeric("x", x_axis, (min(xs), max(xs)), "log") if log_x else numeric("x", x_axis)
    extra = {field: heading for field, heading in (("interval", "Interval"), ("note", "Note")) if _any(drawn, field)}
    tooltip = tips(
        **({"group": "Line"} if len(groups) > 1 or groups != ["(no name)"] else {}), **_axes(x_axis, y_axis), **extra
    )
    across = {"field": "group", "type": "nominal"}
    visible = 1.0 if max((len(curve.points) for curve in curves), default=0) <= _DOTTED else 0.0
    dashed, dotted = by_group(groups, "color", "strokeDash"), by_group(groups, "color", *(["shape"] if visible else []))
    apart = unlisted(dashed, "strokeDash") if visible else {}  # the legend shows the dots
    if not visible and len(groups) <= LISTED:  # or the dashes of lines without dots
        for encoding in (*dashed.values(), *dotted.values()):
            encoding["legend"] = {"symbolType": "stroke", "symbolSize": 260, "symbolStrokeWidth": 2.5}
    band: Spec = {
        "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
        "mark": {"type": "area", "style": "band"},
        "encoding": {
            "x": x,
            "y": {**y, "field": "low"},
            "y2": {"field": "high"},
            "detail": across,
            **by_group(groups, "color"),
            **shown(groups, 0.16),
        },
    }
    line: Spec = {
        "mark": {"type": "line", "style": "curve"},
        "encoding": {
            "x": x,
            "y": y,
            "order": {"field": "x", "type": "quantitative"},
            "detail": across,
            **dashed,
            **shown(groups),
        },
    }
    dot: Spec = {
        "mark": {"type": "point", "filled": True, "size": 45, "style": "value"},
        "encoding": {
            "x": x,
            "y": y,
            **dotted,
            **shown(groups, visible),
            "tooltip": tooltip,
        },
    }
    if len(groups) > 1 and not visible:
        dot["encoding"]["opacity"] = {"value": 0}
    layers = [_diagonal(drawn, y_domain)] if diagonal and drawn else []
    layers += [band] if any(row["low"] is not None and row["high"] is not None for row in drawn) else []
    spec = {
        "width": "container",
        "height": 300,
        "data": {"values": drawn},
        "layer": layered([*layers, line, dot], groups),
        **apart,
    }
    rows = [
        (row["group"], row["x_figure"], row["y_figure"], row["interval"] if "interval" in extra else "", row["note"])
        for row in values
    ]
    return chart(title, caption, description, spec, table(title, ("Line", x_axis, y_axis, "Interval", "Note"), rows))


def _any(rows: Sequence[Spec], field: str) -> bool:
    return any(row[field] not in ("", "none") for row in rows)


def _axes(x_axis: str, y_axis: str) -> dict[str, str]:
    return {"x_figure": plain(x_axis), "y_figure": plain(y_axis)}


def _diagonal(rows: Sequence[Spec], y_domain: tuple[float, float] | None) -> Spec:
    """From the smallest to the largest value of x that is within the range of y."""
    xs, ys = [row["x"] for row in rows], y_domain or (min(row["y"] for row in rows), max(row["y"] for row in rows))
    return equal_line(max(min(xs), min(ys)), min(max(xs), max(ys)))
