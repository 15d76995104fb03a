"""The complete config of `tune`, composed of the components' own; defaults of a component stand in the component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, field_validator, model_validator

from keepsight.adapters.lora import LoraConfig
from keepsight.backbones.load import BackboneConfig
from keepsight.core import Config, Readout, UserError
from keepsight.data.options import DataConfig
from keepsight.data.splits import SplitConfig
from keepsight.data.transforms import AugmentConfig
from keepsight.methods.finetune import FinetuneConfig
from keepsight.methods.frozen import KNNConfig, ProbeConfig
from keepsight.methods.gaussian_mixture import GaussianMixtureConfig
from keepsight.methods.self_training import SelfTrainingConfig
from keepsight.methods.semi_supervised import LabelPropagationConfig
from keepsight.methods.view_probe import ViewProbeConfig
from keepsight.recipes import content_style_settings
from keepsight.recipes.content_style_settings import ContentStyleSettings, TunedContentStyleSettings
from keepsight.recipes.fixmatch_settings import FixMatchSettings, TunedFixMatchSettings, fixmatch_lora
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.probe_names import ProbeName, WatchedName, in_order
from keepsight.recipes.retain_settings import RetainConfig
from keepsight.recipes.words import merged, nested, read_yaml, validated
from keepsight.train import OptimConfig, TrainConfig
from keepsight.train.trackers import TrackerName

MethodName = Literal[
    "knn",
    "probe",
    "label-propagation",
    "view-probe",
    "view-propagation",
    "self-training",
    "gaussian-mixture",
    "fixmatch",
    "content-only",
    "content-style",
    "content-style-paper",
    "auto",
    "cnn",
    "finetune-bitfit",
    "finetune-adaptformer",
    "finetune-vpt",
    "finetune-lora",
    "finetune-dora",
    "finetune-oft",
    "finetune-osf",
    "finetune-full",
    "fixmatch-lora",
    "content-style-lora",
    "content-style-full",
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
"""In the order of their cost; ties are decided for the earlier one."""

FINETUNED: tuple[MethodName, ...] = tuple(name for name in METHODS if name.startswith("finetune-"))

TRAINABLE: tuple[MethodName, ...] = ("cnn", *FINETUNED, "fixmatch-lora", "content-style-lora", "content-style-full")
"""Methods that train a network on images; the others work on cached features of the frozen backbone."""

TOGETHER = frozenset[MethodName](
    (*TRAINABLE, "fixmatch", "content-only", "content-style", "content-style-paper", "auto")
)
"""Methods that the trainer trains: under several processes all take part, while the others are solved by the main one."""

DEFAULT_METHODS: tuple[MethodName, ...] = ("knn", "probe", "label-propagation", "finetune-lora", "finetune-full")


class FinetuneSettings(Config):
    """How one adapter is fine-tuned.

    Attributes:
        epochs: Passes over the labelled images.
        batch_size: Labelled images a step.
        objective: The method's own config.
        augmentation: Of the training images.
        views: 0 augments anew at every step. K > 0 gives each image K fixed augmented views; then, with objective.first_block above
            1, the frozen blocks below it run once a view and not once a step.
        training: The loop's config.
    """

    epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=16, ge=1)
    objective: FinetuneConfig = FinetuneConfig()
    augmentation: AugmentConfig = AugmentConfig()
    views: int = Field(default=0, ge=0)
    training: TrainConfig = TrainConfig()


class ScratchSettings(Config):
    """How the small CNN is trained from random weights (see `recipes.fit_scratch`); it is a rival, not a use of the backbone.

    Attributes:
        width: Channels of the first of its three blocks; a multiple of 8.
        readout: What its linear head sees.
        epochs: Passes over the labelled images.
        steps: At least so many steps, where the images are few.
        batch_size: Labelled images a step.
        augmentation: Of the training images; null for none.
        training: The loop's config.
    """

    width: int = Field(default=32, ge=8, multiple_of=8)
    readout: str = "3:grid3"
    epochs: int = Field(default=30, ge=1)
    steps: int = Field(default=600, ge=1)
    batch_size: int = Field(default=32, ge=1)
    augmentation: AugmentConfig | None = AugmentConfig()
    training: TrainConfig = TrainConfig(optim=OptimConfig(lr=3e-3))


def _bitfit() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=1e-3)))


def _adaptformer() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=2e-3)))


def _vpt() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=1e-2)))


def _lora() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=2e-3)))


def _dora() -> FinetuneSettings:
    dora = FinetuneConfig(lora=LoraConfig(variant="dora"))
    return FinetuneSettings(objective=dora, training=TrainConfig(optim=OptimConfig(lr=2e-3)))


def _oft() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=2e-3)))


def _osf() -> FinetuneSettings:
    # Weight decay would take away the singular values that are trained: they do not start at zero.
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=4e-4, weight_decay=0.0)))


def _full() -> FinetuneSettings:
    return FinetuneSettings(training=TrainConfig(optim=OptimConfig(lr=3e-5)))


def _view_propagation() -> LabelPropagationConfig:
    return LabelPropagationConfig(views=6)


class AutoConfig(Config):
    """Settings of the method `auto` (see `recipes.choose`).

    Attributes:
        candidates: What it chooses among.
        default: What keeps its place where the evidence does not decide.
        folds: Folds of the cross-validation on the labelled images.
        enough: Hidden labels after which no further fold is looked at.
        least_labels: Labels that every class needs for a cross-validation; with fewer, agreement and margin decide.
        sample: Unlabelled images that these are measured on.
    """

    candidates: tuple[MethodName, ...] = Field(
        default=("probe", "view-probe", "label-propagation", "view-propagation", "gaussian-mixture", "content-style"),
        min_length=1,
    )
    default: MethodName = "content-style"
    folds: int = Field(default=2, ge=2)
    enough: int = Field(default=100, ge=1)
    least_labels: int = Field(default=3, ge=2)
    sample: int = Field(default=1000, ge=1)

    @field_validator("candidates")
    @classmethod
    def _candidates(cls, candidates: tuple[MethodName, ...]) -> tuple[MethodName, ...]:
        if "auto" in candidates or len(set(candidates)) != len(candidates):
            raise ValueError("name other methods than auto, each once")
        return candidates


class TuneConfig(Config):
    """Everything `keepsight tune` does, as saved in a run's config.yaml.

    Attributes:
        data: Embedded name, folder or CSV.
        data_options: Columns, sources and pixel values of the data.
        skip_bad: Leave out images that cannot be read, and count them; otherwise one such image is an error before anything runs.
        backbone: Which model, weights and input size.
        readout: Which blocks and pools, as text ('8:grid2', 'last:cls'), or 'auto'.
        methods: What to compare.
        seeds: How many seeds; each draws its own labelled images where `split.labels` keeps fewer than there are.
        split: Labels, test and validation parts.
        retain: What keeps tuned backbones near the one they came from; see `recipes.retain_settings`.
        forgetting: What is measured of forgetting at the end, for each method that changed the backbone.
        probes: What each method that changed the backbone is asked at the end, before and after; see `keepsight probe`.
        watched_probes: Probes that `--max-forgetting` holds for, too: the headline figures of each may fall by no more points in
            the mean (see `recipes.watched_probes`). They cannot be in `probes`: what is chosen on is not reported.
        trackers: Where training curves go beside TensorBoard files in the run folder: wandb, mlflow.
        selection_folds: Folds of the cross-validation on labelled images that recommends a method; 0 leaves it out.
        knn, probe, label_propagation, view_probe, view_propagation, self_training, gaussian_mixture, fixmatch, content_only,
            content_style, content_style_paper, auto, cnn, finetune_bitfit, finetune_adaptformer, finetune_vpt, finetune_lora,
            finetune_dora, finetune_oft, finetune_osf, finetune_full, fixmatch_lora, content_style_lora, content_style_full: The
            methods' own settings.
    """

    data: str
    data_options: DataConfig = DataConfig()
    skip_bad: bool = False
    backbone: BackboneConfig = BackboneConfig()
    readout: str = "auto"
    methods: tuple[MethodName, ...] = DEFAULT_METHODS
    seeds: int = Field(default=3, ge=1)
    split: SplitConfig = SplitConfig()
    retain: RetainConfig = RetainConfig()
    forgetting: ForgettingConfig = ForgettingConfig()
    probes: tuple[ProbeName, ...] = ()
    watched_probes: tuple[WatchedName, ...] = ()
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    selection_folds: int = Field(default=5, ge=0)
    knn: KNNConfig = KNNConfig()
    probe: ProbeConfig = ProbeConfig()
    label_propagation: LabelPropagationConfig = LabelPropagationConfig()
    view_probe: ViewProbeConfig = ViewProbeConfig()
    view_propagation: LabelPropagationConfig = Field(default_factory=_view_propagation)
    self_training: SelfTrainingConfig = SelfTrainingConfig()
    gaussian_mixture: GaussianMixtureConfig = GaussianMixtureConfig()
    fixmatch: FixMatchSettings = FixMatchSettings()
    fixmatch_lora: TunedFixMatchSettings = Field(default_factory=fixmatch_lora)
    content_only: ContentStyleSettings = Field(default_factory=content_style_settings.content_only)
    content_style: ContentStyleSettings = Field(default_factory=content_style_settings.content_style)
    auto: AutoConfig = AutoConfig()
    content_style_paper: ContentStyleSettings = Field(default_factory=content_style_settings.content_style_paper)
    cnn: ScratchSettings = ScratchSettings()
    finetune_bitfit: FinetuneSettings = Field(default_factory=_bitfit)
    finetune_adaptformer: FinetuneSettings = Field(default_factory=_adaptformer)
    finetune_vpt: FinetuneSettings = Field(default_factory=_vpt)
    finetune_lora: FinetuneSettings = Field(default_factory=_lora)
    finetune_dora: FinetuneSettings = Field(default_factory=_dora)
    finetune_oft: FinetuneSettings = Field(default_factory=_oft)
    finetune_osf: FinetuneSettings = Field(default_factory=_osf)
    finetune_full: FinetuneSettings = Field(default_factory=_full)
    content_style_lora: TunedContentStyleSettings = Field(default_factory=content_style_settings.content_style_lora)
    content_style_full: TunedContentStyleSettings = Field(default_factory=content_style_settings.content_style_full)

    def finetuning(self, method: MethodName) -> FinetuneSettings:
        """The settings of one of `FINETUNED`."""
        settings = {
            "finetune-bitfit": self.finetune_bitfit,
            "finetune-adaptformer": self.finetune_adaptformer,
            "finetune-vpt": self.finetune_vpt,
            "finetune-lora": self.finetune_lora,
            "finetune-dora": self.finetune_dora,
            "finetune-oft": self.finetune_oft,
            "finetune-osf": self.finetune_osf,
            "finetune-full": self.finetune_full,
        }
        return settings[method]

    def check_watched(self, limit: float | None) -> None:
        """Raises UserError where probes should keep within a limit and there is none."""
        if self.watched_probes and limit is None:
            raise UserError("watched_probes must keep within a limit: give one, such as --max-forgetting 1pp.")

    @model_validator(mode="after")
    def _not_reported(self) -> TuneConfig:
        if both := set(self.watched_probes) & set(self.probes):
            raise ValueError(
                f"the probe {min(both)} cannot be watched by the limit (watched_probes) and reported (--probes): name it in one"
            )
        return self

    @field_validator("probes")
    @classmethod
    def _probes(cls, probes: tuple[ProbeName, ...]) -> tuple[ProbeName, ...]:
        return in_order(probes)

    @field_validator("readout")
    @classmethod
    def _readout(cls, text: str) -> str:
        return text if text == "auto" else str(Readout.parse(text))

    @field_validator("methods")
    @classmethod
    def _methods(cls, methods: tuple[MethodName, ...]) -> tuple[MethodName, ...]:
        if not methods or len(set(methods)) != len(methods):
            raise ValueError("name at least one method, each once")
        return tuple(sorted(methods, key=METHODS.index))


def demo() -> dict[str, Any]:
    """The main job on embedded data: MNIST-5k, 1,500 images held out, 100 labels, the packaged ViT at 56 px, within minutes."""
    return {
        "data": "mnist-5k",
        "backbone": {"name": "vit_s14_imgfocus", "size": 56},
        "split": {"labels": 100, "test": 1500},
        "selection_folds": 3,
        "finetune_lora": {"epochs": 8},
        "finetune_full": {"epochs": 8},
        "forgetting": {"per_set": 500},
    }


def resolve(
    data: str, file: Path | None = None, settings: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> TuneConfig:
    """One complete config: the recipe's defaults, then the YAML file, then `settings`, then key=value assignments.

    Args:
        data: What to tune on; 'demo' starts from the `demo` recipe.
        file: YAML, for example a run's config.yaml.
        settings: Nested settings.
        assignments: 'a.b=value' texts; values are YAML.

    Raises:
        UserError: An unknown key (with the nearest spelling), or a wrong type or value.

    Example:
        >>> resolve("leaves", assignments=["split.labels=40", "methods=[probe]"]).split.labels
        40
    """
    found: dict[str, Any] = demo() if data == "demo" else {"data": data}
    # The adapters differ in their defaults: setting one value of an adapter must not bring back the shared ones.
    own = {
        name: field.get_default(call_default_factory=True).model_dump()
        for name, field in TuneConfig.model_fields.items()
        if field.default_factory is not None
    }
    found = merged(own, found)
    if file is not None:
        found = merged(read_yaml(file), {"data": found["data"]} if data != "demo" else {})
        found.setdefault("data", data)
    found = merged(found, settings or {})
    for assignment in assignments:
        found = merged(found, nested(assignment))
    return validated(TuneConfig, found)


def data_options(assignments: Sequence[str]) -> DataConfig:
    """`DataConfig` from 'key=value' texts.

    Raises:
        UserError: An unknown key (with the nearest spelling), or a wrong type or value.

    Example:
        >>> data_options(["label_column=kind", "pixels.channels=[0]"]).label_column
        'kind'
    """
    return resolve("", assignments=[f"data_options.{assignment}" for assignment in assignments]).data_options


def as_yaml(config: TuneConfig) -> str:
    """The config as YAML that `resolve` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
