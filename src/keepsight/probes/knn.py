"""Nearest neighbours: weighted votes of labelled images, by frozen vectors. Knows no backbone and no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from keepsight.core import Config, Dataset, Example, Findings, Fit, Probe, Score, View
from keepsight.heads.linear import standardisation
from keepsight.heads.neighbours import NeighbourHead
from keepsight.probes.labelled import LabelledConfig, headlines, labellings, load_labelled


class KnnConfig(Config):
    """Settings of `KnnProbe`.

    Attributes:
        sets: Which images, and what is read of them.
        neighbours: k; fixed, so that nothing is chosen.
    """

    sets: LabelledConfig = LabelledConfig()
    neighbours: int = Field(default=10, ge=1)


@final
class KnnProbe(Probe):
    """Accuracy, with every class weighing the same, of the votes of the k nearest training images.

    Features are standardised on the training images; a vote weighs the cube of the cosine similarity (`heads.neighbours`).

    Args:
        config: Settings.
        datasets: Labelled data sets; the bundled ones by default.

    Raises:
        UserError: A data set does not fit (`labelled.load_labelled`).
    """

    name = "knn"

    def __init__(self, config: KnnConfig | None = None, datasets: Sequence[Dataset] | None = None) -> None:
        self.config = config or KnnConfig()
        self._labelled = load_labelled(self.config.sets, datasets)
        self.images, self.size = self._labelled.images, self.config.sets.size

    def key(self) -> str:
        """See `Probe.key`."""
        return self._labelled.key(self.name, self.config)

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`; nothing is trained."""
        del fit
        sets = self.config.sets
        scores: list[Score] = []
        examples: list[Example] = []
        for each in self._labelled.sets:
            x_NF, test_TF = each.features(view, sets.readout)
            k, said = len(each.classes), []
            for labels_N in labellings(each, shuffled, sets.seed):
                head = NeighbourHead(x_NF.shape[1], k, len(x_NF), min(self.config.neighbours, len(x_NF)))
                head.store(x_NF, F.one_hot(torch.from_numpy(labels_N), k).to(x_NF), *standardisation(x_NF))
                with torch.inference_mode():
                    said.append(head(test_TF).argmax(dim=1).numpy())
            scores.append(each.score("accuracy", np.stack(said)))
            examples += each.examples(said[0])
        return Findings(headlines(scores), tuple(examples))
