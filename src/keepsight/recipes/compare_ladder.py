"""The rungs of a comparison: cheap candidates first, short trainings of the dear ones, then full ones. Knows no test image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import final

import numpy as np

from keepsight.core.files import is_sound
from keepsight.core.progress import log
from keepsight.data.splits import Splits
from keepsight.evaluate.classification import Floats
from keepsight.recipes.cells import Cell, CellOutcome, Context
from keepsight.recipes.compare_book import Book
from keepsight.recipes.compare_cells import (
    drop_model,
    fitted,
    fold_cell,
    held_out_parts,
    mixture,
    seed_cell,
    shortened,
    work,
)
from keepsight.recipes.compare_config import Candidate
from keepsight.recipes.compare_rules import Judge, along_curve, best_of, verdicts, verdicts_under_limit
from keepsight.recipes.config import TuneConfig
from keepsight.recipes.forgetting_settings import BUNDLED
from keepsight.recipes.multilabel import said_of
from keepsight.recipes.suite import BUNDLED_SETS
from keepsight.report.ladder_records import Decision, Rung

FROZEN, FULL, TEST = "frozen", "full", "test"

SHORT = (("short 1/9", 1 / 9, 1 / 3), ("short 1/3", 1 / 3, 2 / 3))
"""Name, share of the epochs, and share of the folds of each rung of short trainings."""

LOOKS = 4
"""Forward passes' worth of time that an image of the suite takes: both networks, and the fits of probes."""


@final
class Ladder:
    """The candidates on held-out labelled images.

    Args:
        context: At full length; the folder is the comparison's.
        splits: Those of all candidates.
        book: What was decided, and the time that is left.
    """

    def __init__(self, context: Context, splits: Splits, book: Book) -> None:
        self.context, self.splits, self.book, self.config = context, splits, book, book.config
        self.draw = splits.draws[0]
        self.parts, self.are_folds = held_out_parts(context.dataset, self.draw, self.config.base.selection_folds)
        self.judges = [Judge(context.dataset, part.held_out) for part in self.parts]
        self.allowed: dict[str, tuple[float, ...]] = {c.name: c.alphas for c in self.config.candidates}

    def cell(self, candidate: Candidate, name: str, i: int) -> Cell:
        """The candidate on a held-out part in this rung."""
        what = f"fold-{i}" if self.are_folds else "validation"
        prefix = f"{name.replace(' ', '-').replace('/', '-')}-" if name in {short for short, _, _ in SHORT} else ""
        return fold_cell(candidate, self.draw, self.parts[i], f"{prefix}{what}", self.are_folds)

    def fit(
        self, context: Context, candidate: Candidate, cell: Cell, alphas: tuple[float, ...] = ()
    ) -> tuple[CellOutcome, Floats]:
        """A cell's outcome, and its probabilities [A, N, K] at these alphas of its curve, or all (A = 1 where there is none)."""
        if not candidate.alphas:
            mixed = any(c.alphas and c.training == candidate for c in self.config.candidates)
            outcome = fitted(context, candidate, replace(cell, keep_model=cell.keep_model or mixed))
            return outcome, outcome.probabilities[None]
        end = replace(cell, retain=None, keep_model=True)
        folder = end.folder(context.folder)
        if not is_sound(cell.folder(context.folder)) and not (folder / "model").is_dir():
            (folder / "cell.json").unlink(
                missing_ok=True
            )  # its model was removed, and the mixture got lost: both again
        trained = fitted(context, candidate.training, end)
        return mixture(context, cell, end, alphas or candidate.alphas, trained)

    def held(
        self, candidate: Candidate, name: str = FULL, share: float = 1.0, count: int | None = None
    ) -> list[Floats]:
        """Probabilities [A, N, K] on each of the first `count` held-out parts; computed where they are not on disk."""
        context = replace(self.context, config=shortened(self.config.base, share))
        curves = []
        for i in range(len(self.parts) if count is None else count):
            cell = self.cell(candidate, name, i)
            there = is_sound(cell.folder(context.folder))
            outcome, curve = self.fit(context, candidate, cell)
            curves.append(curve)
            if not there:
                seen = said_of(self.at_best(candidate, [curve], i), context.dataset, cell.measured_on)
                log.info("rung %s: %s %s: %s, %.1f s", name, candidate.name, cell.name, seen, outcome.record.seconds)
        return curves

    def at_best(self, candidate: Candidate, curves: Sequence[Floats], first: int = 0) -> Floats:
        """Probabilities [N, K] on held-out parts; along a curve each at the alpha that the other parts choose."""
        if not candidate.alphas:
            return np.concatenate([curve[0] for curve in curves])
        alphas = self.allowed[candidate.name]
        among = [[curve[candidate.alphas.index(alpha)] for alpha in alphas] for curve in curves]
        return along_curve(self.judges[first : first + len(curves)], [np.stack(each) for each in among], alphas)

    def climb(self) -> list[Candidate]:
        """All rungs but the last; the candidates that are left, from cheap to dear."""
        frozen = [c for c in self.config.candidates if not c.tuned]
        tuned = [c for c in self.config.candidates if c.tuned]
        if not self.parts:
            log.info("The labelled images allow no held-out part: no candidate stops before the test.")
            return [*frozen, *tuned]
        frozen = self.rung(FROZEN, frozen, 1.0, len(self.parts))
        stops = len({c.training.name for c in tuned}) > 1 and self.config.limit is None
        for name, share, folds in SHORT if stops else SHORT[: int(self.config.budget is not None)]:
            tuned = self.rung(name, tuned, share, max(1, round(folds * len(self.parts))))
        return [*frozen, *self.rung(FULL, tuned, 1.0, len(self.parts), frozen)]

    def rung(
        self, name: str, candidates: Sequence[Candidate], share: float, count: int, beside: Sequence[Candidate] = ()
    ) -> list[Candidate]:
        """Fit the candidates on the first `count` held-out parts and say which go on.

        Args:
            name: Of the rung.
            candidates: From cheap to dear.
            share: Of their epochs.
            count: Held-out parts.
            beside: Candidates that have gone on already, and that they are compared with.
        """
        if not candidates:
            return []
        if self.book.record.rung(name) is None:
            images = sum(len(part.held_out) for part in self.parts[:count])
            self.book.put(Rung(name=name, share=share, folds=count, images=images))
            log.info("rung %s: %s", name, ", ".join(candidate.name for candidate in candidates))
        if not self.book.rung(name).finished:
            self._decided(name, candidates, self._fitted(name, candidates, share, count), count, beside)
            self.book.finish(name)
        for cell in (self.cell(c.training, name, i) for c in candidates if c.alphas for i in range(count)):
            drop_model(self.context, cell)  # it was kept for mixtures, which are made by now
        found = ((c, self.book.standing(name, c)) for c in candidates)
        return [c for c, standing in found if standing is not None and standing.decision == "goes on"]

    def _fitted(self, name: str, candidates: Sequence[Candidate], share: float, count: int) -> dict[str, Floats]:
        """Probabilities on the rung's held-out images of every candidate that is begun and can be fitted."""
        predicted = {}
        config = shortened(self.config.base, share)
        for candidate in candidates:
            cells = [self.cell(candidate, name, i) for i in range(count)]
            foreseen = self.seconds_a_pass(candidate) * self._passes(candidate, name, config, cells)
            left = [self.foreseen_to_end(c) for c in candidates if self.seconds_a_pass(c)]
            if not self.book.begun(name, candidate, foreseen, min(left, default=0.0)):
                continue
            curves = self.book.tried(name, candidate, partial(self.held, candidate, name, share, count))
            if curves is not None:
                predicted[candidate.name] = self.at_best(candidate, curves)
        return predicted

    def _decided(
        self,
        name: str,
        candidates: Sequence[Candidate],
        predicted: dict[str, Floats],
        count: int,
        beside: Sequence[Candidate],
    ) -> None:
        if not predicted:
            return
        judge = Judge(self.context.dataset, np.concatenate([part.held_out for part in self.parts[:count]]))
        predicted = {**{c.name: self.at_best(c, self.held(c)) for c in beside}, **predicted}
        before = {c.name for c in beside}
        if self.config.limit is not None and name != FROZEN:
            found = verdicts_under_limit(judge, predicted, before, best_of(judge, predicted, [c.name for c in beside]))
        else:
            best = best_of(judge, predicted, [c.name for c in candidates]) if name == FULL else None
            found = verdicts(judge, predicted, before, {best} if best else (), by_rank=name == FULL)
        for candidate in candidates:
            standing = self.book.standing(name, candidate)
            verdict = found.get(candidate.name)
            if standing is None or verdict is None:
                continue
            decision: Decision = "goes on" if verdict.goes_on else "stopped"
            told = {
                "decision": decision,
                "reason": verdict.reason,
                "figure": verdict.figure,
                "seconds": sum(self._seconds(candidate, name, i) for i in range(count)),
            }
            self.book.decide(name, standing.model_copy(update=told))

    def _seconds(self, candidate: Candidate, name: str, i: int) -> float:
        """Of a finished cell."""
        outcome, _ = self.fit(self.context, candidate, self.cell(candidate, name, i))
        return outcome.record.seconds

    def seconds_a_pass(self, candidate: Candidate) -> float:
        """Seconds that its training took for each forward pass of an image in the last rung that it finished; 0 before."""
        names = [candidate.name] if not candidate.alphas else [candidate.name, candidate.training.name]
        found = 0.0
        for name in names:  # of a mixture that of the plain training, where that is a candidate, too
            for rung in self.book.record.rungs:
                standing = next((s for s in rung.standings if s.candidate == name), None)
                if standing is not None and standing.seconds > 0 and rung.name != TEST:
                    config = shortened(self.config.base, rung.share)
                    passes = sum(work(config, self.cell(candidate, rung.name, i)) for i in range(rung.folds))
                    found = standing.seconds / passes
        return found

    def _passes(self, candidate: Candidate, name: str, config: TuneConfig, cells: Sequence[Cell]) -> float:
        """Forward passes that fits take in a rung; a mixture's training is none of its own where it is trained there anyway."""
        training = self.book.standing(name, candidate.training) if candidate.alphas else None
        trained = training is not None and training.decision in ("begun", "measured")
        points = 1 if name == TEST else len(candidate.alphas)
        of_curve = sum(points * len(cell.measured_on) for cell in cells) if candidate.alphas else 0
        return of_curve + (0 if trained else sum(work(config, cell) for cell in cells))

    def foreseen_to_end(self, candidate: Candidate) -> float:
        """Seconds of the last rung: a training a seed, measured on test, and what was forgotten."""
        base = self.config.base
        cells = [seed_cell(candidate, draw, self.splits.test, keep_model=False) for draw in self.splits.draws]
        passes = self._passes(candidate, TEST, base, cells)
        if candidate.tuned and (base.forgetting.measure or self.config.limit is not None):
            sets = sum(len(BUNDLED_SETS) if name == BUNDLED else 1 for name in base.forgetting.suite)
            passes += LOOKS * sets * base.forgetting.per_set
        return self.seconds_a_pass(candidate) * passes
