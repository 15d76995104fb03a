"""One probe asked of one network: measured once, sealed on disk, and read again bit for bit. Knows no probe.

A part lies in a run's folder; that of an untouched backbone also in the user's cache, so that what stands before a tuning is
measured once for all tunings. Its name is a hash of everything that it depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import Backbone, Example, Findings, Heat, Probe, Score, TextTower
from keepsight.core.files import atomic_directory, cache_directory, is_sound
from keepsight.core.progress import log
from keepsight.evaluate.cost import measured
from keepsight.features.cache import FeatureCache
from keepsight.features.view import BackboneView
from keepsight.recipes.probe_fit import TrainerFit

FORMAT = 1
"""Raised when the meaning of findings changes, so that old ones are not read."""

FINDINGS = "findings.json"


@dataclass(frozen=True, slots=True)
class Part:
    """What a probe found with one network.

    Attributes:
        findings: See there.
        size: Side of the network's input, px.
        seconds: Of all of it, features included, when it was measured.
        peak_mib: Peak resident memory meanwhile, MiB.
        trainable_parameters: Of the largest head.
    """

    findings: Findings
    size: int
    seconds: float
    peak_mib: float
    trainable_parameters: int


def part_key(probe: Probe, backbone: Backbone, text: TextTower | None, shuffled: bool) -> str:
    """Sha256 (hex) of everything that the findings depend on."""
    facts = [
        FORMAT,
        probe.name,
        probe.key(),
        backbone.weights_hash(),
        backbone.preprocessing.model_dump(mode="json"),
        None if text is None else text.weights_hash(),
        shuffled,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def measured_part(
    probe: Probe,
    backbone: Backbone,
    text: TextTower | None,
    folder: Path,
    *,
    title: str,
    shared: bool,
    shuffled: bool = False,
) -> Part:
    """What the probe finds: read where it was measured before, else measured now; a killed measurement goes on.

    Args:
        probe: See `core.Probe`.
        backbone: At the probe's size.
        text: The text tower that belongs to it.
        folder: Of the run.
        title: What the log calls the network.
        shared: Whether findings and features are also kept in the user's cache, for other runs.
        shuffled: See `Probe.measure`.

    Raises:
        UserError: The probe cannot be asked of this network.
    """
    key = part_key(probe, backbone, text, shuffled)
    name = f"{probe.name}-{key[:32]}"
    place, elsewhere = folder / "parts" / name, cache_directory() / "probes" / name
    for there in (place, elsewhere) if shared else (place,):
        if (part := _read(there, key)) is not None:
            log.info("%s: %s was measured before", probe.name, title)
            if there is not place:
                _write(place, key, part)
                with contextlib.suppress(OSError):  # of another user
                    os.utime(there)  # when it was last used, for pruning
            return part
    work = folder / "work" / name
    cache = None if shared else FeatureCache(backbone.weights_hash(), backbone.preprocessing, root=work / "features")
    view = BackboneView(backbone, probe.images, work / "maps", text, cache)
    fit = TrainerFit(work / "heads")
    with measured() as cost:
        found = probe.measure(view, fit, shuffled)
    part = Part(found, backbone.preprocessing.size, cost.seconds, cost.peak_mib, fit.parameters)
    _write(place, key, part)
    if shared:
        _write(elsewhere, key, part)
    del view, cache
    shutil.rmtree(work, ignore_errors=True)
    log.info("%s: %s is measured (%.0f s)", probe.name, title, part.seconds)
    return part


def _write(place: Path, key: str, part: Part) -> None:
    found = part.findings
    content = {
        "key": key,
        "size": part.size,
        "seconds": part.seconds,
        "peak_mib": part.peak_mib,
        "trainable_parameters": part.trainable_parameters,
        "scores": [
            {
                "metric": s.metric,
                "dataset": s.dataset,
                "values": s.values.tolist(),  # Python writes the shortest text that reads as the same number
                "weights": s.weights.tolist(),
                "units": s.units.tolist(),
                "better": s.better,
                "chance": s.chance,
                "shown": s.shown,
            }
            for s in found.scores
        ],
        "examples": [asdict(example) for example in found.examples],
        "heats": [{"row": h.row, "name": h.name, "values": h.values.tolist()} for h in found.heats],
    }
    with atomic_directory(place, sealed=True) as temporary:
        (temporary / FINDINGS).write_text(json.dumps(content, allow_nan=False, ensure_ascii=False), encoding="utf-8")


def _read(place: Path, key: str) -> Part | None:
    """None where there is none, or it is damaged."""
    if not is_sound(place):
        return None
    content: dict[str, Any] = json.loads((place / FINDINGS).read_text(encoding="utf-8"))
    if content["key"] != key:
        return None
    heats = tuple(Heat(h["row"], h["name"], np.array(h["values"], np.float32)) for h in content["heats"])
    return Part(
        Findings(_scores(content["scores"]), tuple(Example(**example) for example in content["examples"]), heats),
        content["size"],
        content["seconds"],
        content["peak_mib"],
        content["trainable_parameters"],
    )


def _scores(listed: Sequence[dict[str, Any]]) -> tuple[Score, ...]:
    return tuple(
        Score(
            metric=one["metric"],
            dataset=one["dataset"],
            values=np.array(one["values"], np.float64),
            weights=np.array(one["weights"], np.float64),
            units=np.array(one["units"], np.int64),
            better=one["better"],
            chance=one["chance"],
            shown=one["shown"],
        )
        for one in listed
    )
