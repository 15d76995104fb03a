"""The few types that cross borders, and the abstract classes. Imports nothing else of keepsight.

The names are imported when they are used, so that `keepsight --help` and shell completion do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepsight.core.backbone import Backbone, Preprocessing
    from keepsight.core.batch import Batch
    from keepsight.core.config import Config
    from keepsight.core.errors import CollapsedError, UserError
    from keepsight.core.features import Features, Pool, Readout
    from keepsight.core.head import Head
    from keepsight.core.images import UNLABELLED, Dataset, ImageList
    from keepsight.core.method import FeatureMethod, Method, Trainable
    from keepsight.core.penalty import Penalty, Seen
    from keepsight.core.probe import Example, Findings, Fit, Heat, Probe, Schedule, Score, View
    from keepsight.core.result import Result
    from keepsight.core.scene import TASKS, Answer, Objects, Rle, SceneDataset, Target, Task
    from keepsight.core.task_head import TaskHead
    from keepsight.core.text import TextTower
    from keepsight.core.token import Token

__all__ = [
    "TASKS",
    "UNLABELLED",
    "Answer",
    "Backbone",
    "Batch",
    "CollapsedError",
    "Config",
    "Dataset",
    "Example",
    "FeatureMethod",
    "Features",
    "Findings",
    "Fit",
    "Head",
    "Heat",
    "ImageList",
    "Method",
    "Objects",
    "Penalty",
    "Pool",
    "Preprocessing",
    "Probe",
    "Readout",
    "Result",
    "Rle",
    "SceneDataset",
    "Schedule",
    "Score",
    "Seen",
    "Target",
    "Task",
    "TaskHead",
    "TextTower",
    "Token",
    "Trainable",
    "UserError",
    "View",
]

_WHERE = {
    "TASKS": "keepsight.core.scene",
    "Answer": "keepsight.core.scene",
    "Objects": "keepsight.core.scene",
    "Rle": "keepsight.core.scene",
    "SceneDataset": "keepsight.core.scene",
    "Target": "keepsight.core.scene",
    "Task": "keepsight.core.scene",
    "TaskHead": "keepsight.core.task_head",
    "Backbone": "keepsight.core.backbone",
    "Batch": "keepsight.core.batch",
    "CollapsedError": "keepsight.core.errors",
    "Config": "keepsight.core.config",
    "Dataset": "keepsight.core.images",
    "FeatureMethod": "keepsight.core.method",
    "Features": "keepsight.core.features",
    "Head": "keepsight.core.head",
    "ImageList": "keepsight.core.images",
    "Method": "keepsight.core.method",
    "Penalty": "keepsight.core.penalty",
    "Seen": "keepsight.core.penalty",
    "Pool": "keepsight.core.features",
    "Preprocessing": "keepsight.core.backbone",
    "Readout": "keepsight.core.features",
    "Example": "keepsight.core.probe",
    "Findings": "keepsight.core.probe",
    "Fit": "keepsight.core.probe",
    "Heat": "keepsight.core.probe",
    "Probe": "keepsight.core.probe",
    "Schedule": "keepsight.core.probe",
    "Score": "keepsight.core.probe",
    "View": "keepsight.core.probe",
    "Result": "keepsight.core.result",
    "TextTower": "keepsight.core.text",
    "Token": "keepsight.core.token",
    "Trainable": "keepsight.core.method",
    "UNLABELLED": "keepsight.core.images",
    "UserError": "keepsight.core.errors",
}


def __getattr__(name: str) -> Any:
    """The public names, from their own files."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'keepsight.core' has no attribute {name!r}")
