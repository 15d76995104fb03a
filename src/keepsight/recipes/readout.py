"""The readout of a run: as configured, or chosen once and written down. Knows no method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from keepsight.core import Dataset, Readout, processes
from keepsight.core.files import write_text
from keepsight.core.progress import log
from keepsight.data.splits import Draw
from keepsight.features.auto_readout import ReadoutChoice, candidate_readouts, choose_readout
from keepsight.features.extract import Extractor
from keepsight.recipes.config import TuneConfig

READOUT_SAMPLE = 1500
"""Unlabelled images that `readout="auto"` looks at."""


def _chosen_before(path: Path) -> ReadoutChoice | None:
    """The choice that a killed run made; a damaged file is named and passed over."""
    if not path.is_file():
        return None
    try:
        return ReadoutChoice.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError:
        log.warning("%s is damaged: the readout is chosen again", path)
        return None


def readout_of(config: TuneConfig, dataset: Dataset, extractor: Extractor, draw: Draw, folder: Path) -> Readout:
    """The configured readout, or the one chosen on the first seed's labelled (and some unlabelled) images."""
    depth = extractor.backbone.depth
    if config.readout != "auto":
        return Readout.parse(config.readout).resolved(depth)
    path = folder / "readout.json"
    choice = processes.from_main(lambda: _chosen_before(path))
    if choice is None:
        rng = np.random.default_rng(config.split.seed)
        sample = draw.unlabelled
        if len(sample) > READOUT_SAMPLE:
            sample = np.sort(rng.choice(sample, READOUT_SAMPLE, replace=False))
        candidates = candidate_readouts(depth)
        parts = sorted({part for candidate in candidates for part in candidate.parts})
        log.info("choosing the readout among %d candidates", len(candidates))
        extractor.fill(np.concatenate([draw.labelled, sample]), parts)

        def choose() -> ReadoutChoice:
            found = choose_readout(
                candidates,
                lambda block, pool: (extractor.part(draw.labelled, block, pool), extractor.part(sample, block, pool)),
                torch.from_numpy(dataset.truth[draw.labelled]),
                len(dataset.classes),
                config.split.seed,
            )
            write_text(path, found.model_dump_json(indent=2))
            return found

        choice = processes.from_main(choose)
    log.info("readout %s, chosen by %s", choice.readout, choice.criterion)
    return choice.readout
