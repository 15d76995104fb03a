"""Pages of runs in a browser: planted ones with awkward data, and one of a real comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keepsight.recipes.compare import compare
from keepsight.recipes.compare_config import ladder_config
from keepsight.report.page import Chart, Page
from keepsight.report.tune_page import tune_page
from run_parts import EVIL, planted_run

Opened = Callable[..., Any]
SPILT = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def grave(tab: Any) -> list[tuple[str, str]]:
    """What axe-core calls serious or critical, with all that is folded open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the package axe-playwright-python")
    for details in tab.locator("details").all():
        details.evaluate("node => { node.open = true; }")
    tab.wait_for_timeout(200)  # boxes that scroll get their labels
    found = axe.Axe().run(tab).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:120]) for each in found if each["impact"] in ("serious", "critical")]


def check(opened: Opened, page: Page, folder: Path) -> Any:
    """Everything is drawn, nothing spills on a phone, nothing is grave in either scheme; returns the light page."""
    charts = sum(isinstance(block, Chart) for section in page.sections for block in section.blocks)
    for scheme, width in (("dark", 390), ("light", 1200)):
        tab = opened(page, width=width, color_scheme=scheme)
        assert tab.locator(".chart svg").count() >= charts > 0
        assert grave(tab) == []
        assert tab.evaluate(SPILT) <= 0
        assert tab.evaluate("window.harmed") is None
    assert (folder / "report.html").stat().st_size < 5e6
    return tab


@pytest.mark.parametrize(("k", "bad"), [(6, 0), (200, 500)])
def test_awkward_data(opened: Opened, tmp_path: Path, k: int, bad: int) -> None:
    planted_run(tmp_path / "run", k, bad)
    tab = check(opened, tune_page(tmp_path / "run"), tmp_path)
    text = tab.locator("main").inner_text()
    assert f"1 of {k} classes have no test image" in text
    assert ("500 images" in text) == (bad > 0)
    assert EVIL[0] in tab.locator("h1").inner_text()
    assert tab.locator("main script:not([type='application/json'])").count() == 0


def test_a_real_comparison(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    settings = ["backbone.weights=random", "selection_folds=2", "trackers=[]", "finetune_full.epochs=2"]
    settings += ["forgetting.per_set=50", "forgetting.rule.folds=2", "readout=2:mean"]
    settings += ["backbone.name=test_vit", "backbone.size=32", "split.labels=30", "split.test=30"]
    config = ladder_config(
        "digits", methods="probe,full", retain="none,wise-ft", seeds=1, suite=["mnist-5k"], assignments=settings
    )
    compare(config, tmp_path / "run")
    page = tune_page(tmp_path / "run")
    tab = check(opened, page, tmp_path)
    titles = tab.locator("h2").all_inner_texts()
    assert {"Gain against forgetting", "The ladder", "Calibration", "Confusion"} <= set(titles)
    pictures = tab.locator("img[alt*='where the class token looks']")  # before and after, of what was tuned
    assert pictures.count() == 4 * sum(title.startswith("What finetune") for title in titles) > 0
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
