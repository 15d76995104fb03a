"""The few types that cross borders, and the abstract classes. Imports nothing of keepsight."""

from keepsight.core.backbone import Backbone, Preprocessing
from keepsight.core.batch import Batch
from keepsight.core.config import Config
from keepsight.core.errors import UserError
from keepsight.core.features import Features, Pool, Readout
from keepsight.core.head import Head
from keepsight.core.images import UNLABELLED, Dataset, ImageList
from keepsight.core.method import FeatureMethod, Method
from keepsight.core.result import Result
from keepsight.core.text import TextTower

__all__ = [
    "UNLABELLED",
    "Backbone",
    "Batch",
    "Config",
    "Dataset",
    "FeatureMethod",
    "Features",
    "Head",
    "ImageList",
    "Method",
    "Pool",
    "Preprocessing",
    "Readout",
    "Result",
    "TextTower",
    "UserError",
]
