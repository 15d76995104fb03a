"""Few-shot classification: a logistic probe on 1 to 16 images a class of labelled data sets. Knows no backbone and no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from keepsight.core import Config, Dataset, Example, Findings, Fit, Probe, Score, View
from keepsight.data.splits import Indices
from keepsight.probes.labelled import (
    LabelledConfig,
    LabelledSet,
    LogisticRule,
    fit_logistic,
    headlines,
    load_labelled,
    permuted,
)


class FewShotConfig(Config):
    """Settings of `FewShotProbe`.

    Attributes:
        sets: Which images, and what is read of them.
        shots: Images a class that are learnt from.
        draws: Draws of them for each number; they depend on the seed alone, and so are the same before and after a tuning.
        rule: How the probe is fitted.
    """

    sets: LabelledConfig = LabelledConfig()
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    draws: int = Field(default=10, ge=1)
    rule: LogisticRule = LogisticRule()

    @field_validator("shots")
    @classmethod
    def _shots(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if sorted(set(shots)) != list(shots):
            raise ValueError("shots must ascend, each at most once")
        return shots


@final
class FewShotProbe(Probe):
    """Accuracy, with every class weighing the same, for each number of images a class; the draws are the seeds of the scores.

    Features are standardised on all training images, which takes no label; nothing else is seen beyond the images drawn.
    The images of one draw are among those of the same draw of a larger number. A class of fewer training images gives all of them.

    Args:
        config: Settings.
        datasets: Labelled data sets; the bundled ones by default.

    Raises:
        UserError: A data set does not fit (`labelled.load_labelled`).
    """

    name = "few-shot"

    def __init__(self, config: FewShotConfig | None = None, datasets: Sequence[Dataset] | None = None) -> None:
        self.config = config or FewShotConfig()
        self._labelled = load_labelled(self.config.sets, datasets)
        self.images, self.size = self._labelled.images, self.config.sets.size

    def key(self) -> str:
        """See `Probe.key`."""
        return self._labelled.key(self.name, self.config)

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`; nothing is trained by steps."""
        del fit
        scores: list[Score] = []
        examples: list[Example] = []
        for index, each in enumerate(self._labelled.sets):
            x_NF, test_TF = each.features(view, self.config.sets.readout)
            for shots in self.config.shots:
                said_ST = np.stack(
                    [self._said(each, index, shots, draw, x_NF, test_TF, shuffled) for draw in range(self.config.draws)]
                )
                scores.append(each.score(f"accuracy ({shots}-shot)", said_ST))
            examples += each.examples(said_ST[0])
        return Findings(headlines(scores), tuple(examples))

    def _said(
        self, each: LabelledSet, index: int, shots: int, draw: int, x_NF: Tensor, test_TF: Tensor, shuffled: bool
    ) -> NDArray[np.int64]:
        """[T]."""
        seed = self.config.sets.seed
        chosen = few(each.train_labels, shots, (seed, 9, index, draw))
        labels_M = permuted(each.train_labels[chosen], shuffled, seed, 10, index, draw, shots)
        head = fit_logistic(x_NF[torch.from_numpy(chosen)], labels_M, len(each.classes), self.config.rule, seed, x_NF)
        with torch.inference_mode():
            said_T: NDArray[np.int64] = head(test_TF).argmax(dim=1).numpy()
        return said_T


def few(labels_N: Indices, shots: int, seed: tuple[int, ...]) -> Indices:
    """Ascending positions of at most so many images of each class; with the same seed, fewer are some of more.

    Example:
        >>> labels = np.array([0, 0, 0, 1, 1, 2])
        >>> one, two = few(labels, 1, (0,)), few(labels, 2, (0,))
        >>> labels[two].tolist(), set(one.tolist()) < set(two.tolist())
        ([0, 0, 1, 1, 2], True)
    """
    order = np.random.default_rng(seed).permutation(len(labels_N))
    found = [order[labels_N[order] == k][:shots] for k in np.unique(labels_N)]
    return np.sort(np.concatenate(found)).astype(np.int64)
