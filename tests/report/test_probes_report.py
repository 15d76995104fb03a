"""The tables and the page of a run of probes, made from records alone; escaped, and honest about what is worse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from keepsight.core import Result, UserError
from keepsight.report.probes import (
    FACTS,
    RESULTS,
    Looks,
    Picture,
    ProbeFacts,
    print_probes,
    read_probe_facts,
    write_probe_reports,
)


def record(metric: str, value: float, backbone: str, **more: Any) -> Result:
    given = {"better": "higher", "chance": 0.25, "against": None, "before": None} | more
    return Result(
        task="probe",
        dataset="<words>",
        split="test",
        method="ocr",
        backbone=backbone,
        readout="probe",
        metric=metric,
        value=value,
        ci_low=value - 0.02,
        ci_high=value + 0.02,
        interval="bootstrap",
        n=1200,
        labels=0,
        seed=0,
        seeds=1,
        size=112,
        **given,
    )


RECORDS = [
    record("word_accuracy", 0.4, "vit"),
    record("word_accuracy", 0.5, "runs/<x>"),
    record("word_accuracy_change", 0.1, "runs/<x>", before=0.4, against="untouched", chance=None),
    record("cer", 0.2, "vit", better="lower", chance=None),
    record("cer", 0.3, "runs/<x>", better="lower", chance=None),
    record("cer_change", 0.1, "runs/<x>", before=0.2, against="untouched", better="lower", chance=None),
    record("word_accuracy (plain)", 0.6, "runs/<x>", detail=True),
]

FOUND = ProbeFacts(
    version="1",
    command="",
    config={"model": "runs/<x>"},
    model="runs/<x>",
    other="vit",
    against="untouched",
    weights=("a", "b"),
    notes=("vqa is left out: <no> data.",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FACTS).write_text(FOUND.model_dump_json())
    (tmp_path / RESULTS).write_text("".join(r.model_dump_json() + "\n" for r in RECORDS))
    return tmp_path


def test_the_page_shows_figures_examples_and_attention(folder: Path) -> None:
    image = Image.fromarray(np.full((20, 30, 3), 90, np.uint8))
    picture = Picture("ocr", image, "<i>two</i>", "too", False, "two", True)
    heat = np.full((4, 4), 1 / 16, np.float32)
    write_probe_reports(
        folder, [picture], [Looks("attention", "block 12", (image,), ((heat,), (heat,)), ("before", "after"))]
    )
    page = (folder / "probes.html").read_text()
    assert "&lt;i&gt;two&lt;/i&gt;" in page
    assert "<i>two" not in page
    assert "&lt;no&gt; data" in page
    assert "before: two (right)" in page
    assert "after: too (wrong)" in page
    assert "40.0 [38.0, 42.0]" in page
    assert "+10.0 [+8.0, +12.0]" in page
    assert "cer (lower is better)" in page
    assert "attention: block 12" in page
    assert page.count("data:image/jpeg;base64") == 2
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    # More errors are drawn to the left, in the colour of a loss: one of the two lines is.
    assert page.count('fill="#D55E00"') == 1
    text = (folder / "table.txt").read_text()
    assert "25.0" in text
    assert "Behind the figures" in text


def test_one_network_alone_has_one_column(folder: Path) -> None:
    alone = FOUND.model_copy(update={"other": None, "against": None})
    out = io.StringIO()
    print_probes(alone, [RECORDS[1]], Console(file=out, width=160))
    assert "found" in out.getvalue()
    assert "difference" not in out.getvalue()


def test_a_folder_without_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no run of probes"):
        read_probe_facts(tmp_path)
    (tmp_path / FACTS).write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        read_probe_facts(tmp_path)
