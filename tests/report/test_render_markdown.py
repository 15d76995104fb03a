"""The page as Markdown: the same content, and nothing a user named becomes markup."""

from __future__ import annotations

import re

from keepsight.report.page import Chart, Listing, Page, Picture, Pictures, Section, Table, Text
from keepsight.report.render_markdown import render_markdown
from page_parts import HOSTILE, demo_page


def said(*blocks: Text | Table | Chart | Pictures | Listing) -> str:
    page = Page(version="1", kind="tune", title="T", answer="A.", sections=(Section(title="S", blocks=blocks),))
    text = render_markdown(page)
    assert text.startswith("# T\n\n**A.**\n\n## S\n\n")
    assert text.endswith("\n\nkeepsight 1, tune\n")
    return text.removeprefix("# T\n\n**A.**\n\n## S\n\n").removesuffix("\n\nkeepsight 1, tune\n")


def test_markup_in_texts_is_escaped() -> None:
    assert (
        said(Text(text="a_b *c* [d](e) <f> `g` | ~h~ $i$ &amp; \\"))
        == r"a\_b \*c\* \[d\](e) \<f\> \`g\` \| \~h\~ \$i\$ \&amp; \\"
    )
    assert said(Text(text="# no heading")) == r"\# no heading"
    assert said(Text(text="-0.4 points")) == "-0.4 points"
    assert said(Text(text="71.2")) == "71.2"
    assert said(Text(text="---")) == r"\---"
    assert said(Text(text="- no item")) == r"\- no item"
    assert said(Text(text="1. no item")) == r"1\. no item"
    assert said(Text(text="12) no item, 3.4 points")) == r"12\) no item, 3.4 points"
    assert said(Text(text="one\n\n# line")) == "one # line"
    assert said(Text(text="http://a.b www.c.d me@e.f")) == r"http\://a.b www\.c.d me\@e.f"


def test_tables_keep_their_columns() -> None:
    table = Table(
        title="T|1", caption="n = 3", headings=("Run", "Said"), rows=(("a|b", "x\ny"), ("c", "")), marked=(1,)
    )
    lines = said(table).splitlines()
    assert lines[:4] == ["### T\\|1", "", "n = 3", ""]
    assert lines[4:] == ["| Run | Said |", "| --- | --- |", "| a\\|b | x y |", "| **c** |  |"]


def test_charts_are_their_tables_and_pictures_their_captions() -> None:
    data = Table(headings=("Run", "Accuracy"), rows=(("a", "71.2"),))
    chart = Chart(title="C", caption="n = 3", description="It shows.", spec={}, data=data)
    assert said(chart) == "### C\n\nIt shows.\n\nn = 3\n\n| Run | Accuracy |\n| --- | --- |\n| a | 71.2 |"
    pictures = tuple(
        Picture(source="data:image/png;base64,AAAA", alt=alt, caption="owl", marked=alt == "b") for alt in "ab"
    )
    assert said(Pictures(title="P", caption="Worst.", pictures=pictures)) == "### P\n\nWorst.\n\n- a: owl\n- **b: owl**"


def test_a_listing_cannot_close_its_fence() -> None:
    assert said(Listing(title="L", text="```\n# x\n````")) == "### L\n\n`````text\n```\n# x\n````\n`````"


def test_a_hostile_page_has_no_tag_link_or_loose_pipe() -> None:
    text = render_markdown(demo_page(HOSTILE, HOSTILE))
    outside = re.sub(r"(?m)^```text\n.*?^```$", "", text, flags=re.DOTALL)
    assert re.search(r"(?<!\\)[<>\[\]`]", outside) is None
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in outside.splitlines() if line.startswith("| ")]
    assert columns
    assert min(columns) >= 3
