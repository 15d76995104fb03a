"""The linear probe: logistic regression on frozen vectors of labelled data sets. Knows no backbone and no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch

from keepsight.core import Config, Dataset, Example, Findings, Fit, Probe, Score, View
from keepsight.probes.labelled import LabelledConfig, LogisticRule, fit_logistic, headlines, labellings, load_labelled


class LinearConfig(Config):
    """Settings of `LinearProbe`.

    Attributes:
        sets: Which images, and what is read of them.
        rule: How the probe is fitted.
    """

    sets: LabelledConfig = LabelledConfig()
    rule: LogisticRule = LogisticRule(folds=5)


@final
class LinearProbe(Probe):
    """Accuracy, with every class weighing the same, of a logistic probe whose strength is cross-validated on training images.

    Args:
        config: Settings.
        datasets: Labelled data sets; the bundled ones by default.

    Raises:
        UserError: A data set does not fit (`labelled.load_labelled`).
    """

    name = "linear"

    def __init__(self, config: LinearConfig | None = None, datasets: Sequence[Dataset] | None = None) -> None:
        self.config = config or LinearConfig()
        self._labelled = load_labelled(self.config.sets, datasets)
        self.images, self.size = self._labelled.images, self.config.sets.size

    def key(self) -> str:
        """See `Probe.key`."""
        return self._labelled.key(self.name, self.config)

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`; nothing is trained by steps."""
        del fit
        sets, rule = self.config.sets, self.config.rule
        scores: list[Score] = []
        examples: list[Example] = []
        for each in self._labelled.sets:
            x_NF, test_TF = each.features(view, sets.readout)
            said = []
            for labels_N in labellings(each, shuffled, sets.seed):
                head = fit_logistic(x_NF, labels_N, len(each.classes), rule, sets.seed)
                with torch.inference_mode():
                    said.append(head(test_TF).argmax(dim=1).numpy())
            scores.append(each.score("accuracy", np.stack(said)))
            examples += each.examples(said[0])
        return Findings(headlines(scores), tuple(examples))
