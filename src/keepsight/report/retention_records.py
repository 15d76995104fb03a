"""What the folder of a comparison of retention holds for its reports: records, failures, facts. Knows no way to make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from keepsight.core import Config, Result, UserError
from keepsight.core.result import read_results

FACTS, RESULTS, FAILURES = "compare.json", "results.jsonl", "failures.jsonl"

UNTOUCHED, PLAIN = "untouched", "none"
"""The backbone before any training; the training without retention."""

MEAN = "mean of the suite"

SHARE_OF_SEED = "share_kept_of_seed"
"""The metric of the share that one seed of several kept."""


class CompareFacts(Config):
    """compare.json.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        config: The comparison's config.
        task: Name of the data set that was trained on.
        sets: Names of the suite's sets.
        notes: What was left out of the suite, and why.
    """

    version: str
    command: str
    config: dict[str, Any]
    task: str = ""
    sets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class CellFailure(Config):
    """A cell without a result, and the sentence that says why."""

    method: str
    retain: str
    seed: int
    sentence: str


def read_compare_facts(path: Path) -> CompareFacts:
    """The facts of the comparison in a folder; UserError if there is none, or it is damaged."""
    return _read(path, FACTS, lambda: CompareFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8")))


def read_compare_records(path: Path) -> list[Result]:
    """All records of the comparison in a folder; UserError if it has not come to its end, or they are damaged."""
    return _read(path, RESULTS, lambda: read_results(path / RESULTS))


def read_cell_failures(path: Path) -> list[CellFailure]:
    """The cells that failed; UserError as for the records."""

    def read() -> list[CellFailure]:
        lines = (path / FAILURES).read_text(encoding="utf-8").splitlines()
        return [CellFailure.model_validate_json(line) for line in lines if line.strip()]

    return _read(path, FAILURES, read)


_T = TypeVar("_T")


def _read(path: Path, name: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except FileNotFoundError as error:
        raise UserError(
            f"There is no finished comparison in {path}: keepsight compare retention --out {path} starts one, or goes on with it."
        ) from error
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{path / name} is damaged: choose another --out.") from error
