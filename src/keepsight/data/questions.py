"""Questions about images, each with how right every answer of a vocabulary is. Knows no file format and no model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keepsight.core import ImageList

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Questions:
    """Q questions about N images.

    Attributes:
        name: Of the data, such as "easy-vqa".
        images: The N images; training and test questions share none of them.
        image_Q: Which image each question is about, int64.
        texts: The questions.
        kinds: What sort of question each is, such as "yes/no".
        truths: The right answer in words.
        answers: The vocabulary, K answers.
        scores_QK: How right each answer is, 0 to 1. A row is zero where no answer of the vocabulary is right.
        test_Q: Whether a question is measured on; it is learnt from otherwise.
    """

    name: str
    images: ImageList
    image_Q: NDArray[np.int64]
    texts: tuple[str, ...]
    kinds: tuple[str, ...]
    truths: tuple[str, ...]
    answers: tuple[str, ...]
    scores_QK: Scores
    test_Q: NDArray[np.bool_]

    def __post_init__(self) -> None:
        q = len(self.texts)
        if not q == len(self.image_Q) == len(self.kinds) == len(self.truths) == len(self.test_Q):
            raise ValueError("image_Q, texts, kinds, truths and test_Q must have one entry a question")
        if self.scores_QK.shape != (q, len(self.answers)):
            raise ValueError(f"scores must be [questions, answers], got {self.scores_QK.shape}")
        if np.intersect1d(self.image_Q[self.test_Q], self.image_Q[~self.test_Q]).size:
            raise ValueError("an image is learnt from or measured on, not both")

    def guesses(self) -> NDArray[np.float64]:
        """[T]: how right the best guess is that has seen no image, for each test question.

        It is the answer that was most right for the same words in training; for words that were not asked there, the best
        answer to that kind of question, and else to all of them.
        """
        keys = [("text", t) for t in self.texts], [("kind", k) for k in self.kinds], [("", "")] * len(self.texts)
        totals: dict[tuple[str, str], Scores] = defaultdict(lambda: np.zeros(len(self.answers), np.float32))
        for q in np.flatnonzero(~self.test_Q).tolist():
            for key in keys:
                totals[key[q]] += self.scores_QK[q]
        best = {key: int(total.argmax()) for key, total in totals.items()}
        test = np.flatnonzero(self.test_Q).tolist()
        said = [next(best[key[q]] for key in keys if key[q] in best) for q in test]
        return self.scores_QK[test, said].astype(np.float64)


def most_frequent(answers: Iterable[str], most: int) -> tuple[str, ...]:
    """The vocabulary: at most so many answers, the most frequent first, equally frequent ones by the alphabet.

    Example:
        >>> most_frequent(["no", "yes", "2", "yes", "no", "red"], most=3)
        ('no', 'yes', '2')
    """
    counts = Counter(answers)
    return tuple(sorted(counts, key=lambda answer: (-counts[answer], answer))[:most])


def some_of(count: int, at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ascending numbers below `count`: all of them, or `at_most` drawn at random."""
    return np.sort(rng.permutation(count)[:at_most]).astype(np.int64)
