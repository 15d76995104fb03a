"""Questions and the map of an image -> logits of answers: a light fusion by attention. Tensors in, tensors out; no loss, no words.

An encoder of the question, attention of the question over the map, and a small network on what was asked, what was seen and
their product (the joint embedding of Anderson et al. 2018, arXiv 1707.07998, with dot-product attention).
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.heads.attention import Attention
from keepsight.heads.position import sine_positions


class FusionConfig(Config):
    """The network.

    Attributes:
        width: D of all layers; a multiple of 4 and of `heads`.
        heads: Attention heads.
        hidden: Width of the last hidden layer.
    """

    width: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _widths(self) -> FusionConfig:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of the attention heads ({self.heads})")
        return self


class QuestionNet(nn.Module):
    """Questions as words, as vectors of a sentence encoder, or as both, to vectors [U, D].

    Args:
        words: Size of the vocabulary, 0 being the filling; 0 for no words.
        sentence: Length E of the sentence vectors; 0 for none.
        width: D.
    """

    def __init__(self, words: int, sentence: int, width: int) -> None:
        super().__init__()
        if not words and not sentence:
            raise ValueError("a question needs words or a sentence vector")
        self.words = nn.Embedding(words, width, padding_idx=0) if words else None
        self.read = nn.GRU(width, width, batch_first=True) if words else None
        self.sentence = nn.Linear(sentence, width) if sentence else None

    def forward(self, words_UL: Tensor, sentence_UE: Tensor) -> Tensor:
        """[U, D]; the state of the GRU after the last word, and the projected sentence vector, added."""
        parts = []
        if self.words is not None and self.read is not None:
            states_ULD, _ = self.read(self.words(words_UL))
            last_U = (words_UL != 0).sum(dim=1).clamp(min=1) - 1
            parts.append(states_ULD[torch.arange(len(words_UL), device=words_UL.device), last_U])
        if self.sentence is not None:
            parts.append(self.sentence(sentence_UE))
        return torch.stack(parts).sum(dim=0)


class FusionNet(nn.Module):
    """Maps [I, C, h, w] and Q questions of each -> logits [I, Q, K].

    Args:
        channels: C.
        answers: K.
        words: See `QuestionNet`.
        sentence: See `QuestionNet`.
        config: Widths.

    Example:
        >>> net = FusionNet(channels=6, answers=3, words=9, sentence=0)
        >>> words, asked = torch.tensor([[4, 5, 0], [6, 0, 0]]), torch.tensor([[0, 1, 1, 0]])
        >>> net(torch.randn(1, 6, 2, 2), words, torch.empty(2, 0), asked).shape
        torch.Size([1, 4, 3])
    """

    def __init__(
        self, channels: int, answers: int, words: int, sentence: int, config: FusionConfig | None = None
    ) -> None:
        super().__init__()
        c = config or FusionConfig()
        self.ask = QuestionNet(words, sentence, c.width)
        self.project = nn.Sequential(nn.Linear(channels, c.width), nn.ReLU())
        self.attend = Attention(c.width, c.heads)
        self.say = nn.Sequential(nn.Linear(3 * c.width, c.hidden), nn.ReLU(), nn.Linear(c.hidden, answers))

    def forward(self, map_IChw: Tensor, words_UL: Tensor, sentence_UE: Tensor, asked_IQ: Tensor) -> Tensor:
        """Logits.

        Args:
            map_IChw: One map an image.
            words_UL: The U different questions as words, filled up with 0; [U, 0] where there are none.
            sentence_UE: The same as sentence vectors; [U, 0] where there are none.
            asked_IQ: Which of them each question of each image is.
        """
        h, w = map_IChw.shape[-2:]
        q_UD = self.ask(words_UL, sentence_UE)
        # By embedding, not by indexing: the gradient of an index is added up in an order that depends on threads.
        q_IQD = F.embedding(asked_IQ, q_UD)
        cells_IND = self.project(map_IChw.flatten(2).transpose(1, 2))
        placed_IND = cells_IND + sine_positions(h, w, cells_IND.shape[2], cells_IND.device)
        seen_IQD = self.attend(q_IQD, placed_IND, cells_IND)
        logits_IQK: Tensor = self.say(torch.cat([q_IQD, seen_IQD, q_IQD * seen_IQD], dim=2))
        return logits_IQK
