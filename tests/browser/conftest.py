"""A headless Chromium of the system; the tests here are left out, and say why, where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from keepsight.report.page import Page
from keepsight.report.write import write_page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Write a page and open its file without a network; at the end nothing may have been asked for or complained about."""
    said: list[str] = []
    with ExitStack() as stack:

        def open_page(page: Page, *, width: int = 1200, **options: Any) -> Any:
            write_page(tmp_path, page)
            context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, **options)
            stack.callback(context.close)
            context.set_default_timeout(10_000)
            tab = context.new_page()
            tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
            tab.on("pageerror", lambda error: said.append(f"error: {error}"))
            tab.on(
                "request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(f"asked: {asked.url}")
            )
            tab.goto((tmp_path / "report.html").as_uri())
            # Not wait_for_function: it polls by eval, which the page's policy refuses.
            tab.locator(".chart:not([data-drawn])").first.wait_for(state="detached")
            return tab

        yield open_page
    assert said == []
