"""ladder.json: which candidates a comparison began, how far each came, and why it stopped. Knows no way to make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from keepsight.core import Config, UserError

LADDER = "ladder.json"

Decision = Literal["begun", "goes on", "stopped", "not begun", "failed", "measured"]
"""Of a candidate in a rung; "begun" is one whose fits have not come to their end."""


class LadderFigure(Config):
    """What is compared, on held-out labelled images: the figure, its 95 % interval, and n."""

    value: float
    low: float
    high: float
    n: int


class Standing(Config):
    """One candidate in one rung.

    Attributes:
        candidate: Its name.
        decision: What became of it.
        reason: Why, in words.
        figure: On the rung's held-out images; None where it did not come so far, or (on the last rung) where nothing is chosen.
        seconds: Of its fits in this rung, with their predictions.
        foreseen: Seconds that were foreseen before it began; None without a budget.
    """

    candidate: str
    decision: Decision
    reason: str = ""
    figure: LadderFigure | None = None
    seconds: float = 0.0
    foreseen: float | None = None


class Rung(Config):
    """One rung: what was trained in it, and on how much.

    Attributes:
        name: "frozen", "short 1/9", "short 1/3", "full", "test".
        share: Of the epochs or steps.
        folds: Folds of the labelled images that were held out, each in turn; 0 on the last rung.
        images: Held-out images in all of them.
        finished: Whether all of its decisions are made.
        standings: One a candidate, from cheap to dear.
    """

    name: str
    share: float
    folds: int
    images: int
    finished: bool = False
    standings: tuple[Standing, ...] = ()


class LadderCandidate(Config):
    """A candidate, and how it ended.

    Attributes:
        name: "finetune-full+procrustes"; without retention the method's.
        method: The method's.
        retain: What keeps the backbone near the one it came from; None for plain training and frozen backbones.
        tuned: Whether it trains a network on images.
        fate: "waiting" until the comparison ends.
        rung: The rung in which it ended.
        why: In words.
        alpha: Where it lies between the plain training's start (0) and end (1), if it is made of them.
        allowed: The alphas that it was chosen among.
        loss: Points of mean probe accuracy lost (negative: gained) on the half of the suite that choices are made on; None
            where there is no limit.
        within: Whether that is within the limit; None where there is none.
    """

    name: str
    method: str
    retain: str | None = None
    tuned: bool = False
    fate: Literal["waiting", "measured", "stopped", "not begun", "failed"] = "waiting"
    rung: str = ""
    why: str = ""
    alpha: float | None = None
    allowed: tuple[float, ...] = ()
    loss: float | None = None
    within: bool | None = None


class LadderRecord(Config):
    """ladder.json.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        settings: The comparison's config.
        metric: What is compared: "error", or "mean_average_precision".
        held_out: What it is compared on.
        rule: When a candidate stops, in words.
        budget: Seconds; None for no limit.
        limit: Points of mean probe accuracy that may be lost; None for no limit.
        used: Seconds of this comparison, those before a kill included.
        candidates: All, from cheap to dear.
        rungs: In their order.
        notes: What was asked for and is no candidate, and why.
    """

    version: str
    command: str
    settings: dict[str, Any]
    metric: Literal["error", "mean_average_precision"] = "error"
    held_out: Literal["cross-validation", "validation images", "nothing"] = "cross-validation"
    rule: str = ""
    budget: float | None = None
    limit: float | None = None
    used: float = 0.0
    candidates: tuple[LadderCandidate, ...] = ()
    rungs: tuple[Rung, ...] = ()
    notes: tuple[str, ...] = ()

    def rung(self, name: str) -> Rung | None:
        """By its name; None where the comparison has not come so far."""
        return next((rung for rung in self.rungs if rung.name == name), None)

    def candidate(self, name: str) -> LadderCandidate:
        """By its name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def read_ladder(path: Path) -> LadderRecord:
    """Of a comparison's folder.

    Raises:
        UserError: There is none, or it is damaged.
    """
    try:
        return LadderRecord.model_validate_json((path / LADDER).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"There is no comparison in {path}: keepsight compare DATA --out {path} starts one.") from error
    except (OSError, ValidationError, ValueError) as error:
        raise UserError(f"{path / LADDER} is damaged: choose another --out.") from error
