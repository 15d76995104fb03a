"""The table in the terminal, from records alone; names are a user's."""

from __future__ import annotations

import io

from rich.console import Console

from keepsight.core import Result
from keepsight.report.forgetting import change_text, print_forgetting


def record(dataset: str, metric: str, value: float, before: float | None = 0.9) -> Result:
    return Result(
        task="forgetting",
        dataset=dataset,
        split="cross-validation",
        method="finetune-full",
        backbone="vit",
        readout="last:cls",
        metric=metric,
        value=value,
        ci_low=value - 0.01,
        ci_high=value + 0.01,
        interval="paired bootstrap",
        n=1000,
        labels=0,
        seed=0,
        seeds=1,
        before=before,
        against="untouched",
    )


def test_the_table_has_a_row_a_set_and_a_dash_for_what_was_not_measured() -> None:
    records = [
        record("[bold]flowers", "probe_accuracy_change", -0.05),
        record("[bold]flowers", "zero_shot_accuracy_change", -0.2, 0.5),
        record("[bold]flowers", "cka", 0.5, None),
        record("mean of the suite", "probe_accuracy_change", -0.05),
    ]
    out = io.StringIO()
    print_forgetting(records, Console(file=out, width=160, highlight=False))
    lines = out.getvalue().splitlines()
    row = next(line for line in lines if "[bold]flowers" in line)
    assert "90.0 -> 85.0 (-5.0 [-6.0, -4.0])" in row
    assert "50.0 -> 30.0 (-20.0 [-21.0, -19.0])" in row
    assert " - " in next(line for line in lines if "mean of the suite" in line)
    assert "finetune-full against untouched" in out.getvalue()


def test_nothing_is_not_minus_nothing() -> None:
    assert change_text(0.5, -1e-9, -1e-9, 1e-9) == "50.0 -> 50.0 (+0.0 [+0.0, +0.0])"
