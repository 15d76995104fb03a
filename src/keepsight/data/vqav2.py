"""VQAv2 in its published files, and its published accuracy. Knows no model.

Goyal et al. 2017 (arXiv 1612.00837). A folder holds, as they are downloaded, `v2_OpenEnded_mscoco_PART_questions.json`,
`v2_mscoco_PART_annotations.json` and the images `PART/COCO_PART_000000000042.jpg`, PART being train2014 or val2014.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keepsight.core import UserError
from keepsight.data.files import FileImages
from keepsight.data.questions import Questions, Scores, most_frequent, some_of

PARTS = ("train2014", "val2014")

NEEDED = 3
"""People who must have given an answer, out of the others, for it to be wholly right."""

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS.split())} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's "
    "how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock "
    "oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's "
    "they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)
_REPAIRED = {
    whole[:i] + whole[i + 1 :]: whole for whole in _CONTRACTIONS.split() for i, c in enumerate(whole) if c == "'"
}
"""A contraction without one of its apostrophes, and what is meant."""

_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")


def normalise(answer: str) -> str:
    """An answer as the published evaluation compares it: without punctuation and articles, numbers up to ten as digits.

    Example:
        >>> normalise("Two dogs, a CAT."), normalise("dont know"), normalise("t-shirt"), normalise("1,000")
        ('2 dogs cat', "don't know", 't shirt', '1000')
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = _THOUSANDS.search(text) is not None
    cleaned = text
    for sign in _PUNCTUATION:
        apart = thousands or f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if apart else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split())
    return " ".join(_REPAIRED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """How right an answer is, given those of ten people: the mean, with each left out, of min(same among the others / 3, 1).

    Answers are compared as `normalise` gives them, and where all people wrote the same, as they stand but for the case.

    Example:
        >>> given = ["red"] * 2 + ["blue"] * 8
        >>> round(vqa_accuracy("red", given), 4), vqa_accuracy("Blue.", given), vqa_accuracy("grey", given)
        (0.6, 1.0, 0.0)
    """
    return float(_Vocabulary((answer,)).scores(given)[0])


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    answers: tuple[str, ...]

    def scores(self, given: Sequence[str]) -> Scores:
        """[K]."""
        scores_K: Scores = self.many([given])[0]
        return scores_K

    def many(self, given: Sequence[Sequence[str]]) -> Scores:
        """[Q, K] of the answers given to each of Q questions."""
        plain: dict[str, list[int]] = {}
        compared: dict[str, list[int]] = {}
        for index, answer in enumerate(self.answers):
            plain.setdefault(answer.strip().lower(), []).append(index)
            compared.setdefault(normalise(answer).lower(), []).append(index)
        scores_QK = np.zeros((len(given), len(self.answers)), np.float32)
        for scores_K, people in zip(scores_QK, given, strict=True):
            words = [" ".join(answer.splitlines()).replace("\t", " ").strip() for answer in people]
            differ = len(set(words)) > 1
            counts = Counter((normalise(word) if differ else word).lower() for word in words)
            for word, same in counts.items():
                for index in (compared if differ else plain).get(word, ()):
                    scores_K[index] = _accuracy(same, len(people))
        return scores_QK


def _accuracy(same: int, people: int) -> float:
    """Leaving out one of the `same` people leaves same - 1 of them, leaving out another leaves all."""
    left_in = min(same / NEEDED, 1.0) * (people - same)
    return (min((same - 1) / NEEDED, 1.0) * same + left_in) / people


def is_vqav2(folder: Path) -> bool:
    """Whether a folder holds the questions and annotations of a part."""
    return any(_files(folder, part) for part in PARTS)


def read_vqav2(folder: Path, train_images: int, test_images: int, answers: int = 1000, seed: int = 0) -> Questions:
    """All questions about some of the images. The kinds are the published answer types: "yes/no", "number" and "other".

    What is learnt from is train2014 and what is measured on is val2014; of a folder that has one of them, the images are divided.

    Args:
        folder: See the module.
        train_images: Training images, at most; drawn among those that have a question.
        test_images: Test images, at most.
        answers: Size of the vocabulary, at most: the most frequent answers to the training questions that were drawn.
        seed: Of the draw of the images.

    Raises:
        UserError: A file is missing or is not of this format.
    """
    found = [part for part in PARTS if _files(folder, part)]
    if not found:
        raise UserError(
            f"The folder {folder} has no VQAv2 questions: v2_OpenEnded_mscoco_val2014_questions.json and "
            f"v2_mscoco_val2014_annotations.json, as published, were expected, and the same of train2014 if there is."
        )
    rng = np.random.default_rng((seed, 7))
    if len(found) == 2:
        training, test = (
            _Drawn.read(folder, *part, rng) for part in zip(found, (train_images, test_images), strict=True)
        )
    else:
        training, test = _Drawn.read(folder, found[0], train_images + test_images, rng).divided(
            train_images, test_images
        )
    if not training.asked or not test.asked:
        raise UserError(f"The VQAv2 questions in {folder} leave nothing to learn from or to measure on: add images.")
    asked = training.asked + test.asked
    vocabulary = most_frequent((a["multiple_choice_answer"].strip().lower() for _, _, a in training.asked), answers)
    number = {image: n for n, image in enumerate([*training.images, *test.images])}
    return Questions(
        name="vqav2",
        images=FileImages(folder, list(number)),
        image_Q=np.array([number[image] for image, _, _ in asked], dtype=np.int64),
        texts=tuple(text for _, text, _ in asked),
        kinds=tuple(a["answer_type"] for _, _, a in asked),
        truths=tuple(a["multiple_choice_answer"] for _, _, a in asked),
        answers=vocabulary,
        scores_QK=_Vocabulary(vocabulary).many([[g["answer"] for g in a["answers"]] for _, _, a in asked]),
        test_Q=np.arange(len(asked)) >= len(training.asked),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Some images of one part, in random order, and what was asked of them: (image, question, annotation)."""

    images: tuple[str, ...]
    asked: tuple[tuple[str, str, dict[str, Any]], ...]

    @classmethod
    def read(cls, folder: Path, part: str, at_most: int, rng: np.random.Generator) -> _Drawn:
        files = _files(folder, part)
        assert files is not None  # of a part that was found
        questions, annotations = (
            _entries(file, key) for file, key in zip(files, ("questions", "annotations"), strict=True)
        )
        try:
            every = np.unique(np.array([q["image_id"] for q in questions], dtype=np.int64))
            order = rng.permutation(some_of(len(every), at_most, rng))
            name = {int(i): _image(folder, part, int(i)) for i in every[order]}
            text = {q["question_id"]: q["question"] for q in questions if q["image_id"] in name}
            asked = tuple(_checked(a, name, text) for a in annotations if a["image_id"] in name)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The VQAv2 files of {part} in {folder} are not of the published format ({type(error).__name__}: {error}): "
                f"download them again."
            ) from error
        return cls(tuple(name.values()), asked)

    def divided(self, train: int, test: int) -> tuple[_Drawn, _Drawn]:
        """Two parts without a common image; in proportion where there are too few for both."""
        cut = min(train, round(len(self.images) * train / (train + test)))
        return self._only(self.images[:cut]), self._only(self.images[cut : cut + test])

    def _only(self, images: tuple[str, ...]) -> _Drawn:
        kept = set(images)
        return _Drawn(images, tuple(entry for entry in self.asked if entry[0] in kept))


def _checked(annotation: dict[str, Any], name: dict[int, str], text: dict[int, str]) -> tuple[str, str, dict[str, Any]]:
    said = [annotation["answer_type"], annotation["multiple_choice_answer"]] + [
        a["answer"] for a in annotation["answers"]
    ]
    if len(said) < 3 or not all(isinstance(word, str) for word in said):
        raise ValueError(f"question {annotation['question_id']} has no answers in words")
    return name[annotation["image_id"]], text[annotation["question_id"]], annotation


def _files(folder: Path, part: str) -> tuple[Path, Path] | None:
    """The questions and annotations of a part, if both are there; the first release had no v2 in their names."""
    for release in ("v2_", ""):
        files = (
            folder / f"{release}OpenEnded_mscoco_{part}_questions.json",
            folder / f"{release}mscoco_{part}_annotations.json",
        )
        if all(file.is_file() for file in files):
            return files
    return None


def _entries(file: Path, key: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read as VQAv2's {key} ({type(error).__name__}: {error}): download it again."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file} has no {key}: download it again.")
    return entries


def _image(folder: Path, part: str, number: int) -> str:
    """Relative to the folder: below PART or images, or in the folder itself; where it is nowhere, where it ought to be."""
    file = f"COCO_{part}_{number:012d}.jpg"
    places: Iterator[str] = (f"{place}{file}" for place in (f"{part}/", f"images/{part}/", "images/", ""))
    ought = f"{part}/{file}"
    return next((place for place in places if (folder / place).is_file()), ought)
