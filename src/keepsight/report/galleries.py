"""Pictures that a run keeps for its page (examples.json), so that the page can be made again without images. Knows no run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from keepsight.core import Config, UserError
from keepsight.core.files import write_text
from keepsight.report.page import Pictures

EXAMPLES = "examples.json"


class Gallery(Config):
    """Pictures of one thing.

    Attributes:
        of: What they are of: a part of the data, or a probe.
        kind: "examples", what was answered; or "attention", where networks look.
        pictures: With title and captions.
    """

    of: str
    kind: str = "examples"
    pictures: Pictures


class Galleries(Config):
    """examples.json."""

    version: int = 1
    galleries: tuple[Gallery, ...]


def write_galleries(path: Path, galleries: Sequence[Gallery]) -> None:
    """Write examples.json into a run's folder."""
    write_text(path / EXAMPLES, Galleries(galleries=tuple(galleries)).model_dump_json() + "\n")


def read_galleries(path: Path) -> tuple[Gallery, ...] | None:
    """examples.json of a run; None where the run is of a version that wrote none.

    Raises:
        UserError: It is damaged.
    """
    file = path / EXAMPLES
    if not file.is_file():
        return None
    try:
        return Galleries.model_validate_json(file.read_text(encoding="utf-8")).galleries
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged or of another version: start the run again in another folder.") from error
