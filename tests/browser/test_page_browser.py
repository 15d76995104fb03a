"""The page in a browser: opened from the disk, without a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keepsight.report.page import Chart, Page, Section, Table, Text
from page_parts import HOSTILE, METHODS, SHAPES, charts, demo_page

Opened = Callable[..., Any]
SPILT = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def of(charts: list[Chart], title: str = "A page") -> Page:
    return Page(
        version="1", kind="tune", title=title, answer="So.", sections=(Section(title="Charts", blocks=tuple(charts)),)
    )


def marks(tab: Any, kind: str = "symbol", figure: int = 0) -> Any:
    """The marks of a figure, without those of its legend and axes."""
    return tab.locator("figure").nth(figure).locator(f".chart g.mark-{kind} > :not(.role-legend *, .role-axis *)")


def tooltip_of(tab: Any, mark: Any) -> str:
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2 - 1, box["y"] + box["height"] / 2)
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.wait_for_selector("#tip:not([hidden])", timeout=5000)
    return str(tab.locator("#tip").inner_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn(opened: Opened, scheme: str) -> None:
    tab = opened(demo_page(), color_scheme=scheme)
    figures = tab.locator("figure")
    assert figures.count() == 6
    for number in range(6):
        svg = figures.nth(number).locator(".chart svg")
        assert svg.count() == 1
        box = svg.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        assert marks(tab, "rect" if number == 3 else "symbol", number).count() >= 5
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_mark_names_its_run_and_figures(opened: Opened) -> None:
    page = of(charts()[:1])
    tab = opened(page)
    first = page.sections[0].blocks[0].data.rows[0]  # type: ignore[union-attr]
    text = tooltip_of(tab, marks(tab).first)
    assert METHODS[0] in text
    assert first[1] in text
    assert first[2] in text
    tab.keyboard.press("Escape")
    assert tab.locator("#tip").is_hidden()


def test_typing_filters_rows_and_says_how_many(opened: Opened) -> None:
    tab = opened(demo_page(rows=30))
    form = tab.get_by_role("search", name="Rows of All methods")
    box = form.get_by_label("Filter rows")
    assert form.locator("output").inner_text() == "30 rows"
    assert form.locator("output").get_attribute("aria-live") == "polite"
    box.fill("procrustes LORA")
    rows = tab.locator(f"#{form.get_attribute('data-rows')} tbody tr")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert len(shown) == 4
    assert all("lora+procrustes" in text for text in shown)
    assert form.locator("output").inner_text() == "4 of 30 rows"
    box.fill("")
    assert sum(row.is_visible() for row in rows.all()) == 30


def faint(tab: Any, figure: int = 0) -> int:
    """How many points are faint."""
    script = "nodes => nodes.filter(node => Number(node.getAttribute('opacity') ?? 1) < 0.2).length"
    return int(marks(tab, figure=figure).evaluate_all(script))


def test_a_click_in_the_legend_picks_a_group(opened: Opened) -> None:
    made = [chart for number, chart in enumerate(charts()) if number != 4]  # all but the confusion matrix have groups
    tab = opened(of(made))
    for number in range(len(made)):
        entry = tab.locator("figure").nth(number).locator(".role-legend-symbol > *").first
        assert faint(tab, number) == 0
        entry.click(force=True)
        tab.wait_for_timeout(150)
        assert 0 < faint(tab, number) < marks(tab, figure=number).count()


def test_a_group_can_be_chosen_without_a_mouse(opened: Opened) -> None:
    tab = opened(of(charts()[:1]))
    choice = tab.get_by_label("Show in Accuracy of each method")
    choice.focus()
    choice.select_option("adapted")
    tab.wait_for_timeout(150)
    assert faint(tab) == len(METHODS) // 2
    choice.select_option(index=0)
    tab.wait_for_timeout(150)
    assert faint(tab) == 0


def test_hostile_names_are_shown_and_do_nothing(opened: Opened) -> None:
    tab = opened(demo_page(HOSTILE, HOSTILE))
    assert tab.evaluate("window.harmed") is None
    assert tab.locator("main script:not([type='application/json'])").count() == 0
    assert tab.locator("img[src='x']").count() == 0
    assert tab.locator("a:not([href^='#'])").count() == 0
    assert HOSTILE[0] in tab.locator("h1").inner_text()
    cells = tab.locator("table tbody th").all_inner_texts()
    for name in HOSTILE:
        assert any(cell.startswith(name) for cell in cells), name
    assert HOSTILE[0] in tooltip_of(tab, marks(tab, figure=1).first)
    drawn = " ".join(tab.locator("figure").nth(1).locator(".chart text").all_text_contents())
    assert "__proto__" in drawn
    assert HOSTILE[3] in drawn


def test_200_classes_stay_readable_and_small(opened: Opened, tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(200))
    tab = opened(demo_page(classes=names), width=390, is_mobile=True, has_touch=True)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert tab.evaluate(SPILT) <= 0
    assert marks(tab, "rect", 3).count() > 400
    confusion = tab.locator("figure").nth(3)
    box = confusion.locator(".chart svg").bounding_box()
    assert box["width"] <= 390
    assert not set(names) & set(confusion.locator(".chart text").all_text_contents())
    confusion.locator("summary").click()
    assert confusion.locator("tbody tr").count() == 20


@pytest.mark.parametrize("names", [METHODS, HOSTILE], ids=["plain", "hostile"])
def test_a_phone_shows_the_page_without_scrolling_sideways(opened: Opened, names: tuple[str, ...]) -> None:
    tab = opened(demo_page(names, SHAPES if names is METHODS else names), width=390)
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true; }")
    assert tab.evaluate(SPILT) <= 0
    for svg in tab.locator(".chart svg").all():
        assert svg.bounding_box()["width"] <= 390
    wide = tab.locator(".scroll").filter(has=tab.locator("th", has_text="Reference set 13"))
    tab.locator(".scroll[tabindex]").first.wait_for(state="attached")
    assert wide.get_attribute("tabindex") == "0"
    assert wide.get_attribute("aria-label") == "Wide"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Opened, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the package axe-playwright-python")
    tab = opened(demo_page(), color_scheme=scheme)
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true; }")
    tab.wait_for_timeout(200)  # boxes that scroll get their labels
    found = axe.Axe().run(tab).response["violations"]
    grave = [
        (each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_the_keyboard_reaches_the_report_and_what_is_folded(opened: Opened) -> None:
    tab = opened(demo_page())
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "report"
    summary = tab.locator("figure summary").first
    summary.focus()
    tab.keyboard.press("Enter")
    assert tab.locator("figure details table").first.is_visible()
    levels = tab.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_print_has_charts_in_light_colours_and_unfolded_listings(opened: Opened) -> None:
    tab = opened(demo_page(), width=1000, color_scheme="dark")
    tab.get_by_role("search", name="Rows of All methods").get_by_label("Filter rows").fill("nothing has this name")
    assert tab.pdf(format="A4").startswith(b"%PDF")
    tab.locator("details.printed:not([open])").first.wait_for(
        state="attached"
    )  # what follows a print has been done, too
    tab.emulate_media(media="print")
    tab.locator("details.printed[open]").first.wait_for(state="attached")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.locator(".chart svg").count() == 6
    assert all(svg.is_visible() for svg in tab.locator(".chart svg").all())
    assert tab.locator("details.printed pre").is_visible()
    assert tab.get_by_text("lora #3").is_visible()
    assert tab.locator("nav").is_hidden()
    tab.emulate_media(media="screen")
    tab.locator("details.printed:not([open])").first.wait_for(state="attached")


def test_a_page_without_charts_has_no_drawing_script(opened: Opened, tmp_path: Path) -> None:
    table = Table(title="Runs", headings=("Run",), rows=(("a",), ("b",)), filtered=True)
    page = Page(
        version="1",
        kind="runs",
        title="Runs",
        answer="Two.",
        sections=(Section(title="Runs", blocks=(Text(text="x"), table)),),
    )
    tab = opened(page)
    assert (tmp_path / "report.html").stat().st_size < 40_000
    tab.get_by_role("searchbox").fill("b")
    assert not tab.locator("tbody tr").first.is_visible()
