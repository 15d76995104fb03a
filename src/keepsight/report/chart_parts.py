"""What the charts of a report share: figures as texts, columns of tables, layers of Vega-Lite. Knows no measurement.

The names of fields are fixed and every expression is fixed: a text of a user stands among the values, in the `domain` of a scale or
as a title, where nothing is read from it. Colours, fonts and the room for labels are given by the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keepsight.report.page import Chart, Table

Spec = dict[str, Any]

DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [10, 4], [8, 2, 2, 2, 2, 2]]
"""Seven, with the page's eight colours: no two of 56 lines look alike."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
LISTED = 24
"""Groups that a legend lists at most; of more, the tooltips and the page's choice of a group tell."""
MISSING = "not measured"


def finite(value: float | None) -> float | None:
    """The value as Python's float; None for what no axis can show."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(text: str) -> str:
    """The text without halves of surrogate pairs (from file names that are no UTF-8), which cannot be written."""
    return text.encode("utf-8", "replace").decode("utf-8")


def named(text: str, empty: str) -> str:
    """A name as a value that Vega may use as a key: its objects have a "__proto__" already, and "" is not to be seen."""
    return f"{text}\u2060" if text == "__proto__" else plain(text) or empty


def unlike(names: Iterable[str]) -> list[str]:
    """The names in their order, each once: a second "a" becomes "a (2)", since names that are alike would share a row."""
    found: dict[str, None] = {}
    for name in names:
        tried, number = named(name, "(no name)"), 1
        while tried in found:
            number += 1
            tried = f"{plain(name)} ({number})"
        found[tried] = None
    return list(found)


def writer(values: Iterable[float | None]) -> Callable[[float | None], str]:
    """A function that writes figures of one column: decimals alike, four digits for the largest; whole numbers as such.

    Example:
        >>> write = writer([71.25, 9.5, None])
        >>> write(71.25), write(9.5), write(None)
        ('71.25', '9.50', 'not measured')
    """
    known = [abs(number) for value in values if (number := finite(value)) is not None]
    sizes = [value for value in known if value > 0]
    if all(value == int(value) for value in known):
        form = ",.0f"
    elif max(sizes) / min(sizes) > 1e4 and min(sizes) < 1e-3:
        form = ".3g"
    else:
        form = f",.{min(6, max(0, 3 - math.floor(math.log10(max(sizes)))))}f"

    def write(value: float | None) -> str:
        number = finite(value)
        return MISSING if number is None else f"{number:{form}}"

    return write


def interval(write: Callable[[float | None], str], low: float | None, high: float | None) -> str:
    """Both ends as a text; "none" where an end is missing."""
    return "none" if finite(low) is None or finite(high) is None else f"{write(low)} to {write(high)}"


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    """The data of a chart as a table; it can be filtered when long. Columns that are empty throughout are left out."""
    made = [tuple(map(plain, row)) for row in rows]
    kept = [i for i in range(len(headings)) if i == 0 or any(row[i] for row in made)]
    return Table(
        title=f"{title}: the same as a table" if title else "",
        caption=caption,
        headings=tuple(headings[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in made),
        filtered=len(made) > 12,
    )


def chart(title: str, caption: str, description: str, spec: Spec, data: Table) -> Chart:
    """A block of a page."""
    return Chart(title=plain(title), caption=plain(caption), description=plain(description), spec=spec, data=data)


def tips(**titles: str) -> list[Spec]:
    """A tooltip: titles by field; fields are texts."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]


def numeric(field: str, title: str, domain: Sequence[float] | None = None, kind: str = "linear") -> Spec:
    """A quantitative axis that need not begin at zero."""
    scale: Spec = {"type": kind, "nice": domain is None}
    if kind == "linear":
        scale["zero"] = False
    if domain is not None:
        scale["domain"] = [float(end) for end in domain]
    return {"field": field, "type": "quantitative", "title": plain(title), "scale": scale}


def by_group(groups: Sequence[str], *channels: str) -> Spec:
    """Encodings that tell groups apart, colour first; {} where there is nothing to tell apart."""
    if len(groups) < 2:
        return {}
    unlegended: Spec = {"legend": None} if len(groups) > LISTED else {}
    ranges: dict[str, Spec] = {"color": {}, "shape": {"range": SHAPES}, "strokeDash": {"range": DASHES}}
    return {
        channel: {
            "field": "group",
            "type": "nominal",
            "title": None,
            "scale": {"domain": list(groups), **ranges[channel]},
            **unlegended,
        }
        for channel in channels
    }


def unlisted(encoding: Spec, channel: str) -> Spec:
    """Leave a channel of an encoding out of the legend; gives what a layered chart needs besides: else all are left out."""
    if channel in encoding:
        encoding[channel]["legend"] = None
    return {"resolve": {"legend": {channel: "independent"}}}


def shown(groups: Sequence[str], opacity: float = 1.0) -> Spec:
    """The opacity of a mark: faint while another group is chosen in the legend."""
    if len(groups) < 2:
        return {"opacity": {"value": opacity}}
    return {"opacity": {"condition": {"param": "chosen", "value": opacity}, "value": 0.07}}


def chosen(groups: Sequence[str]) -> Spec:
    """The parameter behind `shown`: a click on an entry of the legend (or a mark) chooses a group."""
    if len(groups) < 2:
        return {}
    bound: Spec = {"bind": "legend"} if len(groups) <= LISTED else {}
    return {"params": [{"name": "chosen", "select": {"type": "point", "fields": ["group"]}, **bound}]}


def layered(layers: Sequence[Spec], groups: Sequence[str]) -> list[Spec]:
    """The layers, the first coloured one with the parameter `chosen`: from that one Vega-Lite takes what a legend does."""
    made = list(layers)
    for place, layer in enumerate(made):
        if "color" in layer["encoding"]:
            made[place] = {**chosen(groups), **layer}
            break
    return made


def whiskers(axis: str, low: str, high: str, across: Spec, groups: Sequence[str], tooltip: list[Spec]) -> Spec:
    """A layer of intervals along x or y."""
    other = "y" if axis == "x" else "x"
    return {
        "transform": [{"filter": f"isValid(datum.{low}) && isValid(datum.{high})"}],
        "mark": {"type": "rule", "style": "interval"},
        "encoding": {
            axis: {"field": low, "type": "quantitative"},
            f"{axis}2": {"field": high},
            other: across,
            **by_group(groups, "color"),
            **shown(groups, 0.75),
            "tooltip": tooltip,
        },
    }


def equal_line(start: float, end: float) -> Spec:
    """A layer: the line on which x equals y, from `start` to `end`."""
    return {
        "data": {"values": [{"from": float(start), "to": float(end)}]},
        "mark": {"type": "rule", "style": "reference"},
        "encoding": {
            "x": {"field": "from", "type": "quantitative"},
            "y": {"field": "from", "type": "quantitative"},
            "x2": {"field": "to"},
            "y2": {"field": "to"},
        },
    }
