"""Scenes for probes: composed ones that are made once and kept in the user's cache, and what is learnt from and tested on.

Knows no probe and no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keepsight.core import SceneDataset, UserError
from keepsight.core.files import cache_directory
from keepsight.core.progress import log
from keepsight.data import stamps
from keepsight.data.scenes import ScenesConfig, write_scenes

TEST_PARTS = ("test-unseen", "test", "val")
"""Parts of scenes that a probe tests on: the first of them that there is."""

_OWN_SEED = 7001  # added to the seed, so that scenes to train on have other compositions


def probe_scenes(seed: int = 0, split: int = 0, train: int = 400, test: int = 200) -> Path:
    """The folder of scenes of a probe's own: its test objects are of stamps that no scenes of the same split train on.

    Args:
        seed: Of the compositions.
        split: See `ScenesConfig`.
        train: Images to learn from, of the part train.
        test: Images to test on, of the part test-unseen.

    Raises:
        UserError: as `write_scenes`.
    """
    return cached_scenes(ScenesConfig(images=train, val=0, test=test, seed=_OWN_SEED + seed, split=split))


def cached_scenes(config: ScenesConfig) -> Path:
    """The folder of the scenes; they are composed where they are not there yet.

    The source `auto` becomes what is installed, so that scenes of digits do not stay when stamps are installed later.

    Raises:
        UserError: as `write_scenes`.
    """
    if config.source == "auto":
        there = any(stamps.STAMPS_FOLDER.glob("*/**/*.png"))
        config = config.model_copy(update={"source": "stamps" if there else "digits"})
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    folder = cache_directory() / "scenes" / key
    if not folder.is_dir():  # it is written whole or not at all
        log.info("composing %d scenes, once, into %s", sum(config.counts().values()), folder)
        write_scenes(folder, config)
    with contextlib.suppress(OSError):  # of another user
        os.utime(folder)  # when it was last used, for pruning
    return folder


def train_and_test(
    dataset: SceneDataset, train: int, test: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Images to learn from, images to test on (at most so many, drawn by the seed; ascending), and the part of the latter.

    Learnt from is the part train, tested on the first of `TEST_PARTS` that there is; without such parts a third of all images is
    tested on, and the part is "".

    Raises:
        UserError: The set has captions alone.
    """
    rng = np.random.default_rng((seed, 0))
    own_rows, part = scenes_to_test(dataset)
    if part and len(dataset.of("train")):
        train_rows, test_rows = rng.permutation(dataset.of("train")), rng.permutation(own_rows)
    else:
        part, order = "", rng.permutation(len(dataset.images))
        test_rows, train_rows = np.split(order, [len(order) // 3])
    return np.sort(train_rows[:train]), np.sort(test_rows[:test]), part


def scenes_to_test(dataset: SceneDataset) -> tuple[NDArray[np.int64], str]:
    """Images to test on where nothing is learnt, and their part: the first of `TEST_PARTS` that there is, else all images and "".

    Raises:
        UserError: The set has captions alone.
    """
    if not dataset.has_objects:
        raise UserError(f"The scenes {dataset.name} have no objects, only captions: give instances_*.json, too.")
    part = next((name for name in TEST_PARTS if len(dataset.of(name))), "")
    return dataset.of(part) if part else np.arange(len(dataset.images)), part
