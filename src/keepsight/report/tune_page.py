"""The page of a run of `tune` or `compare`, from the records in its folder. Knows no HTML, no image and no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from keepsight.report.answer import answer
from keepsight.report.calibration_blocks import calibration_blocks
from keepsight.report.data_blocks import data_blocks
from keepsight.report.forgetting_page import forgetting_sections
from keepsight.report.ladder_page import ladder_blocks
from keepsight.report.limitations import limitations
from keepsight.report.method_blocks import learning_blocks, method_blocks
from keepsight.report.mistake_blocks import confusion_blocks, label_blocks, mistake_blocks
from keepsight.report.page import Block, Page, Text, sections
from keepsight.report.probe_page import probe_sections
from keepsight.report.probes import RESULTS
from keepsight.report.repeating import repeating
from keepsight.report.run_records import RunRecords, read_run
from keepsight.report.summary import caption
from keepsight.report.tradeoff_blocks import tradeoff_blocks

PROBES = "probe"
"""A folder in the run's: of what `keepsight probe` was pointed to, or with a folder for each method."""


def tune_page(folder: Path) -> Page:
    """The page.

    Raises:
        UserError: There is no finished run in the folder, or a record is damaged.
    """
    return page_of(read_run(folder))


def page_of(run: RunRecords) -> Page:
    """The page of records that were read."""
    found: list[tuple[str, Sequence[Block | None]]] = [
        ("Gain against forgetting", tradeoff_blocks(run)),
        ("Methods", method_blocks(run)),
        ("The ladder", ladder_blocks(run.folder) if run.ladder is not None else []),
        ("Methods without a result", [Text(text=line) for line in run.notes.without_result]),
        ("Learning curves", learning_blocks(run)),
        ("Calibration", calibration_blocks(run)),
        ("Confusion", confusion_blocks(run)),
        ("Most confident mistakes", mistake_blocks(run)),
        ("Probable label errors", label_blocks(run)),
        ("Forgetting in short", [Text(text=line) for line in run.notes.forgot]),
        *forgetting_sections(run.folder / "forgetting"),
        *_probes(run.folder / PROBES),
        ("Data", data_blocks(run)),
        ("Limitations", [Text(text=line) for line in limitations(run)]),
        ("Doing it again", _repeating(run)),
    ]
    return head_of(run).model_copy(update={"sections": sections(found)})


def head_of(run: RunRecords) -> Page:
    """What stands above the sections."""
    return Page(
        version=run.version,
        kind="tune" if run.ladder is None else "compare",
        title=run.name,
        answer=answer(run.facts()),
        lead=(f"{caption(run.results)}.", run.why),
    )


def _probes(folder: Path) -> list[tuple[str, list[Block]]]:
    """Of what came to an end: probes that could not be asked at all leave a folder without figures."""
    made = probe_sections(folder) if (folder / RESULTS).is_file() else []
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (each / RESULTS).is_file():
            made += [(f"{each.name}: {title}", blocks) for title, blocks in probe_sections(each)]
    return made


def _repeating(run: RunRecords) -> list[Block]:
    command = run.command or ""
    made: list[Block] = []
    if not command:
        started = "The run was started in Python" if run.command == "" else "The command was not recorded"
        made.append(
            Text(
                text=f"{started}. With the configuration below as config.yaml, as it lies in the run's folder, 'keepsight tune "
                "DATA --config config.yaml' does the same; images in memory are given again in Python."
            )
        )
    return [*made, *repeating(run.folder, run.version, command, run.config)]
