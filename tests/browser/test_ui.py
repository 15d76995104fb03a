"""The list of runs in a browser: it loads without a complaint, filters, and opens a report whose charts are drawn."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keepsight.recipes.ui import RunServer, open_server
from keepsight.report.charts import Spot, interval_chart
from keepsight.report.page import Page, Section
from keepsight.report.write import write_page

HOSTILE = "<img src=x onerror=alert(1)> \U0001f600 \u202e"


def write(folder: Path, kind: str, answer: str) -> None:
    chart = interval_chart(
        "What changed",
        [Spot("<b>a</b>", 1.0, 0.5, 1.5), Spot("b", 2.0, 1.5, 2.5)],
        axis="points",
        caption="",
        description="So.",
    )
    page = Page(
        version="1",
        kind=kind,
        title=f"Run {HOSTILE}",
        answer=answer,
        sections=(Section(title="Charts", blocks=(chart,)),),
    )
    folder.mkdir(parents=True)
    write_page(folder, page)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunServer]:
    write(tmp_path / "leaves", "tune", "The probe is as good.")
    write(tmp_path / HOSTILE.replace("/", ""), "probe", f"Reading got worse {HOSTILE}.")
    write(tmp_path / "scenes", "visft", "Stage 2 changed nothing.")
    with open_server([tmp_path]) as opened:
        thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def test_the_list_filters_and_opens_reports(browser: Any, server: RunServer) -> None:
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    tab.on(
        "request", lambda asked: asked.url.startswith((server.address, "data:")) or said.append(f"asked: {asked.url}")
    )
    assert tab.goto(server.address).status == 200
    assert "3 finished runs" in tab.locator(".answer").inner_text()
    rows = tab.locator("tbody tr")

    def visible() -> list[str]:
        return [row.locator("td").first.inner_text() for row in rows.all() if row.is_visible()]

    assert sorted(visible()) == ["probe", "tune", "visft"]
    box = tab.get_by_label("Filter rows")
    box.fill("visft")
    assert visible() == ["visft"]
    box.fill("no such thing")
    assert visible() == []
    box.fill("onerror=alert")
    assert visible() == ["probe"]
    tab.get_by_role("link", name="onerror").click()
    tab.wait_for_selector(".chart[data-drawn]")
    assert tab.locator(".chart svg").count() == 1
    assert tab.url.startswith(f"{server.address}run/")
    assert HOSTILE in tab.title()
    tab.go_back()
    box.fill("leaves")
    box.press("Tab")  # from the field to the one link that is left
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".chart[data-drawn]")
    assert "The probe is as good." in tab.locator(".answer").inner_text()
    context.close()
    assert said == []


def test_the_list_fits_a_phone(browser: Any, server: RunServer) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto(server.address)
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    context.close()
