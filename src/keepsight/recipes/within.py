"""`--max-forgetting`: trained weights are moved back towards their start until little enough is forgotten on other data.

Chosen is alpha of (1 - alpha) start + alpha end (WiSE-FT), on one half of every reference set; what is reported later is measured
on the other half. Where there are penalties, their weight is chosen first (see `within_weight`). Probes that
`watched_probes` of the config names must keep within the limit, too (see `recipes.watched_probes`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from keepsight.adapters.prompts import Prompts
from keepsight.core import Backbone, Config, Dataset, Method, Readout, UserError, processes
from keepsight.core.files import make_directory, write_text
from keepsight.core.progress import log
from keepsight.data.transforms import load_batch
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.forgetting import accuracy_change, cross_fitted, mean_change
from keepsight.features.cache import FeatureCache
from keepsight.features.extract import Extractor
from keepsight.methods.encoder import TunedBackbone
from keepsight.objectives.weight_space import between
from keepsight.recipes.context import Cell, Context, Fitted
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.origin import sketch
from keepsight.recipes.suite import Suite, load_suite
from keepsight.recipes.watched_probes import WatchedProbes
from keepsight.train import load_trained_state, trained_state

STEPS = 10
"""Alpha is a multiple of one in so many."""

BATCH = 64
"""Images a forward pass."""


PROMPTS = (
    "--max-forgetting moves weights back to where nothing is forgotten, and prompts change the output from the start: leave out "
    "finetune-vpt."
)


class Kept(Config):
    """retained/METHOD-NAME.json: which alpha was chosen, and what was looked at.

    Attributes:
        limit: Points of mean probe accuracy that may be lost, and of every probe that is watched.
        alpha: What was chosen; 0 is the start, 1 the end of the training.
        changes: Points gained or lost at each alpha that was tried, on the half of the suite that choices are made on, or by the
            watched probe that lost more.
        sets: Names of its sets.
        images: In all of them.
    """

    limit: float
    alpha: float
    changes: dict[str, float]
    sets: tuple[str, ...]
    images: int


def check_limit(context: Context, method: Method) -> None:
    """Say before the training what would make a limit impossible after it.

    Raises:
        UserError: Nothing is left of the suite, or what is trained has no start at which nothing is forgotten.
    """
    if any(isinstance(module, Prompts) for module in method.modules()):
        raise UserError(PROMPTS)
    if processes.count() > 1 and context.config.watched_probes:
        raise UserError("Probes run in one process: leave out watched_probes, or start the run without torchrun.")
    processes.from_main(lambda: len(choice_half(context).sets))
    if context.config.watched_probes:
        WatchedProbes(context)  # what they say of the untouched backbone is kept


def choice_half(context: Context) -> Suite:
    """The half of the suite that choices are made on, without sets that share an image with the data.

    Raises:
        UserError: Nothing is left.
    """
    config = context.config.forgetting.model_copy(update={"part": "choice"})
    keys = context.extractor.keys(np.arange(len(context.dataset.images)))
    suite = load_suite(config, sketch(keys), context.config.data_options)
    if not suite.sets:
        raise UserError(
            "--max-forgetting has no data set to measure on: name others by forgetting.suite, which share no image with the data."
        )
    return suite


class Watched:
    """Data sets that choices are made on, and what a probe on the untouched backbone says of them.

    Args:
        backbone: Untouched.
        readout: What the probes see.
        sets: The data sets.
        config: How probes are fitted.
        cache: Of features of the untouched backbone; None for its own.
        probes: That are watched beside them.
    """

    def __init__(
        self,
        backbone: Backbone,
        readout: Readout,
        sets: Sequence[Dataset],
        config: ForgettingConfig,
        cache: FeatureCache | None = None,
        probes: WatchedProbes | None = None,
    ) -> None:
        self._preprocessing, self._config, self.sets = backbone.preprocessing, config, tuple(sets)
        self._probes = probes
        self._before = [
            self._said(Extractor(backbone, s.images, cache=cache).features(np.arange(len(s.images)), readout), s)
            for s in sets
        ]

    @classmethod
    def of_run(cls, context: Context) -> Watched:
        """The half of a run's suite that choices are made on.

        Raises:
            UserError: Nothing is left of the suite.
        """
        sets, config = choice_half(context).sets, context.config.forgetting
        probes = WatchedProbes(context) if context.config.watched_probes else None
        return cls(context.backbone, context.readout, sets, config, context.extractor.cache, probes)

    def change_of(self, backbone: Backbone, readout: Readout) -> float:
        """Points that a network gained (or, negative, lost): see `change`; or by the watched probe that lost more."""
        device = next(backbone.parameters()).device
        of_suite = self.change(lambda images: readout.read(backbone(images, readout.blocks)), device)
        return min(of_suite, self.change_of_probes(lambda: backbone))

    def change_of_probes(self, made: Callable[[], Backbone]) -> float:
        """The same by the watched probe that lost most; infinite where none is, and then the network is not made."""
        return math.inf if self._probes is None else self._probes.change(made())

    def change(self, read: Callable[[Tensor], Tensor], device: torch.device) -> float:
        """Points of mean linear-probe accuracy gained (or, negative, lost) by features `read` of images [B, 3, H, W]."""
        changes = []
        for dataset, before_NK in zip(self.sets, self._before, strict=True):
            rows = []
            for first in range(0, len(dataset.images), BATCH):
                chosen = np.arange(first, min(first + BATCH, len(dataset.images)))
                images = load_batch(dataset.images, chosen, self._preprocessing).to(device)
                with torch.no_grad():
                    rows.append(read(images).float().cpu())
            after_NK = self._said(torch.cat(rows), dataset)
            changes.append(accuracy_change(before_NK, after_NK, dataset.labels))
        return 100 * mean_change(changes).value

    def _said(self, x_NF: Tensor, dataset: Dataset) -> Floats:
        rule, seed = self._config.rule, self._config.seed
        return cross_fitted(x_NF, dataset.labels, len(dataset.classes), rule, seed).probe_NK


def keep_within(context: Context, cell: Cell, method: Method, start: dict[str, Tensor], limit: float) -> None:
    """Move the trained weights back, in place, to the greatest alpha whose loss is within `limit` points.

    Found by bisection over multiples of a tenth, as if the loss grew with alpha; the one that is taken has been measured, or is the
    start itself, which forgot nothing. Under several processes all call it, and the main one measures.
    """
    encoder = method.encoder
    assert isinstance(encoder, TunedBackbone)
    end = {name: tensor.clone() for name, tensor in trained_state(method).items()}
    method.eval()
    kept = processes.from_main(lambda: _searched(context, encoder, method, start, end, limit))
    load_trained_state(method, between(start, end, kept.alpha))
    log.info(
        "%s %s: alpha %.1f keeps the loss of mean probe accuracy within %g points (%s)",
        cell.method,
        cell.name,
        kept.alpha,
        limit,
        ", ".join(f"{alpha}: {change:+.1f}" for alpha, change in sorted(kept.changes.items())),
    )
    _written(context, f"{cell.method}-{cell.name}", kept)


def _written(context: Context, name: str, record: Config) -> None:
    with processes.main_writes():
        if processes.is_main():
            folder = context.folder / "retained"
            make_directory(folder)
            write_text(folder / f"{name.replace('/', '-')}.json", record.model_dump_json(indent=2) + "\n")


FACTORS = (0.25, 1.0, 4.0, 16.0)
"""What the weights of penalties are multiplied by, from the least constraint to the most."""


class KeptWeight(Config):
    """retained/METHOD-NAME-weight.json: which multiple of the penalties' weights was chosen, and what was looked at.

    Attributes:
        limit: Points of mean probe accuracy that may be lost.
        factor: What was chosen.
        changes: Points gained or lost at each factor that was tried to its end, on the half of the suite that choices are made on.
        kept: Whether that factor keeps within the limit; otherwise alpha was chosen, too (see `Kept`).
    """

    limit: float
    factor: float
    changes: dict[str, float]
    kept: bool


def searches_weight(context: Context) -> bool:
    """Whether `within_weight` has something to choose: there are a limit and penalties."""
    return context.config.forgetting.limit is not None and any(p.weight for p in context.config.retain.penalties)


def within_weight(context: Context, cell: Cell, fit: Callable[[Context, Cell], Fitted]) -> Fitted:
    """The training with the least weight of its penalties, among `FACTORS` of what they were given, that forgets at most the limit.

    The factor 1 comes first; then a quarter of it where that is little enough, more of it where it is not: two or three trainings.
    Where four times the weight does not suffice, sixteen times does, with the weights moved back as far as is needed. The
    untouched backbone's features, the half of the suite and its probes are shared by all of them.

    Args:
        context: See `searches_weight`.
        cell: What is fitted.
        fit: Of a context and a cell; called by all processes.

    Raises:
        UserError: See `check_limit`.
    """
    limit = context.config.forgetting.limit
    assert limit is not None
    if cell.method == "finetune-vpt":
        raise UserError(PROMPTS)
    watched: list[Watched] = []  # on the main process, which measures
    processes.from_main(lambda: watched.append(Watched.of_run(context)))
    changes: dict[str, float] = {}

    def tried(factor: float) -> tuple[Fitted, bool]:
        fitted = _weighted(context, cell, fit, factor, None)
        changes[f"{factor:g}"] = processes.from_main(lambda: _change(watched[0], context, fitted))
        return fitted, changes[f"{factor:g}"] >= -limit

    less, as_given, more, most = FACTORS
    factor, (fitted, kept) = as_given, tried(as_given)
    if kept:
        weaker, enough = tried(less)
        factor, fitted = (less, weaker) if enough else (factor, fitted)
    else:
        factor, (fitted, kept) = more, tried(more)
        if not kept:
            factor, fitted = most, _weighted(context, cell, fit, most, limit)
    log.info(
        "%s %s: %g times the given weight keeps the loss of mean probe accuracy within %g points%s (%s)",
        cell.method,
        cell.name,
        factor,
        limit,
        "" if kept else ", moved back by alpha",
        ", ".join(f"{f}: {change:+.1f}" for f, change in changes.items()),
    )
    _written(
        context,
        f"{cell.method}-{cell.name}-weight",
        KeptWeight(limit=limit, factor=factor, changes=changes, kept=kept),
    )
    return fitted


def _weighted(
    context: Context, cell: Cell, fit: Callable[[Context, Cell], Fitted], factor: float, limit: float | None
) -> Fitted:
    """The fit with all weights of penalties multiplied, and with this limit for alpha."""
    config = context.config
    penalties = tuple(p.model_copy(update={"weight": factor * p.weight}) for p in config.retain.penalties)
    update = {
        "retain": config.retain.model_copy(update={"penalties": penalties}),
        "forgetting": config.forgetting.model_copy(update={"limit": limit}),
    }
    torch.manual_seed(cell.seed)
    name = f"{cell.name}/weight-{factor:g}"
    return fit(replace(context, config=config.model_copy(update=update)), replace(cell, name=name))


def _change(watched: Watched, context: Context, fitted: Fitted) -> float:
    assert fitted.model is not None
    return watched.change_of(fitted.model.backbone, context.readout)


def greatest_step(fits: Callable[[int], bool]) -> int:
    """The greatest of the steps 1 to `STEPS` that fits, found by bisection as if those above one that does not fit did not either.

    0, which needs no measurement, where none does.

    Example:
        >>> greatest_step(lambda step: step <= 7)
        7
    """
    good, bad = 0, STEPS + 1
    if fits(STEPS):
        good = STEPS
    else:
        bad = STEPS
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _searched(
    context: Context,
    encoder: TunedBackbone,
    method: Method,
    start: dict[str, Tensor],
    end: dict[str, Tensor],
    limit: float,
) -> Kept:
    watched = Watched.of_run(context)
    device = next(method.parameters()).device
    changes: dict[str, float] = {}

    def fits(step: int) -> bool:
        alpha = step / STEPS
        load_trained_state(method, between(start, end, alpha))
        changes[f"{alpha:.1f}"] = change = min(
            watched.change(encoder.read, device), watched.change_of_probes(lambda: _merged(encoder))
        )
        return change >= -limit

    good = greatest_step(fits)
    return Kept(
        limit=limit,
        alpha=good / STEPS,
        changes=changes,
        sets=tuple(s.name for s in watched.sets),
        images=sum(len(s.images) for s in watched.sets),
    )


def _merged(encoder: TunedBackbone) -> Backbone:
    """A copy of the network as it is now, with its adapters merged."""
    network = copy.deepcopy(encoder)
    network.merge()
    return network.backbone.eval()
