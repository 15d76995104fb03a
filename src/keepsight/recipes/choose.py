"""The method `auto`: one of several candidates, chosen for each draw of labels without any test label."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from keepsight.core import Config, processes
from keepsight.core.files import make_directory, write_text
from keepsight.core.progress import log
from keepsight.data.splits import stratified_folds
from keepsight.export.model import TunedModel
from keepsight.recipes.config import MethodName
from keepsight.recipes.context import Cell, CellOutcome, Context, Fitted

Run = Callable[[Context, Cell], CellOutcome]


class Choice(Config):
    """auto/NAME.json: what was chosen for one draw, and why.

    Attributes:
        method: The chosen one.
        criterion: "cross-validation", "agreement and margin", or "default" where there is nothing to decide by.
        scores: Of each candidate: its cross-validated error, or the mean of its ranks by agreement and by margin (higher is
            better).
        labels: Labelled images.
    """

    method: MethodName
    criterion: str
    scores: dict[MethodName, float]
    labels: int


def fit_auto(context: Context, cell: Cell, run: Run) -> Fitted:
    """Choose a candidate and take its fit as it is; the choice is written to auto/NAME.json in the run's folder.

    With enough labels (`AutoConfig.least_labels` of each class) it is chosen by its error on labels that are hidden fold by
    fold, until `AutoConfig.enough` have been; the default keeps its place unless another is better by more than one standard
    error of the paired difference, because few labels cannot tell good methods apart. With fewer labels, candidates are ranked
    by how often they agree with the others on unlabelled images, and by how sure they are of them (mean difference of the two
    largest probabilities); the mean of the ranks decides.
    """
    config = context.config.auto
    folds = _folds(context, cell)
    if len(config.candidates) > 1 and folds:
        choice = _by_folds(context, cell, run, folds)
    elif len(config.candidates) > 1 and len(cell.unlabelled):
        choice = _by_agreement(context, cell, run)
    else:
        choice = Choice(method=_default(context), criterion="default", scores={}, labels=len(cell.labelled))
    log.info("auto %s: %s, by %s %s", cell.name, choice.method, choice.criterion, choice.scores)
    with processes.main_writes():
        if processes.is_main():
            make_directory(context.folder / "auto")
            write_text(context.folder / "auto" / f"{cell.name}.json", choice.model_dump_json(indent=2) + "\n")
    chosen = dataclasses.replace(
        cell, method=choice.method
    )  # the candidate's own fit of this draw, wherever it is compared, too
    outcome = run(context, chosen)
    model = TunedModel.load(chosen.folder(context.folder) / "model") if cell.keep_model else None
    record = outcome.record
    return Fitted(
        model,
        lambda: outcome.probabilities.astype(np.float32),
        record.trainable_parameters,
        record.selection,
        record.selected_step,
        record.steps,
    )


def choose_by_folds(
    wrong: Mapping[MethodName, NDArray[np.bool_]], default: MethodName
) -> tuple[MethodName, dict[MethodName, float]]:
    """The method, and each one's error, from which hidden labels each got wrong (the same ones for all).

    Example:
        >>> few, many = np.arange(40) < 4, np.arange(40) < 20
        >>> choose_by_folds({"probe": many, "content-style": few}, "probe")[0]
        'content-style'
        >>> choose_by_folds({"probe": np.arange(40) % 8 == 0, "content-style": few}, "probe")[0]
        'probe'
    """
    errors = {method: float(found.mean()) for method, found in wrong.items()}
    best = min(errors, key=lambda method: errors[method])
    if default in wrong and best != default:
        apart = wrong[default].astype(np.float64) - wrong[best]
        if apart.mean() <= apart.std(ddof=1) / np.sqrt(len(apart)):
            best = default
    return best, errors


def choose_by_agreement(
    chances: Mapping[MethodName, NDArray[np.float64]], default: MethodName
) -> tuple[MethodName, dict[MethodName, float]]:
    """The method of the best mean rank by agreement and margin on the same unlabelled images [N, K]; the default of equals."""
    methods = list(chances)
    answers = {m: chances[m].argmax(axis=1) for m in methods}
    agreement = [np.mean([(answers[m] == answers[o]).mean() for o in methods if o != m]) for m in methods]
    margin = []
    for m in methods:
        two = np.sort(chances[m], axis=1)[:, -2:]
        margin.append(float((two[:, 1] - two[:, 0]).mean()))
    scores = (rankdata(agreement) + rankdata(margin)) / 2
    order = sorted(range(len(methods)), key=lambda i: (-scores[i], methods[i] != default))
    return methods[order[0]], {m: float(s) for m, s in zip(methods, scores, strict=True)}


def _default(context: Context) -> MethodName:
    config = context.config.auto
    return config.default if config.default in config.candidates else config.candidates[0]


def _folds(context: Context, cell: Cell) -> Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    config, labels = context.config.auto, context.dataset.labels[cell.labelled]
    if np.unique(labels, return_counts=True)[1].min() < config.least_labels:
        return []
    return stratified_folds(labels, config.folds, cell.seed)


def _by_folds(
    context: Context, cell: Cell, run: Run, folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> Choice:
    config = context.config.auto
    wrong: dict[MethodName, list[NDArray[np.bool_]]] = {method: [] for method in config.candidates}
    looked_at = 0
    for number, (known, hidden) in enumerate(folds):
        held_out = cell.labelled[hidden]
        for method in config.candidates:  # all of them on one fold, whose tokens are made once
            part = dataclasses.replace(
                cell,
                method=method,
                name=f"{cell.name}-auto-{number}",
                labelled=cell.labelled[known],
                # An image whose label is hidden is an unlabelled one, where there are any.
                unlabelled=np.concatenate([cell.unlabelled, held_out]) if len(cell.unlabelled) else cell.unlabelled,
                measured_on=held_out,
                keep_model=False,
            )
            answers = run(context, part).probabilities.argmax(axis=1)
            wrong[method].append(answers != context.dataset.labels[held_out])
        looked_at += len(hidden)
        if looked_at >= config.enough:
            break
    method, errors = choose_by_folds({m: np.concatenate(w) for m, w in wrong.items()}, _default(context))
    return Choice(method=method, criterion="cross-validation", scores=errors, labels=len(cell.labelled))


def _by_agreement(context: Context, cell: Cell, run: Run) -> Choice:
    rng = np.random.default_rng((cell.seed, 4))
    count = min(context.config.auto.sample, len(cell.unlabelled))
    seen = np.sort(rng.choice(cell.unlabelled, count, replace=False))
    chances = {
        method: run(
            context,
            dataclasses.replace(cell, method=method, name=f"{cell.name}-auto", measured_on=seen, keep_model=False),
        ).probabilities
        for method in context.config.auto.candidates
    }
    method, scores = choose_by_agreement(chances, _default(context))
    return Choice(method=method, criterion="agreement and margin", scores=scores, labels=len(cell.labelled))
