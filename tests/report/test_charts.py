"""Charts: every specification compiles, holds a user's texts only as data, and has its figures in a table as well."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from keepsight.report.chart_parts import unlike, writer
from keepsight.report.charts import Curve, CurvePoint, Spot, Tradeoff, curves_chart, interval_chart, tradeoff_chart
from keepsight.report.classification_charts import Bin, Cloud, confusion_chart, reliability_chart, scatter_chart
from keepsight.report.page import Chart
from page_parts import HOSTILE, METHODS, SHAPES, charts, counts

SAID = {"caption": "n = 3.", "description": "It shows this."}


def compiled(chart: Chart, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The Vega specification; Vega-Lite may not have warned."""
    import vl_convert

    vega: dict[str, Any] = vl_convert.vegalite_to_vega(chart.spec)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    return vega


def leaves(value: Any, keys: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*keys, str(key)))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, keys)]
    return [(keys, value)]


@pytest.mark.parametrize("names", [METHODS, HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("number", range(6))
def test_specifications_compile_and_come_back_from_json(
    names: tuple[str, ...], number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    chart = charts(names, SHAPES if names is METHODS else names)[number]
    assert compiled(chart, capfd)["marks"]
    assert Chart.model_validate_json(chart.model_dump_json()) == chart
    written = json.dumps(chart.spec)
    assert "http" not in written
    assert '"url"' not in written
    assert '"href"' not in written


@pytest.mark.parametrize("number", range(6))
def test_hostile_names_are_data_and_never_keys_fields_or_expressions(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    chart = charts(HOSTILE, HOSTILE)[number]
    allowed = {"values", "domain", "title", "datasets"}
    for keys, value in leaves(chart.spec):
        assert not any(name in keys for name in HOSTILE)
        if isinstance(value, str) and any(name in value for name in HOSTILE):
            assert allowed & set(keys), keys
    for keys, value in leaves(compiled(chart, capfd)):  # nor in an expression that Vega-Lite makes of them
        if keys[-1] in ("expr", "signal", "update", "test") and isinstance(value, str):
            assert not any(name in value for name in HOSTILE), (keys, value)


def test_an_interval_chart_says_what_is_missing_and_draws_it_not() -> None:
    spots = [Spot("a", 71.25, 70.0, 72.5), Spot("a", math.nan, None, None, note="failed")]
    chart = interval_chart("T", spots, axis="Accuracy, %", reference=70.5, marked=("a",), **SAID)
    assert chart.data.headings == ("Name", "Accuracy, %", "Interval", "Note")
    assert chart.data.rows == (("a", "71.25", "70.00 to 72.50", ""), ("a (2)", "not measured", "none", "failed"))
    assert [row["value"] for row in chart.spec["data"]["values"]] == [71.25, None]
    assert chart.spec["layer"][0]["data"]["values"] == [{"reference": 70.5}]


def test_a_tradeoff_joins_only_the_named_groups_in_the_given_order() -> None:
    made = [Tradeoff(f"alpha {x}", x, None, None, 2 * x, None, None, "alphas") for x in (3.0, 1.0, 2.0)]
    made.append(Tradeoff("other", 9.0, 8.0, 10.0, 9.0, 8.5, 9.5, "single"))
    chart = tradeoff_chart("T", made, x_axis="x", y_axis="y", connected=("alphas",), **SAID)
    values = chart.spec["data"]["values"]
    assert [row["joined"] for row in values] == [True, True, True, False]
    assert [row["place"] for row in values] == [0, 1, 2, 3]
    assert chart.data.rows[3] == ("other", "9", "8 to 10", "9.000", "8.500 to 9.500", "single")


def test_curves_leave_out_what_a_logarithm_cannot_show_but_list_it() -> None:
    curve = Curve("probe", (CurvePoint(0, 3.0), CurvePoint(1, 2.0, 1.5, 2.5), CurvePoint(10, math.inf)))
    chart = curves_chart("T", [curve], x_axis="labels", y_axis="error, %", log_x=True, **SAID)
    assert [row["x"] for row in chart.spec["data"]["values"]] == [1.0]
    assert [row[:3] for row in chart.data.rows] == [
        ("probe", "0", "3.000"),
        ("probe", "1", "2.000"),
        ("probe", "10", "not measured"),
    ]


def test_many_points_have_no_dots_but_still_tooltips() -> None:
    curve = Curve("pr", tuple(CurvePoint(i / 100, 1 - i / 100) for i in range(100)))
    layers = curves_chart("T", [curve, curve], x_axis="recall", y_axis="precision", **SAID).spec["layer"]
    assert layers[-1]["encoding"]["opacity"] == {"value": 0}
    assert {tip["title"] for tip in layers[-1]["encoding"]["tooltip"]} == {"Line", "recall", "precision"}


def test_hundreds_of_curves_have_no_legend_and_still_compile(capfd: pytest.CaptureFixture[str]) -> None:
    made = [Curve(f"class {k}", tuple(CurvePoint(i / 50, (1 - i / 50) ** k) for i in range(51))) for k in range(200)]
    chart = curves_chart("T", made, x_axis="recall", y_axis="precision", **SAID)
    assert not compiled(chart, capfd).get("legends")
    assert (
        len(compiled(curves_chart("T", made[:9], x_axis="recall", y_axis="precision", **SAID), capfd)["legends"]) == 1
    )


def test_the_diagonal_ends_where_the_curves_do() -> None:
    curve = Curve("c", (CurvePoint(0.2, 0.1), CurvePoint(0.9, 0.7)))
    layers = curves_chart("T", [curve], x_axis="x", y_axis="y", diagonal=True, **SAID).spec["layer"]
    assert layers[0]["data"]["values"] == [{"from": 0.2, "to": 0.7}]


def test_reliability_shows_shares_and_counts() -> None:
    chart = reliability_chart("T", {"before": [Bin(0.95, 0.8, 0.7, 0.9, 1200)]}, **SAID)
    assert chart.data.rows == (("before", "0.950", "0.800", "0.700 to 0.900", "1,200"),)


def test_a_confusion_of_few_classes_has_names_counts_and_the_whole_table(capfd: pytest.CaptureFixture[str]) -> None:
    chart = confusion_chart("T", ("cat", "dog", "owl"), [[3, 1, 0], [0, 5, 0], [0, 0, 0]], **SAID)
    assert chart.data.rows == (("cat", "3", "1", "0", "4"), ("dog", "0", "5", "0", "5"), ("owl", "0", "0", "0", "0"))
    assert chart.spec["data"]["values"] == [
        {"t": 0, "a": 0, "n": 3},
        {"t": 0, "a": 1, "n": 1},
        {"t": 1, "a": 1, "n": 5},
    ]
    assert chart.spec["layer"][0]["encoding"]["x"]["axis"]["labels"] is True
    compiled(chart, capfd)


def test_a_confusion_of_200_classes_lists_the_most_confused_pairs(capfd: pytest.CaptureFixture[str]) -> None:
    names, found = [f"class {number}" for number in range(200)], counts(200, absent=7)
    found[3][150] = 39
    chart = confusion_chart("T", names, found, **SAID)
    assert len(chart.data.rows) == 20
    assert chart.data.rows[0][:3] == ("class 3", "class 150", "39")
    assert chart.data.rows[0][3] == f"{39 / sum(found[3]):.1%}"
    assert chart.spec["layer"][0]["encoding"]["x"]["axis"]["labels"] is False
    assert len(chart.model_dump_json()) < 200_000
    compiled(chart, capfd)


def test_a_scatter_chart_lists_points_or_the_means_of_many() -> None:
    few = Cloud("frozen", ((0.0, 1.0), (2.0, 3.0)), (1, 0))
    chart = scatter_chart("T", [few], ("a", "b"), **SAID)
    assert chart.data.rows == (("frozen", "b", "0", "1"), ("frozen", "a", "2", "3"))
    draw = random.Random(0)
    many = Cloud("adapted", tuple((draw.random(), 5.0) for _ in range(500)), tuple(i % 2 for i in range(500)))
    rows = scatter_chart("T", [many], ("a", "b"), **SAID).data.rows
    assert [row[:3] for row in rows] == [("adapted", "a", "250"), ("adapted", "b", "250")]
    assert float(rows[0][3]) == pytest.approx(0.5, abs=0.05)


def test_empty_charts_compile(capfd: pytest.CaptureFixture[str]) -> None:
    for chart in (
        interval_chart("T", [], axis="x", **SAID),
        tradeoff_chart("T", [], x_axis="x", y_axis="y", **SAID),
        curves_chart("T", [], x_axis="x", y_axis="y", log_x=True, diagonal=True, **SAID),
        reliability_chart("T", {}, **SAID),
        scatter_chart("T", [Cloud("c", (), ())], ("a",), **SAID),
    ):
        compiled(chart, capfd)


def test_names_stay_apart_and_can_be_written() -> None:
    made = unlike(["a", "a", "a (2)", "", "x\udcff", "__proto__"])
    assert made[:4] == ["a", "a (2)", "a (2) (2)", "(no name)"]
    assert made[4].encode("utf-8") == b"x?"
    assert made[5] != "__proto__"
    assert made[5].startswith("__proto__")


def test_figures_of_a_column_have_decimals_alike() -> None:
    write = writer([99.5, 0.25, None])
    assert [write(99.5), write(0.25), write(None), write(math.nan)] == ["99.50", "0.25", "not measured", "not measured"]
    assert writer([12000, 3])(12000) == "12,000"
    assert writer([1e-7, 2.0])(1e-7) == "1e-07"
    assert writer([])(1.5) == "2"
