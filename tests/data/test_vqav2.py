from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data.vqav2 import is_vqav2, normalise, read_vqav2, vqa_accuracy


def write_part(folder: Path, part: str, first: int, given: list[list[str]]) -> None:
    """One image and one question for each ten answers, as the published files have them."""
    (folder / part).mkdir(parents=True, exist_ok=True)
    questions, annotations = [], []
    for n, answers in enumerate(given):
        image, question = first + n, (first + n) * 1000
        Image.new("RGB", (8, 8), (n, 0, 0)).save(folder / part / f"COCO_{part}_{image:012d}.jpg")
        questions.append({"image_id": image, "question": f"what is {n}?", "question_id": question})
        annotation: dict[str, Any] = {
            "question_id": question,
            "image_id": image,
            "question_type": "what is",
            "answer_type": "yes/no" if answers[0] in ("yes", "no") else "other",
            "multiple_choice_answer": max(answers, key=answers.count),
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
        }
        annotations.insert(0, annotation)  # the files' orders differ
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": part}
    path = folder / f"v2_OpenEnded_mscoco_{part}_questions.json"
    path.write_text(json.dumps(head | {"task_type": "Open-Ended", "questions": questions}))
    (folder / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps(head | {"annotations": annotations}))


def by_subsets(answer: str, given: list[str]) -> float:
    """The published definition, written out: each person left out once."""
    others = [given[:i] + given[i + 1 :] for i in range(len(given))]
    return sum(min(rest.count(answer) / 3, 1) for rest in others) / len(others)


@pytest.mark.parametrize("same", range(11))
def test_accuracy_is_the_mean_over_those_left_out(same: int) -> None:
    given = ["red"] * same + ["blue"] * (10 - same)
    assert vqa_accuracy("red", given) == pytest.approx(by_subsets("red", given))
    assert vqa_accuracy("red", given) == pytest.approx(min(same * 0.3, 1.0))


def test_answers_are_compared_as_published() -> None:
    pairs = {
        "The DOG.": "dog",
        "three": "3",
        "none": "0",
        "wheres it": "where's it",
        "couldnt've": "couldn't've",
        "yes, it is": "yes it is",
        "black/white": "black white",
        "black / white": "black white",
        "10,000": "10000",
        "3.5": "3.5",
        "u.s.": "us",
        "a\tb\nc": "b c",
        "what ?": "what",
    }
    assert {text: normalise(text) for text in pairs} == pairs


def test_where_all_agree_answers_are_compared_as_they_stand() -> None:
    assert vqa_accuracy("T-shirt", ["t-shirt"] * 10) == 1
    assert vqa_accuracy("t shirt", ["t-shirt"] * 10) == 0
    assert vqa_accuracy("t shirt", ["t-shirt"] * 9 + ["shirt"]) == 1


def test_two_parts_are_learnt_from_and_measured_on(tmp_path: Path) -> None:
    write_part(tmp_path, "train2014", 1, [["yes"] * 10, ["red"] * 8 + ["Red."] * 2, ["yes"] * 10, ["rare"] * 10])
    write_part(tmp_path, "val2014", 100, [["red"] * 2 + ["blue"] * 8, ["no"] * 10])
    found = read_vqav2(tmp_path, train_images=100, test_images=100, answers=2)
    assert found.answers == ("yes", "rare")
    found = read_vqav2(tmp_path, train_images=100, test_images=100, answers=3)
    assert found.answers == ("yes", "rare", "red")
    rows = {found.images.name(int(i)): q for q, i in enumerate(found.image_Q)}
    blue = rows["val2014/COCO_val2014_000000000100.jpg"]
    assert found.scores_QK[blue].tolist() == pytest.approx([0, 0, 0.6])
    assert found.texts[blue] == "what is 0?"
    assert found.truths[blue] == "blue"
    assert found.test_Q[blue]
    assert not found.scores_QK[rows["val2014/COCO_val2014_000000000101.jpg"]].any()  # "no" is in no training answer
    assert found.scores_QK[rows["train2014/COCO_train2014_000000000002.jpg"]].tolist() == [0, 0, 1]
    assert found.test_Q.sum() == 2
    assert sorted(found.kinds) == ["other", "other", "other", "yes/no", "yes/no", "yes/no"]
    assert found.images.load(int(found.image_Q[blue])).size == (8, 8)


def test_one_part_is_divided_by_images_and_limited(tmp_path: Path) -> None:
    write_part(tmp_path, "val2014", 1, [["yes"] * 10] * 12)
    found = read_vqav2(tmp_path, train_images=6, test_images=3)
    assert len(found.images) == 9
    assert found.test_Q.sum() == 3
    few = read_vqav2(tmp_path, train_images=60, test_images=60)
    assert (len(few.images), int(few.test_Q.sum())) == (12, 6)
    again = read_vqav2(tmp_path, train_images=6, test_images=3)
    assert np.array_equal(found.image_Q, again.image_Q)
    other = read_vqav2(tmp_path, train_images=6, test_images=3, seed=1)
    assert [other.images.name(i) for i in range(9)] != [found.images.name(i) for i in range(9)]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    assert not is_vqav2(tmp_path)
    with pytest.raises(UserError, match=r"v2_OpenEnded_mscoco_val2014_questions\.json"):
        read_vqav2(tmp_path, 1, 1)
    write_part(tmp_path, "val2014", 1, [["yes"] * 10] * 4)
    assert is_vqav2(tmp_path)
    file = tmp_path / "v2_mscoco_val2014_annotations.json"
    whole = json.loads(file.read_text())
    del whole["annotations"][0]["answers"]
    file.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="not of the published format"):
        read_vqav2(tmp_path, 2, 2)
    file.write_text("{}")
    with pytest.raises(UserError, match="download it again"):
        read_vqav2(tmp_path, 2, 2)
