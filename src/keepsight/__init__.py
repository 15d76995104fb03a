"""keepsight adapts a pretrained vision model to your own images with few labels, and shows what it gained.

run = keepsight.tune("my-images/")
run.predict("new-image.png").labels
"""

from __future__ import annotations

import os
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keepsight.backbones.load import load_backbone
    from keepsight.export.model import TunedModel
    from keepsight.recipes.compare import compare
    from keepsight.recipes.compare_config import ladder_config
    from keepsight.recipes.evaluate import evaluate_model
    from keepsight.recipes.forgetting import forgetting
    from keepsight.recipes.run import Run, load_run, tune

# Waiting OpenMP threads spin for some microseconds and then sleep. Spinning on made steps ten times slower as soon as another
# process wanted a core; sleeping at once made them a third slower on an idle machine (figures in docs/log.md). It must be set
# before torch is imported; a policy that the user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__version__ = metadata.version("keepsight")
__all__ = [
    "Run",
    "TunedModel",
    "__version__",
    "compare",
    "evaluate_model",
    "forgetting",
    "ladder_config",
    "load_backbone",
    "load_run",
    "tune",
]

_WHERE = {
    "Run": "keepsight.recipes.run",
    "TunedModel": "keepsight.export.model",
    "compare": "keepsight.recipes.compare",
    "evaluate_model": "keepsight.recipes.evaluate",
    "forgetting": "keepsight.recipes.forgetting",
    "ladder_config": "keepsight.recipes.compare_config",
    "load_backbone": "keepsight.backbones.load",
    "load_run": "keepsight.recipes.run",
    "tune": "keepsight.recipes.run",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are used: `import keepsight` and `keepsight --help` do not wait for torch."""
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'keepsight' has no attribute {name!r}")
