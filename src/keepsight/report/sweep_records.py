"""What a sweep's folder holds for its reports: records, failures, and facts that the page repeats. Knows no way to make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keepsight.core import Config, Result, UserError
from keepsight.core.result import read_results

FACTS, RESULTS, FAILURES = "sweep.json", "results.jsonl", "failures.jsonl"


class SweepFacts(Config):
    """sweep.json.

    Attributes:
        version: keepsight's.
        command: What started the sweep; empty if it was started in Python.
        families: Method -> 'frozen' or 'trainable', in the order of the tables.
        against: The method that the others are compared with, if one was asked for.
        config: The sweep's config.
    """

    version: str
    command: str
    families: dict[str, str]
    against: str | None
    config: dict[str, Any]


class Failure(Config):
    """A cell without a result, and the sentence that says why."""

    dataset: str
    backbone: str
    size: int
    method: str
    labels: int
    seed: int
    sentence: str


def read_facts(path: Path) -> SweepFacts:
    """The facts of the sweep in a folder.

    Raises:
        UserError: There is none, or it is damaged.
    """
    try:
        return SweepFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no sweep in {path}: start one with keepsight sweep label-counts.") from error
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{path / FACTS} is damaged: restore it, or start the sweep in another folder.") from error


def read_records(path: Path) -> list[Result]:
    """All records of the sweep in a folder.

    Raises:
        UserError: They are damaged, or the sweep has not come to its end.
    """
    try:
        return read_results(path / RESULTS)
    except FileNotFoundError as error:
        raise UserError(
            f"The sweep in {path} has no results yet: start the same command again, and it goes on."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path / RESULTS} is damaged: start the sweep's command again.") from error


def read_failures(path: Path) -> list[Failure]:
    """The cells that failed; none where the file is missing."""
    try:
        lines = (path / FAILURES).read_text(encoding="utf-8").splitlines()
        return [Failure.model_validate_json(line) for line in lines if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{path / FAILURES} is damaged: start the sweep's command again.") from error
