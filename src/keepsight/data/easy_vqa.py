"""easy-VQA: one coloured shape on a plain ground, and questions about it with 13 answers. Knows nothing of how it is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keepsight import assets
from keepsight.data.files import StoredImages
from keepsight.data.joined import JoinedImages
from keepsight.data.questions import Questions, most_frequent, some_of

SHAPES = ("circle", "rectangle", "triangle")

NAME = "easy-vqa"


def read_easy_vqa(train_images: int, test_images: int, seed: int = 0) -> Questions:
    """All questions about some of the images; training and test images as the package divides them (4,000 and 1,000).

    The kinds are "shape", "colour" and "yes/no".

    Args:
        train_images: Training images, at most.
        test_images: Test images, at most.
        seed: Of the draw of the images.

    Raises:
        UserError: The package cannot be fetched.
    """
    arrays = assets.load_easy_vqa()
    rng = np.random.default_rng((seed, 7))
    lists, asked = {}, []
    first = 0
    for part, at_most in (("train", train_images), ("test", test_images)):
        ends_N = arrays[f"{part}_ends"]
        kept = some_of(len(ends_N), at_most, rng)
        lists[part] = StoredImages(len(kept), _reader(arrays[f"{part}_png"], ends_N, kept), _name(kept))
        place = {int(number): first + n for n, number in enumerate(kept)}
        content = json.loads(arrays[f"{part}_questions"].tobytes())
        asked += [(text, answer, place[number], part == "test") for text, answer, number in content if number in place]
        first += len(kept)
    answers = most_frequent((answer for _, answer, _, test in asked if not test), most=len(asked))
    truths = tuple(answer for _, answer, _, _ in asked)
    return Questions(
        name=NAME,
        images=JoinedImages(lists),
        image_Q=np.array([image for _, _, image, _ in asked], dtype=np.int64),
        texts=tuple(text for text, _, _, _ in asked),
        kinds=tuple(_kind(answer) for answer in truths),
        truths=truths,
        answers=answers,
        scores_QK=(np.array(truths)[:, None] == np.array(answers)).astype(np.float32),
        test_Q=np.array([test for _, _, _, test in asked]),
    )


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"


def _reader(png: NDArray[Any], ends_N: NDArray[np.int64], kept: NDArray[np.int64]) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        number = int(kept[index])
        start = int(ends_N[number - 1]) if number else 0
        return bytes(png[start : int(ends_N[number])].tobytes())

    return read


def _name(kept: NDArray[np.int64]) -> Callable[[int], str]:
    return lambda index: f"{kept[index]}.png"
