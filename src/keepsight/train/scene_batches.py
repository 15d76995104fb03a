"""Batches for task heads: of kept maps for stage 1, of images for stage 2. Pure functions of the step, like `train.batches`.

So is what heads draw at random: each target brings its `draw`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from keepsight.core import Batch, Preprocessing, SceneDataset, Target, Task
from keepsight.data.scene_transforms import SceneAugmentConfig, Words, load_scene_batch
from keepsight.data.streams import Stream
from keepsight.features.maps import SceneMaps
from keepsight.train.batches import share_of

EMPTY = torch.empty(0)


def with_draws(
    targets: tuple[Target, ...], seed: int, step: int, share: int = 0, shares: int = 1
) -> tuple[Target, ...]:
    """The targets of a share, each with its `Target.draw`."""
    number = int(np.random.default_rng((seed, 31, step)).integers(2**31))
    return tuple(replace(target, draw=(number, share + shares * i)) for i, target in enumerate(targets))


class MapBatches:
    """Stage 1: maps of one task, each image in a random one of its views.

    Args:
        maps: Of all images that the stream visits.
        task: The task.
        stream: Over the images.
        words: For captions.
        seed: Of the choice of views.
    """

    def __init__(self, maps: SceneMaps, task: Task, stream: Stream, words: Words | None, seed: int) -> None:
        self.maps, self.task, self.stream, self.words, self.seed = maps, task, stream, words, seed

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        rows = self.stream.batch(step)
        drawn = np.random.default_rng((self.seed, 5, step)).integers(0, self.maps.views, len(rows))
        # A mirror image makes left of right: captions are learnt from the plain view.
        views = drawn if self.task != "captioning" else np.zeros_like(drawn)
        rows, views = share_of(rows, share, shares), share_of(views, share, shares)
        words = self.words if self.task == "captioning" else None
        targets = self.maps.targets(rows, views, self.task == "segmentation", words)
        targets = with_draws(targets, self.seed, step, share, shares)
        return Batch(self.maps.read(rows, views), EMPTY, EMPTY, targets=targets, task=self.task)


class SceneBatches:
    """Stage 2: images of the step's task, augmented; a stream of its own for every task.

    Args:
        dataset: The scenes.
        streams: Over the images that have what the task learns from.
        task_of: The task of a step.
        preprocessing: The backbone's.
        augmentation: Of the images; captioning never flips.
        words: For captions.
        seed: Of the augmentation.
        shuffled: Every image of a step brings what is to be learnt of another one: a control that teaches nothing of images.
    """

    def __init__(
        self,
        dataset: SceneDataset,
        streams: Mapping[Task, Stream],
        task_of: Mapping[int, Task],
        preprocessing: Preprocessing,
        augmentation: SceneAugmentConfig | None,
        words: Words | None,
        seed: int,
        shuffled: bool = False,
    ) -> None:
        self.shuffled = shuffled
        self.dataset, self.streams, self.task_of = dataset, dict(streams), task_of
        self.preprocessing, self.augmentation, self.words, self.seed = preprocessing, augmentation, words, seed

    def __call__(self, step: int, share: int, shares: int) -> Batch:
        """See `BatchSource`."""
        task = self.task_of[step]
        rows: NDArray[np.int64] = share_of(self.streams[task].batch(step), share, shares)
        augmentation, preprocessing = self.augmentation, self.preprocessing
        if augmentation is not None and augmentation.sizes:  # one size a step, on all processes
            size = int(np.random.default_rng((self.seed, 37, step)).choice(augmentation.sizes))
            preprocessing = preprocessing.model_copy(update={"size": size})
            augmentation = augmentation.model_copy(update={"sizes": ()})
        if augmentation is not None and task == "captioning":
            augmentation = augmentation.model_copy(update={"flip": 0.0})
        # A seed for each position of the global batch: the cut into shares changes no image.
        seeds = [(self.seed, step, share + shares * i) for i in range(len(rows))]
        load = partial(
            load_scene_batch,
            self.dataset,
            preprocessing=preprocessing,
            augmentation=augmentation,
            seeds=seeds,
            masks=task == "segmentation",
            words=self.words if task == "captioning" else None,
        )
        images, targets = load(rows)
        if self.shuffled:
            _, targets = load(share_of(np.roll(self.streams[task].batch(step), 1), share, shares))
        targets = with_draws(targets, self.seed, step, share, shares)
        return Batch(images, EMPTY, EMPTY, targets=targets, task=task)
