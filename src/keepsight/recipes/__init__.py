"""Named functions that each return one complete config, and what turns a config into a run."""

from keepsight.recipes.config import TuneConfig, demo, resolve
from keepsight.recipes.run import Run, load_run, tune

__all__ = ["Run", "TuneConfig", "demo", "load_run", "resolve", "tune"]
