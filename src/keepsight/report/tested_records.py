"""Which images a run was tested on, and which it answered wrongly (tested.json), so that runs can be compared in pairs."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from keepsight.core import Config, UserError
from keepsight.core.files import write_text

TESTED = "tested.json"


class Answers(Config):
    """What one method answered.

    Attributes:
        method: Its name.
        wrong: For each seed, the positions of the test images that it answered wrongly.
    """

    method: str
    wrong: dict[int, tuple[int, ...]]


class AnswerRecord(Config):
    """tested.json.

    Attributes:
        version: Of the record.
        keys: Of each test image the first 16 hex digits of its content's sha256.
        labels: Of each the true class, by name.
        answers: One a method.
    """

    version: int = 1
    keys: tuple[str, ...]
    labels: tuple[str, ...]
    answers: tuple[Answers, ...]

    def of(self, method: str) -> Answers | None:
        """What a method answered."""
        return next((a for a in self.answers if a.method == method), None)


def write_tested(path: Path, record: AnswerRecord) -> None:
    """Write tested.json into a run's folder."""
    write_text(path / TESTED, record.model_dump_json() + "\n")


def read_tested(path: Path) -> AnswerRecord | None:
    """tested.json of a run; None where there is none: no test images, multi-label data, or a version that wrote none.

    Raises:
        UserError: It is damaged.
    """
    file = path / TESTED
    if not file.is_file():
        return None
    try:
        return AnswerRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged: start the run again, which repairs it.") from error
