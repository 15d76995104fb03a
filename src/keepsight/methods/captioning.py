"""The captioning head: learns from the words that were written, and is asked for words it finds itself. Knows no backbone."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Answer, Config, Target, Task, TaskHead, processes
from keepsight.data.words import BEGIN, END, FILLING, SPECIAL, UNKNOWN
from keepsight.heads.beam import beam_search
from keepsight.heads.caption import CaptionNet, LstmNet, TransformerNet
from keepsight.methods.draws import of_image
from keepsight.objectives.captions import doubly_stochastic, next_word


class CaptionConfig(Config):
    """How a caption head is built, learns and answers.

    Attributes:
        kind: "transformer", or "lstm" (the paper's).
        width: Of all layers.
        layers: Of the transformer.
        heads: Attention heads of the transformer.
        tied: Whether the transformer's output weights are its word embeddings.
        side: The LSTM's map is pooled to so many places a side, where it is larger.
        dropout: While training.
        label_smoothing: Of the words.
        attention: Weight of the LSTM's term for looking everywhere.
        all_captions: Learn from all captions of an image at each step; otherwise from one of them, drawn anew.
        beam: Hypotheses of the search; 1 is greedy.
        length_penalty: Exponent of the length by which log probabilities are divided.
        max_length: Words of a generated caption, at most.
    """

    kind: Literal["transformer", "lstm"] = "transformer"
    width: int = Field(default=128, ge=8)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    tied: bool = True
    side: int = Field(default=14, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    attention: float = Field(default=1.0, ge=0)
    all_captions: bool = False
    beam: int = Field(default=3, ge=1)
    length_penalty: float = Field(default=0.7, ge=0)
    max_length: int = Field(default=30, ge=1)

    @model_validator(mode="after")
    def _widths(self) -> CaptionConfig:
        if self.kind == "transformer" and (self.width % self.heads or self.width % 4):
            raise ValueError(f"width {self.width} must be a multiple of 4 and of the attention heads ({self.heads})")
        return self


PAPER = CaptionConfig(kind="lstm", width=384, dropout=0.5)
"""The ViSFT paper's head; its vocabulary has `data.words.PAPER_MIN_COUNT`. Its decoding is not known to us: the beam is ours."""


class CaptionHead(TaskHead):
    """Captions from a map of features [B, C, h, w].

    While training, one of an image's captions is drawn at random at each step (`Target.draw`), or all are learned from
    (`all_captions`); in evaluation mode the loss is of all. It is a mean over the words of the global batch. Images without a
    caption contribute nothing.

    Args:
        channels: Of the map.
        words: Size of the vocabulary, `len(Words)`.
        config: A config, or what `shape` gave.
    """

    task: Task = "captioning"

    def __init__(self, channels: int, words: int, config: CaptionConfig | dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = CaptionConfig() if config is None else CaptionConfig.model_validate(config)
        self.channels, self.words = channels, words
        if words <= len(SPECIAL):
            raise ValueError(f"a vocabulary of {words} entries has no word beside the {len(SPECIAL)} special ones")
        c = self.config
        self.net: CaptionNet = (
            LstmNet(channels, words, c.width, c.dropout, c.side)
            if c.kind == "lstm"
            else TransformerNet(channels, words, c.width, c.layers, c.heads, c.dropout, c.tied)
        )

    def losses(self, map_BChw: Tensor, targets: tuple[Target, ...]) -> dict[str, Tensor]:
        """ "caption": nats per word; "attention" (LSTM): see `objectives.captions.doubly_stochastic`."""
        words_BCT = _stacked(targets).to(map_BChw.device)
        if self.training and not self.config.all_captions:
            words_BCT = _one_each(words_BCT, targets)
        given_BCT, next_BCT = words_BCT[..., :-1], words_BCT[..., 1:]
        said_BCT = next_BCT != FILLING
        counts = processes.averaged(torch.stack([said_BCT.sum(), said_BCT.any(dim=2).sum()]).float())
        logits_BCTV, attention_BCTN = self.net(map_BChw, given_BCT)
        found = {"caption": next_word(logits_BCTV, next_BCT, counts[0], self.config.label_smoothing)}
        if attention_BCTN is not None and self.config.attention > 0:
            found["attention"] = self.config.attention * doubly_stochastic(attention_BCTN, next_BCT, counts[1])
        return found

    @torch.no_grad()
    def answers(self, map_BChw: Tensor) -> list[Answer]:
        """Generated captions, by beam search."""
        if len(map_BChw) == 0:
            return []
        memory = self.net.look(map_BChw)
        words_BL, _ = beam_search(
            lambda words_BW, state: self.net.step(words_BW, memory, state),
            self.net.start(memory, self.config.beam),
            begin=BEGIN,
            end=END,
            banned=(FILLING, BEGIN, UNKNOWN),
            max_length=self.config.max_length,
            length_penalty=self.config.length_penalty,
        )
        return [Answer(words=words_L[words_L != FILLING]) for words_L in words_BL]

    def shape(self) -> dict[str, Any]:
        """See the base class."""
        return {"channels": self.channels, "words": self.words, "config": self.config.model_dump(mode="json")}


def _stacked(targets: tuple[Target, ...]) -> Tensor:
    """All images' captions [B, C, T], filled up with 0; T is at least 2 and C at least 1, so that there always is a step."""
    most = max([1, *(target.words.shape[0] for target in targets)])
    longest = max([2, *(target.words.shape[1] for target in targets)])
    missing = [(longest - target.words.shape[1], most - target.words.shape[0]) for target in targets]
    return torch.stack(
        [F.pad(t.words, (0, words, 0, captions)) for t, (words, captions) in zip(targets, missing, strict=True)]
    )


def _one_each(words_BCT: Tensor, targets: tuple[Target, ...]) -> Tensor:
    """One caption [B, 1, T] of each image, drawn at random from those it has; as short as the longest drawn."""
    there_BC = (words_BCT != FILLING).any(dim=2)
    count_B = there_BC.sum(dim=1)
    u_B = torch.stack([torch.rand((), generator=of_image(target)) for target in targets]).to(words_BCT.device)
    chosen_B = torch.minimum((u_B * count_B).long(), (count_B - 1).clamp(min=0))
    row_B = (there_BC.cumsum(dim=1) > chosen_B[:, None]).int().argmax(dim=1)
    words_B1T = words_BCT[torch.arange(len(words_BCT), device=words_BCT.device), row_B][:, None]
    longest = int((words_B1T != FILLING).sum(dim=2).max())
    return words_B1T[..., : max(longest, 2)]
