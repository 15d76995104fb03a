"""A name, a saved backbone, a run's folder or a rung of its ladder as what probes are asked of. Knows no probe."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from safetensors.torch import load_file

from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.backbones.saved import SAVED, SavedBackbone
from keepsight.core import Readout, UserError
from keepsight.core.files import is_sound
from keepsight.core.progress import log
from keepsight.export.model import TunedModel
from keepsight.methods.encoder import TunedBackbone
from keepsight.recipes.origin import read_origin
from keepsight.recipes.probe_models import Asked
from keepsight.recipes.probe_settings import NONE, RANDOM, LoadingConfig, ProbingConfig
from keepsight.recipes.visft_joint import RUNG, WEIGHTS
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.report.forgetting_records import UNTOUCHED
from keepsight.report.visft import FACTS as VISFT_FACTS
from keepsight.report.visft import read_visft_facts
from keepsight.train import load_trained_state

BACKBONE = "backbone"
"""Folder of the tuned backbone in a run of ViSFT."""


def open_both(config: ProbingConfig) -> tuple[Asked, Asked | None, str | None]:
    """The model, what it is compared with, and what that is called in records.

    Raises:
        UserError: One of them cannot be loaded, or the untouched backbone is not the one that was tuned.
    """
    model = open_model(config.model, config.loading)
    if config.against == NONE or (config.against is None and not model.tuned):
        return model, None, None
    if config.against is None:
        return model, Asked(model.untouched.name, model.untouched, model.first()), UNTOUCHED
    if config.against == RANDOM:
        random = model.untouched.model_copy(update={"weights": "random"})
        return model, _untouched(random, f"{random.name}, random weights"), RANDOM
    other = open_model(config.against, config.against_loading)
    if other.title == model.title:
        other.title = f"{other.title} (against)"
    return model, other, config.against


def _untouched(config: BackboneConfig, title: str) -> Asked:
    return Asked(title, config, load_backbone(config))


def open_model(text: str, loading: LoadingConfig) -> Asked:
    """A run of ViSFT or a rung of its ladder, a run of tune or its model, a saved backbone, or a backbone's name.

    Raises:
        UserError: It is none of these, damaged, or cannot be had.
    """
    path = Path(text)
    if (path / RUNG).is_file():
        found = _of_rung(path)
    elif (run := _visft_run(path)) is not None:
        found = _of_visft(run, str(path))
    elif (path / "model.json").is_file() or (path / "model" / "model.json").is_file():
        found = _of_tune(path)
    elif (path / SAVED).is_file():
        found = _of_saved(path, str(path), None)
    elif (path / "config.yaml").is_file():
        raise UserError(f"The run in {path} has no model: finish it with the command that started it, or name another.")
    else:
        return _untouched(BackboneConfig(name=text, **loading.model_dump()), text)
    if loading != LoadingConfig():
        raise UserError(f"The model in {path} says what it is built like: leave out its loading settings.")
    return found


def _visft_run(path: Path) -> Path | None:
    """The run of ViSFT that a folder is, or whose backbone it is: what it was tuned on is known in both cases."""
    if (path / VISFT_FACTS).is_file():
        return path
    of = path.resolve().parent
    return of if path.resolve().name == BACKBONE and (path / SAVED).is_file() and (of / VISFT_FACTS).is_file() else None


def _visft_config(path: Path) -> tuple[VisftConfig, str | None]:
    """A run's config, and the hash of the weights that it began with; old runs did not record it."""
    try:
        facts = read_visft_facts(path)
        return VisftConfig.model_validate(facts.config), facts.weights
    except ValidationError as error:
        raise UserError(f"{path / VISFT_FACTS} is damaged or of another version: start the run again.") from error


def _of_visft(path: Path, title: str) -> Asked:
    config, weights = _visft_config(path)
    folder = path / BACKBONE
    if not config.joint.steps:
        raise UserError(
            f"The run in {path} trained heads alone, and its backbone is untouched: probe {config.backbone.name} itself."
        )
    if not (folder / SAVED).is_file():
        raise UserError(f"The run in {path} has no tuned backbone yet: finish it with the command that started it.")
    found = _of_saved(folder, title, config.backbone)
    found.weights, found.scenes = weights, config.data
    return found


def _of_rung(path: Path) -> Asked:
    """A rung of the ladder of a run of ViSFT, whether it was chosen or not: joint/ladder/STEP in the run's folder."""
    run = path.resolve().parent.parent.parent
    if not (run / VISFT_FACTS).is_file():
        raise UserError(f"{path} is not in the run of ViSFT that it belongs to: name it as RUN/joint/ladder/STEP.")
    if not is_sound(path):
        raise UserError(
            f"The rung in {path} is damaged or not finished: start the run again with the command that started it."
        )
    config, weights = _visft_config(run)
    asked = Asked(str(path), config.backbone, load_backbone(config.backbone), True, weights, scenes=config.data)
    first = asked.first()
    readout = Readout(blocks=config.blocks, pools=("mean",)).resolved(first.depth)
    encoder = TunedBackbone(asked.own, readout, "lora", config.joint.adapter)
    load_trained_state(encoder, load_file(path / WEIGHTS))
    encoder.merge()
    asked.own = encoder.backbone.eval()
    return asked


def _of_saved(folder: Path, title: str, untouched: BackboneConfig | None) -> Asked:
    own = load_backbone(f"{folder}/")
    if untouched is None:
        p = own.preprocessing
        untouched = BackboneConfig(name=str(SavedBackbone.read(folder).backbone["name"]), size=p.size, fit=p.fit)
    return Asked(title, untouched, own, tuned=True)


def _of_tune(path: Path) -> Asked:
    model, origin = TunedModel.load(path), read_origin(path)
    if origin is not None:
        return Asked(str(path), origin.backbone, model.backbone, True, origin.weights, origin.images)
    p = model.backbone.preprocessing
    log.warning("%s does not record which weights it was tuned from: those of its name are taken.", path)
    return Asked(str(path), BackboneConfig(name=model.backbone.name, size=p.size, fit=p.fit), model.backbone, True)
