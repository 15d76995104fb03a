"""Links of a table: relative addresses and nothing else; the page makes one of the first text of a row."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from keepsight.report.page import Page, Section, Table
from keepsight.report.render_html import render_html


def table(*links: str) -> Table:
    return Table(headings=("run", "kind"), rows=(("<a>", "tune"), ("b", "visft")), links=links)


@pytest.mark.parametrize(
    "link",
    [
        "http://x.example/",
        "javascript:alert(1)",
        "//x.example/",
        "/etc/passwd",
        "../secret",
        "run/../secret",
        "a b",
        'a"b',
        "a?b",
        "a\n",
        "data:text/html,x",
    ],
)
def test_other_addresses_are_refused(link: str) -> None:
    with pytest.raises(ValidationError, match="relative address"):
        table(link, "")


def test_every_row_has_one_or_none_has() -> None:
    with pytest.raises(ValidationError, match="for every row"):
        table("run/a")
    assert table().links == ()


def test_the_first_text_of_a_row_leads_there() -> None:
    made = table("run/a-1/report.html", "")
    html = render_html(
        Page(version="1", kind="runs", title="R", answer="A.", sections=(Section(title="S", blocks=(made,)),))
    )
    assert '<a href="run/a-1/report.html">&lt;a&gt;</a>' in html
    assert '<th scope="row">b</th>' in html
