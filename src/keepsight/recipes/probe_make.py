"""Probes by their names: settings in, probes with their data out. Knows no network beyond what it was tuned on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from keepsight.core import Config, Dataset, Probe, UserError
from keepsight.data.easy_vqa import NAME as EASY_VQA
from keepsight.data.leakage import RECIPE, Stamps, check_leakage
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.origin import DIGITS
from keepsight.recipes.probe_models import Asked
from keepsight.recipes.probe_names import ProbeName
from keepsight.recipes.probe_settings import ProbingConfig
from keepsight.recipes.suite import load_suite
from keepsight.recipes.visft_data import made_of
from keepsight.recipes.words import merged, validated

AnyConfig = TypeVar("AnyConfig", bound=Config)


def make_probe(name: ProbeName, config: ProbingConfig, asked: Sequence[Asked] = ()) -> Probe:
    """A probe with its data.

    Args:
        name: Which.
        config: Its settings are in there.
        asked: The networks that it will be asked of: it must not show what they were tuned on.

    Raises:
        UserError: Wrong settings, missing data or packages, or data that one of the networks was tuned on.
    """
    probe, stamps = _made(name, config, asked)
    for each in asked:
        _refuse_shared(probe, each)
        if each.scenes is not None:
            check_leakage(probe.images, Path(each.scenes), stamps, near=stamps is not None)
    return probe


def _made(name: ProbeName, config: ProbingConfig, asked: Sequence[Asked]) -> tuple[Probe, Stamps | None]:
    """The probe, and the stamps that its test items show; None where no near duplicate of a scene can be among its images.

    Such are bundled sets and rendered words and shapes: for them equal images are enough to look for.
    """
    # Imported here: some need packages that others do not.
    match name:
        case "ocr":
            from keepsight.probes.ocr import OcrConfig, OcrProbe

            ocr = OcrProbe(_settings(OcrConfig, name, config))
            return ocr, None if ocr.config.folder is None else {}
        case "goi":
            from keepsight.probes.goi import GoiConfig, GoiProbe

            goi = GoiProbe(_settings(GoiConfig, name, config, asked))
            return goi, goi.stamps
        case "zero-shot":
            from keepsight.probes.zero_shot import ZeroShotConfig, ZeroShotProbe

            zero_shot = ZeroShotProbe(_settings(ZeroShotConfig, name, config, asked))
            return zero_shot, zero_shot.stamps
        case "few-shot":
            from keepsight.probes.few_shot import FewShotConfig, FewShotProbe

            return FewShotProbe(_settings(FewShotConfig, name, config), _suite(config, asked)), None
        case "retrieval":
            from keepsight.probes.retrieval import RetrievalConfig, RetrievalProbe

            retrieval = RetrievalProbe(_settings(RetrievalConfig, name, config, asked))
            return retrieval, retrieval.stamps
        case "vqa":
            from keepsight.probes.vqa import VqaConfig, VqaProbe

            vqa = VqaProbe(_settings(VqaConfig, name, config))
            return vqa, None if vqa.config.data == EASY_VQA else {}
        case "knn":
            from keepsight.probes.knn import KnnConfig, KnnProbe

            return KnnProbe(_settings(KnnConfig, name, config), _suite(config, asked)), None
        case "linear":
            from keepsight.probes.linear import LinearConfig, LinearProbe

            return LinearProbe(_settings(LinearConfig, name, config), _suite(config, asked)), None
        case "attention":
            from keepsight.probes.attention import AttentionConfig, AttentionProbe

            attention = AttentionProbe(_settings(AttentionConfig, name, config, asked))
            return attention, attention.stamps


def _settings(kind: type[AnyConfig], name: ProbeName, config: ProbingConfig, asked: Sequence[Asked] = ()) -> AnyConfig:
    """The probe's own config.

    The seed of all is added to its own default, so that seed 0 is what each probe chose. Probes on composed scenes hold out the
    stamps that the scenes of a run of ViSFT do.
    """
    given: dict[str, Any] = dict(config.settings(name))
    field = kind.model_fields.get("seed")
    if field is not None and "seed" not in given:
        given["seed"] = int(field.get_default(call_default_factory=True)) + config.seed
    if "sets" in kind.model_fields:  # the probes that classify have theirs in there
        given["sets"] = merged({"seed": config.seed}, given.get("sets") or {})
    splits = [split for each in asked if each.scenes and (split := _split(Path(each.scenes))) is not None]
    if splits and not given.get("scenes") and "split" in kind.model_fields:
        given.setdefault("split", splits[0])
    try:
        return validated(kind, given)
    except UserError as error:
        raise UserError(f"Of the probe {name}: {error}") from error


def _split(folder: Path) -> int | None:
    """By which seed a folder of composed scenes holds out stamps; None of other scenes."""
    try:
        composed = json.loads((folder / RECIPE).read_text(encoding="utf-8"))["config"]
        found = composed["seed"] if composed.get("split") is None else composed["split"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def _suite(config: ProbingConfig, asked: Sequence[Asked]) -> tuple[Dataset, ...]:
    """The data sets of the probes that classify, without those that one of the networks was tuned on."""
    trained_on = tuple(hashed for each in asked for hashed in each.trained_on)
    composed_of = {made_of(each.scenes) for each in asked if each.scenes is not None}
    chosen = ForgettingConfig(suite=config.suite, per_set=config.pool, seed=config.seed)
    suite = load_suite(chosen, trained_on)
    sets = tuple(each for each in suite.sets if each.name not in composed_of)
    if not sets:
        raise UserError(
            f"No data set of the suite is left to measure on: {' '.join(suite.notes)} Name others by suite=[...]."
        )
    return sets


def _refuse_shared(probe: Probe, asked: Asked) -> None:
    seen = frozenset(asked.trained_on)
    for i in range(len(probe.images)) if seen else ():
        if probe.images.content_hash(i).hex()[:DIGITS] in seen:
            raise UserError(
                f"The probe {probe.name} shows {probe.images.name(i)}, which {asked.title} was tuned on: give the probe other "
                "images."
            )
