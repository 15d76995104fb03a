"""ladder.json while a comparison runs: decisions, written before anything is done by them, and the time that is left.

Knows no fit. Whoever goes on after a kill finds the decisions here and makes none of them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, final

from keepsight.core import CollapsedError, UserError
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.recipes.compare_config import Candidate, LadderConfig
from keepsight.recipes.config import TOGETHER
from keepsight.report.ladder_records import LADDER, LadderRecord, Rung, Standing

T = TypeVar("T")


@final
class Book:
    """What is written of a comparison, and its clock.

    Args:
        folder: The comparison's.
        config: What is compared.
        record: ladder.json as it is.
        start: When this process began with it (`time.monotonic`).
    """

    def __init__(self, folder: Path, config: LadderConfig, record: LadderRecord, start: float) -> None:
        self.folder, self.config, self.record = folder, config, record
        self._before, self._start = record.used, start
        self._order = [candidate.name for candidate in config.candidates]

    def used(self) -> float:
        """Seconds of the comparison, those before a kill included."""
        return self._before + time.monotonic() - self._start

    def write(self, **update: object) -> None:
        """Change ladder.json."""
        self.record = self.record.model_copy(update={**update, "used": self.used()})
        write_text(self.folder / LADDER, self.record.model_dump_json(indent=2) + "\n")

    def rung(self, name: str) -> Rung:
        """As it is now."""
        found = self.record.rung(name)
        assert found is not None
        return found

    def put(self, rung: Rung) -> None:
        """Write a rung."""
        others = [each for each in self.record.rungs if each.name != rung.name]
        self.write(rungs=(*others, rung))

    def standing(self, name: str, candidate: Candidate) -> Standing | None:
        """Of a candidate in a rung; None where nothing is decided."""
        rung = self.record.rung(name)
        return next((s for s in rung.standings if s.candidate == candidate.name), None) if rung else None

    def decide(self, name: str, standing: Standing) -> None:
        """Write what becomes of a candidate in a rung, and say it."""
        rung = self.rung(name)
        rest = [each for each in rung.standings if each.candidate != standing.candidate]
        standings = sorted([*rest, standing], key=lambda each: self._order.index(each.candidate))
        self.put(rung.model_copy(update={"standings": tuple(standings)}))
        if standing.decision != "begun":
            log.info("rung %s: %s, %s: %s", name, standing.candidate, standing.decision, standing.reason)

    def finish(self, name: str) -> None:
        """All decisions of the rung are made."""
        self.put(self.rung(name).model_copy(update={"finished": True}))

    def begun(self, name: str, candidate: Candidate, foreseen: float, reserve: float) -> bool:
        """Whether the candidate is begun in this rung; decided once.

        Args:
            name: Of the rung.
            candidate: Which.
            foreseen: Seconds; 0 where nothing was measured yet.
            reserve: Seconds that must be left after it.
        """
        standing = self.standing(name, candidate)
        if standing is None:
            told = foreseen if self.config.budget is not None else None
            reason = self._no_time(candidate, foreseen, reserve)
            standing = Standing(
                candidate=candidate.name, decision="not begun" if reason else "begun", reason=reason, foreseen=told
            )
            self.decide(name, standing)
        return standing.decision not in ("not begun", "failed")

    def _no_time(self, candidate: Candidate, foreseen: float, reserve: float) -> str:
        """Why there is no time for a candidate; empty where there is."""
        budget = self.config.budget
        solved = not candidate.tuned and candidate.method not in TOGETHER
        if budget is None or solved or candidate.name == self._order[0]:
            return ""
        left = budget - self.used()
        if left <= 0:
            return f"the budget of {in_words(budget)} was used up"
        if foreseen + reserve <= left:
            return ""
        kept = f", and {in_words(reserve)} more for a last training" if reserve else ""
        return f"it would have taken about {in_words(foreseen)}{kept}; {in_words(left)} of {in_words(budget)} were left"

    def tried(self, name: str, candidate: Candidate, fits: Callable[[], T]) -> T | None:
        """What `fits` gives; None where this candidate cannot be fitted, which is written.

        Raises:
            UserError: Something is wrong that is not the candidate's own: the disk is full.
        """
        try:
            return fits()
        except UserError as error:
            if not isinstance(error, CollapsedError) and isinstance(error.__cause__, OSError):
                raise
            standing = self.standing(name, candidate)
            assert standing is not None
            self.decide(name, standing.model_copy(update={"decision": "failed", "reason": str(error)}))
            return None


def in_words(seconds: float) -> str:
    """A time for a person.

    Example:
        >>> in_words(0.4), in_words(90), in_words(1800), in_words(7200)
        ('0.4 s', '90 s', '30 min', '2 h')
    """
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
