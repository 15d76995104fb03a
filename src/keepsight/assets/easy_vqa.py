"""Reads the images and questions of easy-VQA out of its package. Knows nothing of where the package came from."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = ("train", "test")


def read_easy_vqa(content: bytes) -> dict[str, NDArray[Any]]:
    """The whole wheel, a zip with ``easy_vqa/data/PART/images/NUMBER.png`` and ``easy_vqa/data/PART/questions.json``.

    Returns:
        For each part, ``PART_png`` (uint8, all PNG files behind each other, by number), ``PART_ends`` (int64 [N], where each
        of them ends) and ``PART_questions`` (uint8, the bytes of the JSON file: a list of [question, answer, number]).

    Raises:
        ValueError: The numbers of a part are not 0 to N - 1.
    """
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for part in PARTS:
            folder = f"easy_vqa/data/{part}/"
            images = f"{folder}images/"
            numbers = sorted(
                int(name.removeprefix(images).removesuffix(".png"))
                for name in archive.namelist()
                if name.startswith(images) and name.endswith(".png")
            )
            if numbers != list(range(len(numbers))) or not numbers:
                raise ValueError(f"expected images 0 to {len(numbers) - 1} in {images}, found other numbers")
            files = [archive.read(f"{images}{number}.png") for number in numbers]
            arrays[f"{part}_png"] = np.frombuffer(b"".join(files), np.uint8)
            arrays[f"{part}_ends"] = np.cumsum([len(file) for file in files], dtype=np.int64)
            arrays[f"{part}_questions"] = np.frombuffer(archive.read(f"{folder}questions.json"), np.uint8)
    return arrays
