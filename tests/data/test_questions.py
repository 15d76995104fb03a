from __future__ import annotations

import numpy as np
import pytest

from keepsight.data.arrays import ArrayImages
from keepsight.data.questions import Questions, some_of


def questions(
    asked: list[tuple[int, str, str, str, bool]], answers: tuple[str, ...] = ("yes", "no", "red")
) -> Questions:
    """Of (image, text, kind, truth, whether it is measured on)."""
    images, texts, kinds, truths, test = zip(*asked, strict=True)
    scores = np.array([[float(truth == answer) for answer in answers] for truth in truths], np.float32)
    pixels = ArrayImages(np.zeros((max(images) + 1, 4, 4), np.uint8))
    return Questions("toy", pixels, np.array(images), texts, kinds, truths, answers, scores, np.array(test))


def test_a_guess_knows_the_words_then_the_kind_then_the_whole() -> None:
    found = questions(
        [
            (0, "is it red?", "yes/no", "yes", False),
            (0, "is it red?", "yes/no", "yes", False),
            (1, "is it red?", "yes/no", "no", False),
            (1, "is it blue?", "yes/no", "no", False),
            (1, "is it green?", "yes/no", "no", False),
            (2, "is it red?", "yes/no", "yes", True),
            (2, "is it black?", "yes/no", "no", True),  # these words were not asked, and "no" is that kind's best
            (3, "which colour?", "colour", "no", True),  # nor was the kind, and "no" is the best of all
            (3, "is it red?", "yes/no", "no", True),
        ]
    )
    assert found.guesses().tolist() == [1.0, 1.0, 1.0, 0.0]


def test_an_image_on_both_sides_is_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        questions([(0, "?", "a", "yes", False), (0, "?", "a", "yes", True)])


def test_some_of_many_depends_on_the_seed_alone() -> None:
    first, again, other = (some_of(100, 10, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert len(set(first.tolist())) == 10
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert some_of(3, 10, np.random.default_rng(0)).tolist() == [0, 1, 2]
