"""Settings of ViSFT: data, heads and both stages. Knows nothing of how they are run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from keepsight.adapters.lora import LoraConfig
from keepsight.backbones.config import BackboneConfig
from keepsight.core import TASKS, Config, Task
from keepsight.data.scene_transforms import SceneAugmentConfig
from keepsight.methods.captioning import CaptionConfig
from keepsight.methods.detection import DenseConfig, DetrConfig
from keepsight.methods.encoder import AdapterConfig
from keepsight.methods.segmentation import SegmentationConfig
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.recipes.retain_settings import RetainConfig
from keepsight.train import OptimConfig, TrainConfig

Detector = Literal["detr", "dense"]

MIRROR = SceneAugmentConfig.none().model_copy(update={"flip": 1.0})


class HeadStage(Config):
    """Stage 1 of one task: its head on maps of the frozen backbone.

    Attributes:
        steps: Of training.
        batch_size: Images a step, over all processes and micro-batches.
        training: The loop; with `validate_every` the best weights on validation images are kept.
    """

    steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=32, ge=1)
    training: TrainConfig = TrainConfig(
        optim=OptimConfig(lr=1e-3, weight_decay=1e-4, warmup=0.05, clip=1.0), validate_every=250, patience=0
    )


class Probabilities(Config):
    """How often stage 2 draws each task, relative to the others that there are; the defaults are the published ones."""

    detection: float = Field(default=0.3, ge=0)
    segmentation: float = Field(default=0.3, ge=0)
    captioning: float = Field(default=0.4, ge=0)

    def of(self, tasks: tuple[Task, ...]) -> dict[Task, float]:
        """Of some of the tasks."""
        every: dict[Task, float] = {
            "detection": self.detection,
            "segmentation": self.segmentation,
            "captioning": self.captioning,
        }
        return {task: every[task] for task in tasks}


class JointStage(Config):
    """Stage 2: LoRA in the backbone through the frozen heads.

    Attributes:
        steps: Of training; 0 leaves stage 2 out.
        batch_size: Images of a step's task.
        probabilities: See there.
        adapter: LoRA on the query and value projections; the published rank is 64, scaled by 1/64.
        ladder: Steps between the rungs, each of which is measured on validation images.
        select: What chooses the rung: "probes", linear probes on other data (the published way: tasks that were never seen), among
            the rungs that do not lose on the trained tasks; "tasks", the mean over the trained tasks' own figures; "last".
        dropout_in_heads: Frozen heads in training mode, as in the published code.
        augmentation: Of the images; null for none.
        shuffled: The negative control: every image of a step learns the boxes, masks or captions of another one.
        training: The loop; `accumulate` is that of micro-batches.
        retain: See `keepsight tune --retain`; penalties look at the mean of the map.
    """

    steps: int = Field(default=300, ge=0)
    batch_size: int = Field(default=8, ge=1)
    probabilities: Probabilities = Probabilities()
    adapter: AdapterConfig = AdapterConfig(lora=LoraConfig(rank=16, alpha=16))
    ladder: int = Field(default=75, ge=1)
    select: Literal["probes", "tasks", "last"] = "probes"
    dropout_in_heads: bool = False
    augmentation: SceneAugmentConfig | None = None
    shuffled: bool = False
    training: TrainConfig = TrainConfig(optim=OptimConfig(lr=1e-4, weight_decay=0.0, clip=0.1))
    retain: RetainConfig = RetainConfig()


class VisftConfig(Config):
    """ViSFT on one set of scenes.

    Attributes:
        data: COCO, YOLO or Pascal VOC data (see `data.scenes_load`).
        backbone: Which, and at which size.
        blocks: The blocks whose patches make the map, counted from 1 or, negative, from the end.
        tasks: Those that are trained.
        detector: Which head detects.
        detr, dense, segmentation, captioning: The heads.
        detection_stage, segmentation_stage, captioning_stage: Stage 1 of each task.
        joint: Stage 2.
        views: Augmented copies of every training image, whose maps are kept, too; boxes and masks are learnt in stage 1 from all.
        view_augmentation: Of these copies, a mirror image by default; captions are learnt from the plain image.
        least_count: Words of captions that occur so often have a place in the vocabulary (5 in the paper).
        validation: Share of the training images that validates, where the data brings no part for it.
        forgetting: The probes on other data, and what is reported of them.
        seed: Of all that is drawn.
    """

    data: str
    backbone: BackboneConfig = BackboneConfig(size=168, fit="squash")
    blocks: tuple[int, ...] = Field(default=(8, 9, 10), min_length=1)
    tasks: tuple[Task, ...] = Field(default=TASKS, min_length=1)
    detector: Detector = "detr"
    detr: DetrConfig = DetrConfig()
    dense: DenseConfig = DenseConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    captioning: CaptionConfig = CaptionConfig()
    detection_stage: HeadStage = HeadStage(steps=1000)
    segmentation_stage: HeadStage = HeadStage(steps=800, batch_size=16)
    captioning_stage: HeadStage = HeadStage(steps=800)
    joint: JointStage = JointStage()
    views: int = Field(default=1, ge=0)
    view_augmentation: SceneAugmentConfig = MIRROR
    least_count: int = Field(default=1, ge=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    forgetting: ForgettingConfig = ForgettingConfig(per_set=500)
    seed: int = Field(default=0, ge=0)

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError("each task once")
        return tuple(task for task in TASKS if task in tasks)

    def stage(self, task: Task) -> HeadStage:
        """Stage 1 of a task."""
        stages: dict[Task, HeadStage] = {
            "detection": self.detection_stage,
            "segmentation": self.segmentation_stage,
            "captioning": self.captioning_stage,
        }
        return stages[task]

    def head(self, task: Task) -> dict[str, Any]:
        """The settings of a task's head."""
        if task == "detection":
            return self.detr.model_dump(mode="json") if self.detector == "detr" else self.dense.model_dump(mode="json")
        return (self.segmentation if task == "segmentation" else self.captioning).model_dump(mode="json")
