"""Table and page are made from records alone, and nothing in a name escapes into them."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from keepsight.core import Result
from keepsight.report.html import write_html
from keepsight.report.summary import caption, rows
from keepsight.report.table import print_table

EVIL = '<script>alert("x")</script>[bold]'


def record(method: str, split: str = "test", metric: str = "error", seed: int | None = None, **more: object) -> Result:
    values: dict[str, object] = {
        "task": "classification",
        "dataset": EVIL,
        "split": split,
        "method": method,
        "backbone": "tiny",
        "readout": "8:grid2",
        "metric": metric,
        "value": 0.081,
        "ci_low": 0.05,
        "ci_high": 0.112,
        "interval": "seeds+bootstrap",
        "n": 1500,
        "labels": 100,
        "seed": seed,
        "seeds": 3,
        "trainable_parameters": 15370,
        "seconds": 3.21,
        "peak_mib": 1234.5,
        **more,
    }
    return Result.model_validate(values)


RECORDS = [
    record("probe"),
    record("probe", metric="ece", value=0.02, ci_low=0.01, ci_high=0.03),
    record("probe", seed=0, value=0.5),
    record("probe", split="cross-validation", seed=0, value=0.1),
    record("finetune-lora", selection="validation"),
]


def test_rows_take_the_summary_over_seeds() -> None:
    probe, lora = rows(RECORDS)
    assert (probe.error, probe.cross_validation, probe.parameters) == ("8.1 [5.0, 11.2]", "10.0 [5.0, 11.2]", "15,370")
    assert (lora.selection, lora.cross_validation) == ("validation", "-")


def test_the_caption_says_what_was_measured() -> None:
    text = caption(RECORDS)
    for part in ("100 labels", "8:grid2", "n = 1,500", "3 seeds", "bootstrap"):
        assert part in text


def test_without_test_images_nothing_is_invented() -> None:
    only = [record("probe", split="cross-validation", seed=0)]
    assert rows(only)[0].error == "not measured"
    assert "no test images" in caption(only)


def test_the_table_shows_names_as_they_are() -> None:
    out = io.StringIO()
    print_table(RECORDS, "probe", Console(file=out, width=150))
    assert EVIL in out.getvalue().replace("\n", "")
    assert "probe *" in out.getvalue()


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert not any(name in ("src", "href", "onload") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escaped_and_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_html(path, EVIL, RECORDS, "probe", f"because {EVIL}", {"Configuration": f"data: {EVIL}"})
    text = path.read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert {"table", "svg", "circle"} <= tags.seen
    assert text.count("&lt;script&gt;") >= 4
    assert "<script" not in text
