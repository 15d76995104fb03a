from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from keepsight.assets.easy_vqa import read_easy_vqa


def wheel(train: list[int], test: list[int]) -> bytes:
    """Every file holds its own name, and files of two digits come before those of one in the archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("easy_vqa/__init__.py", "raise RuntimeError('imported')")
        for part, numbers in (("train", train), ("test", test)):
            for number in sorted(numbers, key=str):
                archive.writestr(f"easy_vqa/data/{part}/images/{number}.png", f"{part}{number}")
            archive.writestr(f"easy_vqa/data/{part}/questions.json", json.dumps([["what?", "red", 0]]))
    return content.getvalue()


def test_images_are_by_number_and_questions_are_kept() -> None:
    arrays = read_easy_vqa(wheel(list(range(12)), [0, 1]))
    ends = arrays["train_ends"]
    files = [bytes(part) for part in np.split(arrays["train_png"], ends[:-1])]
    assert files == [f"train{n}".encode() for n in range(12)]
    assert arrays["test_png"].tobytes() == b"test0test1"
    assert json.loads(arrays["test_questions"].tobytes()) == [["what?", "red", 0]]


def test_missing_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images 0 to 1 in easy_vqa/data/train/images/"):
        read_easy_vqa(wheel([0, 2], [0]))
