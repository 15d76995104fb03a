"""The abstract probe: a task that the tuning never saw, asked of a frozen backbone's features. Knows no backbone and no trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from keepsight.core.config import Config
from keepsight.core.features import Readout
from keepsight.core.images import ImageList
from keepsight.core.method import Trainable
from keepsight.core.text import TextTower

Rows = NDArray[np.int64]


class Schedule(Config):
    """How a probe's head is trained.

    Attributes:
        steps: Of AdamW, with a cosine after a short warm-up.
        batch_size: Examples a step.
        lr: Learning rate.
        weight_decay: Decoupled.
    """

    steps: int
    batch_size: int
    lr: float
    weight_decay: float = 1e-4


class Fit(Protocol):
    """Trains a probe's head by the one trainer."""

    def __call__(self, model: Trainable, examples: int, schedule: Schedule, seed: int, what: str) -> None:
        """Train in place. `Batch.inputs` are rows [B], int64, of 0 to examples - 1, which the model looks up itself.

        Args:
            model: Owns its head and whatever the rows stand for.
            examples: How many there are to learn from.
            schedule: See there.
            seed: Of the order of the rows and of torch's global generator, which is restored afterwards.
            what: What the progress line says.
        """
        ...


class View(ABC):
    """What one frozen backbone makes of a probe's images. Everything is computed once and kept; tensors are float32 on the CPU.

    Attributes:
        depth: Blocks of the backbone.
        text: The text tower that belongs to the backbone (CLIP-like models); None where there is none.
    """

    depth: int
    text: TextTower | None

    @abstractmethod
    def vectors(self, rows: Rows, readout: Readout) -> Tensor:
        """Vectors [B, F] of a readout."""

    @abstractmethod
    def maps(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        """Maps [B, C, h, w] of some blocks (`core.features.feature_map`), counted from 1 or from the end."""

    @abstractmethod
    def embeddings(self, rows: Rows) -> Tensor:
        """Embeddings [B, E] of unit length in the space of `text`; only where there is one."""

    @abstractmethod
    def attention(self, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
        """Attention [B, blocks, heads, N, N] of all tokens, the class token first, each row summing to 1.

        Raises:
            UserError: The backbone is no transformer whose attention is known.
        """


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a probe: sum(values) / sum(weights) over N test items, for each of S seeds.

    An accuracy has values 0 or 1 and weights 1; a character error rate has edits as values and lengths as weights.

    Attributes:
        metric: Such as "word_accuracy", "cer", "recall10", "accuracy (colour)".
        dataset: What was measured on, such as "words", "easy-vqa".
        values: [S, N].
        weights: [N]; ones by default.
        units: [N] what is drawn together when items are resampled (the image of a question); each item by itself by default.
        better: Which way is better.
        chance: What guessing gives; None where it is not defined.
        shown: Whether it is a headline of the probe; others are details (a question type, a baseline).
    """

    metric: str
    dataset: str
    values: NDArray[np.float64]
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    units: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    better: Literal["higher", "lower"] = "higher"
    chance: float | None = None
    shown: bool = True

    def __post_init__(self) -> None:
        n = self.values.shape[1] if self.values.ndim == 2 else -1
        if n < 1 or len(self.weights) not in (0, n) or len(self.units) not in (0, n):
            raise ValueError("a score needs values [S, N], and weights and units [N] or none")

    def figures(self) -> NDArray[np.float64]:
        """[S]: one figure a seed."""
        weights = self.weights if len(self.weights) else np.ones(self.values.shape[1])
        return np.asarray(self.values.sum(axis=1) / weights.sum(), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Example:
    """A test item in words and with its picture, for the page.

    Attributes:
        row: Of the probe's images.
        truth: What is right.
        said: What was answered with the first seed.
        right: Whether it is.
    """

    row: int
    truth: str
    said: str
    right: bool


@dataclass(frozen=True, slots=True)
class Heat:
    """Where a backbone looks in an image, for a picture.

    Attributes:
        row: Of the probe's images.
        name: What is shown, such as "block 12".
        values: [h, w] float32, none negative, of sum 1.
    """

    row: int
    name: str
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe found with one backbone; scores of two backbones are of the same items in the same order."""

    scores: tuple[Score, ...]
    examples: tuple[Example, ...] = ()
    heats: tuple[Heat, ...] = ()


class Probe(ABC):
    """One task with its own images, split into what is learnt from and what is measured.

    It is a function of its settings, the view and the seeds: the same backbone gives the same scores bit for bit, so that a
    backbone against itself differs by exactly zero. Everything that is drawn depends on the settings' seed and not on features.

    Attributes:
        name: What a user calls it ("ocr").
        images: All images that it looks at.
        size: Side of the backbone's input in px that it wants; None for the backbone's own.
        squash: Whether images are squashed into the backbone's square input; else its own rule holds.
    """

    name: str
    images: ImageList
    size: int | None = None
    squash: bool = False

    @abstractmethod
    def key(self) -> str:
        """Sha256 (hex) of everything that its scores depend on beside the backbone: settings, images, annotations, seeds."""

    @abstractmethod
    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """Train what there is to train on the view, and score the test items.

        Args:
            view: Of `images`, by row.
            fit: Trains heads.
            shuffled: Learn from targets that were permuted among the training examples: scores must fall to chance. What learns
                nothing (zero-shot with a text tower) permutes what is compared.
        """
