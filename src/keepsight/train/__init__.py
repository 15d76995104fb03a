"""The one training loop, its optimizers and its checkpoints. Knows no method by name."""

from keepsight.train.batches import BatchSource, FeatureBatches, ImageBatches, StateBatches, WithReference
from keepsight.train.checkpoint import load_trained_state, trained_state
from keepsight.train.optim import OptimConfig
from keepsight.train.scene_batches import MapBatches, SceneBatches, with_draws
from keepsight.train.trainer import Outcome, TrainConfig, train

__all__ = [
    "BatchSource",
    "FeatureBatches",
    "ImageBatches",
    "MapBatches",
    "OptimConfig",
    "Outcome",
    "SceneBatches",
    "StateBatches",
    "TrainConfig",
    "WithReference",
    "load_trained_state",
    "train",
    "trained_state",
    "with_draws",
]
