"""Writing a page: report.json holds it; report.html and report.md are made from it alone."""

from __future__ import annotations

from pathlib import Path

from keepsight.core.files import write_text
from keepsight.report.page import JSON, Page
from keepsight.report.render_html import render_html
from keepsight.report.render_markdown import render_markdown

HTML = "report.html"
MARKDOWN = "report.md"


def write_page(folder: Path, page: Page) -> None:
    """Write report.json, report.html and report.md into the folder, each atomically; UserError where that is not possible."""
    texts = {JSON: page.model_dump_json() + "\n", HTML: render_html(page), MARKDOWN: render_markdown(page)}
    for name, text in texts.items():
        write_text(folder / name, text)
