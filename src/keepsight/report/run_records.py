"""All records of a finished run of `tune` or `compare`, read once for its page. Knows no page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from keepsight.core import Config, Result, UserError
from keepsight.core.files import write_text
from keepsight.core.result import read_results
from keepsight.report.answer import Change, Facts
from keepsight.report.diagnosis_records import Diagnosis, read_diagnosis
from keepsight.report.forgetting_records import FINDINGS, ForgettingFindings, read_findings
from keepsight.report.ladder_records import LADDER, LadderRecord, read_ladder
from keepsight.report.loss_records import FitCurves, read_losses
from keepsight.report.summary import MAP, main_metric

RESULTS, RECOMMENDATION, COMMAND = "results.jsonl", "recommendation.json", "command.txt"

NOTES = "notes.json"

FORGOTTEN = "probe_accuracy"
"""What forgetting is told by first: the mean accuracy of linear probes over the data sets of the suite."""


class RunNotes(Config):
    """notes.json: sentences that are no figures.

    Attributes:
        without_result: Why methods have none.
        forgot: What is said of forgetting, a line a method.
    """

    without_result: tuple[str, ...] = ()
    forgot: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRecords:
    """A finished run, from its folder.

    Attributes:
        folder: The run's.
        results: All figures.
        method: The recommended one.
        why: The sentence that says why.
        criterion: "cross-validation" or "rule".
        diagnosis: None in runs of versions that wrote none.
        forgetting: What each tuned method forgot, by method; what is damaged is left out.
        losses: The course of the trainings.
        ladder: Of a comparison.
        command: What started it; "" for Python, None where it was not recorded.
        notes: Sentences that are no figures.
    """

    folder: Path
    results: tuple[Result, ...]
    method: str
    why: str
    criterion: str
    diagnosis: Diagnosis | None
    forgetting: dict[str, ForgettingFindings]
    losses: tuple[FitCurves, ...]
    ladder: LadderRecord | None
    command: str | None
    notes: RunNotes

    @cached_property
    def metric(self) -> str:
        """What methods are compared by."""
        return main_metric(self.results)

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """All of them, in the order of the records."""
        return tuple(dict.fromkeys(r.method for r in self.results))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its settings."""
        return _mapping(self.folder / "config.yaml", yaml.safe_load) if self.ladder is None else self.ladder.settings

    @cached_property
    def version(self) -> str:
        """keepsight's that ran it."""
        return str(_mapping(self.folder / "environment.json", json.loads).get("keepsight", ""))

    @cached_property
    def name(self) -> str:
        """Of the data set."""
        if self.diagnosis is not None:
            return self.diagnosis.data.name
        return self.results[0].dataset if self.results else str(self.config.get("data", self.folder.name))

    def summary(self, method: str, metric: str | None = None) -> Result | None:
        """A method's figure on the test images over all seeds."""
        wanted = (method, metric or self.metric, "test", None)
        return next((r for r in self.results if (r.method, r.metric, r.split, r.seed) == wanted), None)

    def validated(self, method: str) -> Result | None:
        """A method's figure on labelled images that were held out in turn, or on validation images."""
        wanted = (method, self.metric)
        held = ("cross-validation", "validation")
        return next((r for r in self.results if (r.method, r.metric) == wanted and r.split in held), None)

    def is_tuned(self, method: str) -> bool:
        """Whether a method trains a network on images."""
        if self.diagnosis is not None:
            return method not in self.diagnosis.frozen
        plain = method.partition("+")[0]
        return plain == "cnn" or plain.startswith("finetune-") or plain.endswith(("-lora", "-full"))

    @cached_property
    def baseline(self) -> str | None:
        """The strongest cheap method, chosen on labelled images alone."""
        if self.diagnosis is not None:
            return self.diagnosis.baseline
        return self._best([m for m in self.methods if not self.is_tuned(m)])

    def _best(self, methods: list[str]) -> str | None:
        """By cross-validation; None where one of several has none."""
        if len(methods) == 1:
            return methods[0]
        figures = [self.validated(method) for method in methods]
        known = [f.value if self.metric != MAP else -f.value for f in figures if f is not None]
        if not methods or len(known) < len(methods):
            return None
        return methods[known.index(min(known))]

    def gain(self, method: str) -> Change | None:
        """Over the baseline on the test images, better is positive; None for the baseline, and where it was not recorded."""
        found = self.diagnosis.difference(method) if self.diagnosis is not None else None
        if found is None:
            return None
        if self.metric == MAP:
            return Change(found.value, found.ci_low, found.ci_high)
        return Change(-found.value, -found.ci_high, -found.ci_low)

    def forgot(self, method: str) -> Change | None:
        """Change of the mean accuracy of linear probes on other data."""
        found = self.forgetting.get(method)
        of = found.mean.get(FORGOTTEN) if found is not None else None
        return None if of is None else Change(of.change, of.low, of.high)

    def facts(self) -> Facts:
        """What the first sentence is made of."""
        baseline = self.baseline
        tuned = [m for m in self.methods if self.is_tuned(m)] if self.method == baseline else []
        rival = self._best(tuned)
        return Facts(
            method=self.method,
            tuned=self.is_tuned(self.method),
            tested=self.summary(self.method),
            validated=self.validated(self.method),
            baseline=baseline,
            baseline_tested=self.summary(baseline) if baseline else None,
            gain=self.gain(self.method),
            rival=rival,
            rival_gain=self.gain(rival) if rival else None,
            unranked=tuple(tuned) if rival is None else (),
            by_rule=self.criterion == "rule",
            forgot=self.forgot(self.method),
        )


def read_run(folder: Path) -> RunRecords:
    """The records.

    Raises:
        UserError: There is no finished run in the folder, or a record is damaged.
    """
    try:
        results = read_results(folder / RESULTS)
        chosen = json.loads((folder / RECOMMENDATION).read_text(encoding="utf-8"))
        method, why, criterion = str(chosen["method"]), str(chosen["why"]), str(chosen["criterion"])
    except FileNotFoundError as error:
        raise UserError(f"There is no finished run in {folder}: start it, or resume it with its command.") from error
    except (OSError, ValidationError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The results of the run in {folder} are damaged: start the run again, which repairs them."
        ) from error
    ladder = read_ladder(folder) if (folder / LADDER).is_file() else None
    return RunRecords(
        folder=folder,
        results=tuple(results),
        method=method,
        why=why,
        criterion=criterion,
        diagnosis=read_diagnosis(folder),
        forgetting=_forgetting(folder),
        losses=read_losses(folder),
        ladder=ladder,
        command=_command(folder) if ladder is None else ladder.command,
        notes=_notes(folder),
    )


def _forgetting(folder: Path) -> dict[str, ForgettingFindings]:
    found = {}
    for file in sorted((folder / "forgetting").glob(f"*/{FINDINGS}")):
        try:
            findings = read_findings(file.parent)
        except UserError:  # it is named among the sections about forgetting
            continue
        found[findings.method] = findings
    return found


def _mapping(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """What a YAML or JSON file holds; nothing where it is missing or damaged: it is shown, and no figure hangs on it."""
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _command(folder: Path) -> str | None:
    try:
        return (folder / COMMAND).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def write_notes(path: Path, notes: RunNotes) -> None:
    """Write notes.json into a run's folder."""
    write_text(path / NOTES, notes.model_dump_json() + "\n")


def _notes(folder: Path) -> RunNotes:
    file = folder / NOTES
    if not file.is_file():
        return RunNotes()
    try:
        return RunNotes.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: start the run again, which repairs it.") from error
