"""Reads the sentence encoder MiniLM-L6 out of a zip of its published files. Knows nothing of where the zip came from."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

TOKENIZER, DESCRIPTION = "tokenizer.json", "config.json"
"""Files that are kept as bytes beside the weights, under their names."""

LEFT_OUT = ("embeddings.position_ids", "pooler.")
"""A counter, and a layer that the mean over tokens does not use."""


def read_minilm(content: bytes) -> dict[str, NDArray[Any]]:
    """The weights under the names of transformers' BertModel, and `TOKENIZER` and `DESCRIPTION` as uint8 arrays of their bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        weights: dict[str, NDArray[Any]] = safetensors.numpy.load(archive.read("model.safetensors"))
        texts = {name: np.frombuffer(archive.read(name), np.uint8) for name in (TOKENIZER, DESCRIPTION)}
    return {name: array for name, array in weights.items() if not name.startswith(LEFT_OUT)} | texts
