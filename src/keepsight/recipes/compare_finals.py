"""The end of a comparison: what is left is trained on every seed and measured on test; one candidate is recommended.

The choice is made on held-out labelled images and, where forgetting is limited, on one half of the suite; never on test.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import final

import numpy as np

from keepsight.core import Backbone, UserError
from keepsight.core.progress import log
from keepsight.data.splits import Draw
from keepsight.evaluate.classification import Floats
from keepsight.export.model import TunedModel
from keepsight.recipes.cells import Cell, CellOutcome, Context
from keepsight.recipes.compare_book import Book
from keepsight.recipes.compare_cells import drop_model, seed_cell
from keepsight.recipes.compare_config import Candidate
from keepsight.recipes.compare_ladder import TEST, Ladder
from keepsight.recipes.compare_rules import curve_choice
from keepsight.recipes.context import folder_name
from keepsight.recipes.ending import Ending
from keepsight.recipes.forgetting import forgetting_note, forgetting_of_run
from keepsight.recipes.interpolate import mixed_network, start_head
from keepsight.recipes.multilabel import said_of
from keepsight.recipes.origin import Origin
from keepsight.recipes.recommend import Recommendation, recommend, recommend_by_map
from keepsight.recipes.within import STEPS, Watched, greatest_step
from keepsight.report.ladder_records import LadderCandidate, Rung

HALF = 0.5
"""Alpha where nothing is held out that could choose it."""


@final
class Finals:
    """The last rung.

    Args:
        ladder: Climbed.
        origin: Of the models.
    """

    def __init__(self, ladder: Ladder, origin: Origin) -> None:
        self.ladder, self.origin = ladder, origin
        self.context: Context = ladder.context
        self.book: Book = ladder.book
        self.limit = ladder.config.limit
        self.found: dict[str, str] = {}

    def run(self, left: Sequence[Candidate]) -> Ending:
        """Train, measure, recommend.

        Raises:
            UserError: No candidate could be measured.
        """
        ladder, book, outcomes = self.ladder, self.book, dict[tuple[str, str], CellOutcome]()
        if book.record.rung(TEST) is None:
            book.put(Rung(name=TEST, share=1.0, folds=0, images=0))
            log.info("rung %s: %s", TEST, ", ".join(candidate.name for candidate in left))
        measured = []
        for candidate in left:
            if not book.begun(TEST, candidate, ladder.foreseen_to_end(candidate), 0.0):
                continue
            made = book.tried(TEST, candidate, partial(self._seeds, candidate))
            if made is None:
                continue
            outcomes |= {(candidate.name, f"seed-{seed}"): outcome for seed, outcome in made.items()}
            measured.append(candidate)
            self._looked_at(candidate)
            self._is_measured(candidate, sum(outcome.record.seconds for outcome in made.values()))
        book.finish(TEST)
        self._fates()
        if not measured:
            raise UserError(f"No candidate could be measured: {book.record.candidates[0].why}")
        for candidate in measured:
            for draw in ladder.splits.draws[1:] if candidate.alphas else ():
                drop_model(self.context, seed_cell(candidate.training, draw, ladder.splits.test, keep_model=False))
        held, cells = self._held(measured)
        outcomes |= held
        recommendation = self._recommended(measured, held, cells)
        note = forgetting_note(self.found, [c.name for c in measured if not c.tuned])
        forgot = note if ladder.config.base.forgetting.measure else ""
        failed = [f"{c.name}: {c.why}" for c in book.record.candidates if c.fate == "failed"]
        return Ending([c.name for c in measured], outcomes, cells, recommendation, forgot, failed)

    def _seeds(self, candidate: Candidate) -> dict[int, CellOutcome]:
        """The candidate on every seed, measured on test."""
        ladder, made = self.ladder, {}
        alphas = (self._alpha(candidate),) if candidate.alphas else ()
        for draw in ladder.splits.draws:
            cell = seed_cell(candidate, draw, ladder.splits.test, keep_model=draw is ladder.draw)
            made[draw.seed], _ = ladder.fit(self.context, candidate, cell, alphas)
            seen = said_of(made[draw.seed].probabilities, self.context.dataset, cell.measured_on)
            log.info(
                "rung %s: %s %s: %s, %.1f s", TEST, candidate.name, cell.name, seen, made[draw.seed].record.seconds
            )
        return made

    # --- between the ends of a training

    def _alpha(self, candidate: Candidate) -> float:
        """Where a mixture lies; chosen once, on held-out labelled images, among those that keep within the limit."""
        told = self.book.record.candidate(candidate.name)
        if told.alpha is not None:
            self.ladder.allowed[candidate.name] = told.allowed
            return told.alpha
        self.ladder.allowed[candidate.name] = allowed = self._allowed(candidate)
        if self.ladder.parts:
            curves = self.ladder.held(candidate)
            among = [np.stack([c[candidate.alphas.index(a)] for a in allowed]) for c in curves]
            alpha = curve_choice(self.ladder.judges, among, allowed)
        else:
            alpha = max((a for a in allowed if a <= HALF), default=allowed[0])
        self._note(candidate, alpha=alpha, allowed=allowed)
        log.info("%s: alpha %g", candidate.name, alpha)
        return alpha

    def _allowed(self, candidate: Candidate) -> tuple[float, ...]:
        """The alphas whose loss on the choosing half is within the limit, as if it grew with alpha; all without a limit."""
        if self.limit is None or len(candidate.alphas) == 1:
            return candidate.alphas
        cell = seed_cell(candidate.training, self.ladder.draw, self.ladder.splits.test, keep_model=True)
        self.ladder.fit(self.context, candidate.training, cell)
        end, start = TunedModel.load(cell.folder(self.context.folder) / "model"), start_head(self.context, cell)

        def fits(step: int) -> bool:
            backbone, _ = mixed_network(self.context, start, end, step / STEPS, cell.title)
            return self._loss(backbone) <= float(self.limit or 0)

        most = greatest_step(fits) / STEPS
        return tuple(alpha for alpha in candidate.alphas if alpha <= most)

    # --- what was forgotten

    @cached_property
    def _watched(self) -> Watched:
        return Watched.of_run(self.context)

    def _loss(self, backbone: Backbone) -> float:
        """Points of mean probe accuracy lost on the half of the suite that choices are made on."""
        return -self._watched.change_of(backbone, self.context.readout)

    def _model(self, candidate: Candidate, draw: Draw) -> TunedModel:
        cell = seed_cell(candidate, draw, self.ladder.splits.test, keep_model=True)
        return TunedModel.load(cell.folder(self.context.folder) / "model")

    def _looked_at(self, candidate: Candidate) -> None:
        """Measure what the first seed's model forgot: for the choice on one half of the suite, for the report on the other."""
        if not candidate.tuned:
            return
        if self.limit is not None and self.book.record.candidate(candidate.name).loss is None:
            backbone = self._model(candidate, self.ladder.draw).backbone
            other = (
                backbone.spec() != self.context.backbone.spec()
            )  # the small CNN: nothing that it could have forgotten
            loss = 0.0 if other else self._loss(backbone)
            within = loss <= self.limit
            self._note(candidate, loss=loss, within=within)
            log.info("%s: %.1f points lost on the half of the suite that choices are made on", candidate.name, loss)
        measured_on = self.ladder.config.base.forgetting
        if not measured_on.measure:
            return
        if self.limit is not None:
            measured_on = measured_on.model_copy(update={"part": "report"})
        folder = seed_cell(candidate, self.ladder.draw, self.ladder.splits.test, keep_model=True).folder(
            self.context.folder
        )
        own = self.context.dataset, self.ladder.draw.labelled.tolist()
        models = [(folder_name(candidate.name), folder / "model")]
        said = forgetting_of_run(self.context.folder, self.context.backbone, self.origin, models, measured_on, own)
        self.found[candidate.name] = " ".join(said.values())

    # --- what is written

    def _note(self, candidate: Candidate, **update: object) -> None:
        """Change what ladder.json says of a candidate."""
        told = [
            each.model_copy(update=update) if each.name == candidate.name else each
            for each in self.book.record.candidates
        ]
        self.book.write(candidates=tuple(told))

    def _is_measured(self, candidate: Candidate, seconds: float) -> None:
        standing = self.book.standing(TEST, candidate)
        assert standing is not None
        if standing.decision == "begun":
            seeds = len(self.ladder.splits.draws)
            reason = f"{seeds} seed{'s' if seeds > 1 else ''}"
            told = {"decision": "measured", "seconds": seconds, "reason": reason}
            self.book.decide(TEST, standing.model_copy(update=told))

    def _fates(self) -> None:
        """How every candidate ended."""
        told: list[LadderCandidate] = []
        for each in self.book.record.candidates:
            last = [(r.name, s) for r in self.book.record.rungs for s in r.standings if s.candidate == each.name][-1:]
            for name, standing in last:
                each = each.model_copy(update={"fate": standing.decision, "rung": name, "why": standing.reason})
            told.append(each)
        self.book.write(candidates=tuple(told))

    # --- the choice

    def _held(self, measured: Sequence[Candidate]) -> tuple[dict[tuple[str, str], CellOutcome], list[Cell]]:
        """Outcomes on held-out labelled images at full length, of what was measured on test."""
        outcomes, cells = dict[tuple[str, str], CellOutcome](), list[Cell]()
        for candidate in measured:
            of = [self.ladder.cell(candidate, "", i) for i in range(len(self.ladder.parts))]
            if not of:
                continue
            predicted = self.ladder.at_best(candidate, self.ladder.held(candidate))
            ends = np.cumsum([len(cell.measured_on) for cell in of])[:-1]
            for cell, part in zip(of, np.split(predicted, ends), strict=True):
                record = self.ladder.fit(self.context, candidate, cell)[0].record
                outcomes[candidate.name, cell.name] = CellOutcome(record, part)
            cells += of
        return outcomes, cells

    def _recommended(
        self, measured: Sequence[Candidate], held: dict[tuple[str, str], CellOutcome], cells: Sequence[Cell]
    ) -> Recommendation:
        dataset, record = self.context.dataset, self.book.record
        over = [c.name for c in measured if record.candidate(c.name).within is False]
        names = [c.name for c in measured if c.name not in over]
        if not names:
            names = [min(over, key=lambda name: record.candidate(name).loss or 0.0)]
        predicted: dict[str, Floats] = {
            name: np.concatenate([held[name, c.name].probabilities for c in cells if c.title == name])
            for name in names
            if self.ladder.parts
        }
        folds = len(self.ladder.parts)
        indices = np.concatenate([[], *(part.held_out for part in self.ladder.parts)]).astype(np.int64)
        if dataset.targets is not None:
            found = recommend_by_map(names, predicted, dataset.targets[indices], folds)
        else:
            wrong = {name: p.argmax(axis=1) != dataset.labels[indices] for name, p in predicted.items()}
            found = recommend(names, wrong, folds, len(self.ladder.draw.unlabelled) > 0)
        return found.model_copy(update={"why": " ".join([found.why, *self._besides(over, found.method)])})

    def _besides(self, over: Sequence[str], chosen: str) -> list[str]:
        """What the recommendation says of the others."""
        said = []
        if over:
            listed = "; ".join(f"{name} {self.book.record.candidate(name).loss:.1f}" for name in over)
            said.append(
                f"Left out, since they lost more than {self.limit:g} points of mean probe accuracy on the half of the suite that "
                f"choices are made on: {listed}."
            )
            if chosen in over:
                said.append("No candidate keeps within the limit: this one lost least.")
        for fate, words in (
            ("stopped", "Stopped before the test, since they could not win"),
            ("not begun", "Not tried to the end, for want of time"),
            ("failed", "Without a result"),
        ):
            listed = ", ".join(f"{c.name} (rung {c.rung})" for c in self.book.record.candidates if c.fate == fate)
            said += [f"{words}: {listed}."] if listed else []
        return said
