"""Probes that `--max-forgetting` watches beside the suite: what a tuned network lost on them while it is still in memory.

Their items are drawn by another seed, and other stamps are held out, than in `keepsight probe`: what choices are made on should
not be what is reported. Where a probe has few items, both draws have some in common.
"""

from __future__ import annotations

import numpy as np

from keepsight.core import Backbone, Probe
from keepsight.evaluate.scores import score_difference
from keepsight.recipes.context import Context
from keepsight.recipes.origin import sketch
from keepsight.recipes.probe_make import make_probe
from keepsight.recipes.probe_models import Asked
from keepsight.recipes.probe_parts import Part, measured_part
from keepsight.recipes.probe_settings import ProbingConfig

SEED = 1009
"""Added to the seed of forgetting, so that items are not those of `keepsight probe`."""

FOLDER = "watched"
"""In the run's folder: what each probe found with each network."""


class WatchedProbes:
    """The probes that a limit on forgetting names, and what the untouched backbone says to them.

    Args:
        context: `watched_probes` of its config names at least one.

    Raises:
        UserError: A probe cannot be asked here: no data, a package that is missing, or images that are tuned on.
    """

    def __init__(self, context: Context) -> None:
        config, backbone = context.config, context.backbone
        keys = context.extractor.keys(np.arange(len(context.dataset.images)))
        self._untouched = Asked(config.backbone.name, config.backbone, backbone, trained_on=sketch(keys))
        self._folder = context.folder / FOLDER
        seed = SEED + config.forgetting.seed
        split = {"split": seed}
        wanted = ProbingConfig(
            model=config.backbone.name,
            probes=config.watched_probes,
            seed=seed,
            goi=split,
            zero_shot=split,
            retrieval=split,
            attention=split,
        )
        self._probes = [make_probe(name, wanted, [self._untouched]) for name in config.watched_probes]
        self._before = [self._part(probe, self._untouched) for probe in self._probes]

    def change(self, tuned: Backbone) -> float:
        """Points that the probe which lost most gained or (negative) lost: the mean of its headline figures, errors negated.

        Args:
            tuned: A copy of the run's backbone with other weights; parts beside the blocks stay, other adapters are merged.
        """
        first = self._untouched
        asked = Asked("the tuned network", first.untouched, tuned, tuned=True, trained_on=first.trained_on)
        changes = []
        for probe, before in zip(self._probes, self._before, strict=True):
            after = self._part(probe, asked)
            changes.append(_change(before, after))
        return 100 * min(changes)

    def _part(self, probe: Probe, asked: Asked) -> Part:
        text, _ = asked.text()
        network = asked.at(probe.size, probe.squash)
        return measured_part(probe, network, text, self._folder, title=asked.title, shared=not asked.tuned)


def _change(before: Part, after: Part) -> float:
    """Mean change of a probe's headline figures, in their unit; greater is better."""
    earlier = {(s.metric, s.dataset): s for s in before.findings.scores}
    changes = [
        (1 if s.better == "higher" else -1) * score_difference(s, earlier[s.metric, s.dataset]).value
        for s in after.findings.scores
        if s.shown and (s.metric, s.dataset) in earlier
    ]
    return float(np.mean(changes))
