"""The one training loop, its optimizers and its checkpoints. Knows no method by name."""

from keepsight.train.batches import FeatureBatches, ImageBatches
from keepsight.train.optim import OptimConfig
from keepsight.train.trainer import Outcome, TrainConfig, train

__all__ = ["FeatureBatches", "ImageBatches", "OptimConfig", "Outcome", "TrainConfig", "train"]
