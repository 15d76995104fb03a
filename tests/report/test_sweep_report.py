"""Tables, figures and page of a sweep come from records alone, are right, and nothing in a name escapes into them."""

from __future__ import annotations

import builtins
import io
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keepsight.core import Result, UserError
from keepsight.report.sweep import read_tables, write_reports
from keepsight.report.sweep_figure import check_matplotlib, draw
from keepsight.report.sweep_records import Failure, SweepFacts

EVIL = '<script>alert("$x_1$")</script>[bold]|深\n{{'
FAMILIES = {"probe": "frozen", "content-style": "frozen", "finetune-lora": "trainable"}
ERRORS = {
    ("probe", 10): [0.30, 0.34, 0.32],
    ("content-style", 10): [0.20, 0.23, 0.23],
    ("finetune-lora", 10): [0.33, 0.35],
    ("probe", 100): [0.10, 0.11, 0.12],
    ("content-style", 100): [0.10, 0.12, 0.11],
}


def record(method: str, labels: int, value: float, seed: int | None, **more: Any) -> Result:
    values = {
        "task": "classification",
        "dataset": "leaves",
        "split": "test",
        "method": method,
        "backbone": "tiny",
        "readout": "8:grid2",
        "metric": "error",
        "value": value,
        "ci_low": value - 0.02,
        "ci_high": value + 0.03,
        "interval": "seeds+bootstrap",
        "n": 1500,
        "labels": labels,
        "seed": seed,
        "seeds": 1,
        "seconds": 2.34,
        "size": 56,
    }
    return Result(**(values | more))


def folder(path: Path, against: str | None = None, **more: Any) -> Path:
    """A sweep's folder as its command leaves it; three seeds, of which one of finetune-lora failed."""
    results = []
    for (method, labels), values in ERRORS.items():
        results += [record(method, labels, v, seed, **more) for seed, v in enumerate(values)]
        results.append(record(method, labels, float(np.mean(values)), None, **{"seeds": len(values), **more}))
    failure = Failure(
        dataset=more.get("dataset", "leaves"),
        backbone=more.get("backbone", "tiny"),
        size=56,
        method="finetune-lora",
        labels=10,
        seed=2,
        sentence=f"It collapsed {EVIL}.",
    )
    families = dict(FAMILIES)
    facts = SweepFacts(
        version="1", command=f"keepsight {EVIL}", families=families, against=against, config={"data": [EVIL]}
    )
    path.mkdir(exist_ok=True)
    (path / "sweep.json").write_text(facts.model_dump_json())
    (path / "results.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in results))
    (path / "failures.jsonl").write_text(failure.model_dump_json() + "\n")
    return path


def test_tables(tmp_path: Path) -> None:
    written = write_reports(folder(tmp_path))
    assert {p.name for p in written} >= {
        "table.txt",
        "table.md",
        "labels-tiny-56-px.png",
        "labels-tiny-56-px.svg",
    }
    assert (tmp_path / "report.html").is_file()
    (table,) = read_tables(tmp_path)
    assert table.families() == [("frozen", ["probe", "content-style"]), ("trainable", ["finetune-lora"])]
    assert table.error_text("probe", 10) == ("32.0 [30.0, 35.0]", "2.3 s")
    assert table.error_text("finetune-lora", 10) == ("34.0 [32.0, 37.0]", "2.3 s, 1 of 3 seeds failed")
    assert table.error_text("finetune-lora", 100) == ("-", "")
    assert [table.best(n) for n in (10, 100)] == ["content-style", "probe"]
    # differences 0.10, 0.11, 0.09: mean 0.10, standard error 0.01 / sqrt(3), t(2) = 4.3027
    assert table.difference_text("probe", 10, None) == "+10.0 [+7.5, +12.5] *"
    assert table.difference_text("probe", 100, None) == "+0.0 [-2.5, +2.5]"
    # two seeds shared: differences 0.13, 0.12, t(1) = 12.706
    assert table.difference_text("finetune-lora", 10, None) == "+12.5 [+6.1, +18.9] *"
    assert table.difference_text("content-style", 10, "probe") == "-10.0 [-12.5, -7.5] *"
    text = " ".join((tmp_path / "table.txt").read_text().split())
    for part in (
        "n = 1,500",
        "3 seeds",
        "10 labels",
        "+10.0 [+7.5, +12.5] *",
        "that of content-style",
        "readout 8:grid2",
    ):
        assert part in text
    markdown = (tmp_path / "table.md").read_text()
    assert "| probe (frozen) | 32.0 [30.0, 35.0], 2.3 s | 11.0 [9.0, 14.0], 2.3 s |" in markdown


def test_against_another_method(tmp_path: Path) -> None:
    write_reports(folder(tmp_path, against="probe"))
    assert "that of probe, in percentage points" in (tmp_path / "table.txt").read_text()
    write_reports(tmp_path, "finetune-lora")
    text = " ".join((tmp_path / "table.txt").read_text().split())
    assert "that of finetune-lora, or where it has no result the method of the least test error" in text


def test_seeds_that_do_not_scatter_claim_nothing(tmp_path: Path) -> None:
    (table,) = read_tables(folder(tmp_path))
    table._by_seed = {(m, n, s): 0.5 if m == "probe" else 0.25 for m, n, s in table._by_seed}
    found = table.difference("probe", "content-style", 10)
    assert found is not None
    assert (found.value, found.low, found.excludes_zero) == (0.25, None, False)
    assert table.difference_text("probe", 10, None) == "+25.0"


def test_figures_show_lines_and_are_reproducible(tmp_path: Path) -> None:
    path = folder(tmp_path)
    write_reports(path)
    picture = np.asarray(Image.open(path / "labels-tiny-56-px.png").convert("RGB")).astype(int)
    assert picture.shape[1] >= 1200
    assert picture.std() > 10
    for colour in ((0, 114, 178), (213, 94, 0), (0, 158, 115)):  # the three lines
        assert (picture == colour).all(axis=2).sum() > 200
    svg = (path / "labels-tiny-56-px.svg").read_bytes()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert draw(read_tables(path), list(FAMILIES), "svg") == svg


def test_a_panel_a_data_set(tmp_path: Path) -> None:
    (table,) = read_tables(folder(tmp_path))
    two, three = (Image.open(io.BytesIO(draw([table] * n, list(FAMILIES), "png"))).size for n in (2, 3))
    assert two[0] == three[0]
    assert three[1] > 1.5 * two[1]  # a second row


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    path = folder(tmp_path / "sweep", dataset=EVIL, backbone=f"../{EVIL}")
    files = write_reports(path)
    assert all(file.parent == path for file in files)
    page, plain = Tags(), Tags()
    write_reports(folder(tmp_path / "plain"))
    plain.feed((tmp_path / "plain" / "report.html").read_text())
    page.feed((path / "report.html").read_text())
    assert page.tags.count("script") == plain.tags.count("script")  # those of the page, and none of a name
    assert page.tags == plain.tags
    assert all(source.startswith(("#", "data:")) for source in page.sources)
    assert "<script" not in (path / "table.md").read_text()
    assert "[bold]" in (path / "table.txt").read_text()


@pytest.mark.parametrize(
    ("name", "sentence"), [("sweep.json", "no sweep in"), ("results.jsonl", "no results yet"), (None, "damaged")]
)
def test_what_is_missing_or_damaged_is_said(tmp_path: Path, name: str | None, sentence: str) -> None:
    path = folder(tmp_path)
    if name is None:
        (path / "results.jsonl").write_text("{")
    else:
        (path / name).unlink()
    with pytest.raises(UserError, match=sentence):
        write_reports(path)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def lacking(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(UserError, match=r"keepsight\[figures\]"):
        check_matplotlib()
