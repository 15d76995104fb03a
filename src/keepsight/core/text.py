"""The abstract text tower: sentences in, embeddings out. Knows no library of models and no tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class TextTower(nn.Module, ABC):
    """A pretrained text encoder.

    Attributes:
        name: What `load_text_tower` was asked for.
        width: Length E of an embedding.
    """

    name: str
    width: int

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, E] of B texts, of unit length; texts that are too long are cut and this is said in the log once."""

    @abstractmethod
    def weights_hash(self) -> str:
        """Sha256 (hex) over the names, shapes and bytes of all weights as they are now."""
