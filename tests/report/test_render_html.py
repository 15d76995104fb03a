"""The page as HTML: nothing a user named becomes markup, and nothing is left out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from keepsight.report.page import Chart, Listing, Page, Picture, Pictures, Section, Table, Text, read_page
from keepsight.report.render_html import render_html
from keepsight.report.write import write_page
from page_parts import HOSTILE, demo_page

_VOID = {"meta", "link", "img", "input", "br"}


class Elements(HTMLParser):
    """Elements with their attributes, and the texts of a page; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append((self.found[-1][1], data))
        else:
            self.texts.append(data)


def of(*blocks: Text | Table | Chart | Pictures | Listing) -> Page:
    return Page(version="1", kind="tune", title="T", answer="A.", sections=(Section(title="S", blocks=blocks),))


def test_hostile_names_are_text_everywhere() -> None:
    elements = Elements(render_html(demo_page(HOSTILE, HOSTILE)))
    texts = "".join(elements.texts)
    for name in HOSTILE:
        assert name in texts
    tags = (
        "html head meta title link style body a div header p h1 nav ol li bdi main section h2 h3 figure figcaption noscript "
        "details summary table caption thead tbody tr th td form label input output select option span ul img pre script"
    )
    assert {tag for tag, _ in elements.found} <= set(tags.split())
    for _, attributes in elements.found:
        assert not any(name.startswith("on") or name == "style" for name in attributes)


def test_data_in_scripts_is_json_and_comes_back() -> None:
    page = demo_page(HOSTILE, HOSTILE)
    specs = [block.spec for section in page.sections for block in section.blocks if isinstance(block, Chart)]
    found = [
        json.loads(text)
        for attributes, text in Elements(render_html(page)).scripts
        if attributes.get("type") == "application/json"
    ]
    assert found == specs


def test_the_policy_allows_the_page_s_own_scripts_and_style_only() -> None:
    text = render_html(demo_page())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in policy[1]

    def digest(inside: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    scripts = [inside for attributes, inside in Elements(text).scripts if not attributes]
    assert rules["script-src"].split() == [digest(inside) for inside in scripts]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert rules["style-src"] == digest(style[1])
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_no_address_is_in_the_page() -> None:
    elements = Elements(render_html(demo_page()))
    for _, attributes in elements.found:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes


def test_tables_have_captions_scopes_and_marked_rows() -> None:
    table = Table(
        title="Runs",
        caption="n = 3",
        headings=("Run", "Accuracy"),
        rows=(("a", "71.2 (70 to 72)"), ("b", "none")),
        marked=(1,),
    )
    text = render_html(of(table))
    assert "<caption><span>n = 3</span></caption>" in text
    assert '<th scope="col">Run</th><th scope="col" class="n">Accuracy</th>' in text
    assert '<tr><th scope="row">a</th><td class="n">71.2 (70 to 72)</td></tr>' in text
    assert '<tr class="marked"><th scope="row">b</th>' in text
    assert "filter" not in re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)


def test_words_do_not_become_figures() -> None:
    table = Table(headings=("Run", "Said"), rows=(("a", "71.2"), ("b", "better")))
    assert 'class="n"' not in render_html(of(table))


def test_every_block_is_there() -> None:
    picture = Picture(source="data:image/png;base64,AAAA", alt="a cat", caption="owl, 0.99", marked=True)
    text = render_html(
        of(
            Text(text="first", lead=True),
            Pictures(title="P", pictures=(picture,), width=77),
            Listing(title="L", text="\n  x"),
        )
    )
    assert '<p class="lead">first</p>' in text
    assert '<li class="marked"><img src="data:image/png;base64,AAAA" alt="a cat"><span>owl, 0.99</span></li>' in text
    assert ".w77 { --width: 77px; }" in text
    assert '<pre data-label="L">\n\n  x</pre>' in text
    assert "Vega-Lite" not in text


def test_the_page_comes_back_from_json_byte_for_byte(tmp_path: Path) -> None:
    write_page(tmp_path / "run", demo_page(HOSTILE, HOSTILE))
    write_page(tmp_path / "again", read_page(tmp_path / "run" / "report.json"))
    for name in ("report.json", "report.html", "report.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_page_that_cannot_be_rendered_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_page(tmp_path, of(Text(text="old")))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("keepsight.report.write.render_markdown", lambda page: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(tmp_path, of(Text(text="new")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
