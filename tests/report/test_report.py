"""The table is made from records alone, and shows names as they are."""

from __future__ import annotations

import io

from rich.console import Console

from keepsight.core import Result
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
