"""Which methods learn several classes an image, and what a run of them says. Knows no fit."""

from __future__ import annotations

from keepsight.core import Dataset, UserError
from keepsight.core.progress import log
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.multilabel import mean_average_precision
from keepsight.recipes.config import DEFAULT_METHODS, FINETUNED, MethodName, TuneConfig
from keepsight.recipes.context import Indices

MULTILABEL: tuple[MethodName, ...] = ("knn", "probe", *FINETUNED)
"""The methods that take targets [N, K]."""


def suited(config: TuneConfig, dataset: Dataset) -> TuneConfig:
    """The config with methods that suit the data: of the default ones, those that learn several classes an image where it has them.

    Raises:
        UserError: Another method was asked for.
    """
    refused = [method for method in config.methods if method not in MULTILABEL]
    if dataset.targets is None or not refused:
        return config
    if config.methods != DEFAULT_METHODS:
        raise UserError(
            f"{dataset.name} is multi-label data, which the method {refused[0]} cannot learn: use knn, probe or finetune-..."
        )
    kept = tuple(method for method in config.methods if method in MULTILABEL)
    log.info("%s is multi-label data: %s, which cannot learn it, is left out", dataset.name, ", ".join(refused))
    return config.model_copy(update={"methods": kept})


def said_of(probabilities_NK: Floats, dataset: Dataset, measured_on: Indices) -> str:
    """A cell's figure in a few words."""
    if not len(measured_on):
        return "not measured"
    if dataset.targets is None:
        wrong = probabilities_NK.argmax(axis=1) != dataset.labels[measured_on]
        return f"{100 * wrong.mean():.1f} % error"
    return f"{100 * mean_average_precision(probabilities_NK, dataset.targets[measured_on]):.1f} % mAP"
