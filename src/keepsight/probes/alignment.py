"""Images and texts in one space: a backbone's own text tower, or LiT's alignment with a frozen one. Knows no probe.

LiT (Zhai et al. 2022, arXiv 2111.07991) with both towers frozen: a small head learns from image-caption pairs. It is fitted by the
same rule whatever the backbone, several times over, and its own noise is part of what a probe reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from keepsight.backbones.text import MINILM, load_text_tower
from keepsight.core import Batch, Config, Fit, Readout, Schedule, TextTower, Trainable, View
from keepsight.heads.alignment import AlignmentHead
from keepsight.heads.token import make_token
from keepsight.objectives.contrastive import contrastive

TEXTS_AT_ONCE = 64


class AlignmentConfig(Config):
    """How a backbone without a text tower gets one.

    Attributes:
        tower: The text tower, see `load_text_tower`.
        readout: What is read of the backbone, such as "8,10:mean"; None for `default_readout`.
        reduced: Principal axes of the features that the head works on.
        power: Each axis is divided by its variance to this power.
        hidden: Width of a hidden layer; 0 for a linear projection.
        dropout: Share of the token's entries dropped in training.
        text_side: Whether texts get a linear map of their own.
        seeds: How often the head is fitted.
        schedule: How it is trained.
    """

    tower: str = MINILM
    readout: str | None = None
    reduced: int = Field(default=128, ge=1)
    power: float = Field(default=0.25, ge=0, le=0.5)
    hidden: int = Field(default=0, ge=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    text_side: bool = False
    seeds: int = Field(default=4, ge=1)
    schedule: Schedule = Schedule(steps=100, batch_size=256, lr=3e-3)

    @field_validator("readout")
    @classmethod
    def _readout(cls, readout: str | None) -> str | None:
        return None if readout is None else str(Readout.parse(readout))


def default_readout(depth: int) -> Readout:
    """Class token and mean of the patches of the blocks at two thirds and five sixths of the depth, and of the last.

    Example:
        >>> str(default_readout(12)), str(default_readout(4)), str(default_readout(1))
        ('8,10,12:cls+mean', '3,4:cls+mean', '1:cls+mean')
    """
    blocks = sorted({max(1, round(depth * share)) for share in (2 / 3, 5 / 6, 1)})
    return Readout(blocks=tuple(blocks), pools=("cls", "mean"))


@dataclass(frozen=True, slots=True)
class Examples:
    """What is learnt from.

    Attributes:
        rows: N images.
        captions: Of each, at least one.
    """

    rows: NDArray[np.int64]
    captions: tuple[tuple[str, ...], ...]


@final
class FrozenTexts:
    """Embeddings of texts by a frozen tower, each computed once; the tower is loaded when it is first asked."""

    def __init__(self, tower: str) -> None:
        self._name = tower
        self._known: dict[str, Tensor] = {}
        self._tower: TextTower | None = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[T, E] of unit length.

        Raises:
            UserError: The tower, or the package that it needs, is not there.
        """
        if new := sorted(set(texts) - self._known.keys()):
            if self._tower is None:
                self._tower = load_text_tower(self._name)
            self._known |= dict(zip(new, encoded(self._tower, new), strict=True))
        return torch.stack([self._known[text] for text in texts])


def encoded(tower: TextTower, texts: Sequence[str]) -> Tensor:
    """[T, E] of unit length on the CPU, texts of like length together, so that little is spent on filling."""
    order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), texts[place]))
    found = torch.empty(len(texts), tower.width)
    with torch.inference_mode():
        for start in range(0, len(order), TEXTS_AT_ONCE):
            places = order[start : start + TEXTS_AT_ONCE]
            found[places] = tower.encode([texts[place] for place in places]).float().cpu()
    return found.clone()


@final
class _Alignment(Trainable):
    """A head and the pairs that it learns from; an input is the number of a pair."""

    def __init__(
        self, head: AlignmentHead, tokens_ND: Tensor, image_M: Tensor, texts_TE: Tensor, text_M: Tensor
    ) -> None:
        super().__init__()
        self.head = head
        parts = {"tokens_ND": tokens_ND, "image_M": image_M, "texts_TE": texts_TE, "text_M": text_M}
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """See `objectives.contrastive`."""
        del phase, step
        text_B = self.get_buffer("text_M")[batch.inputs]
        token_BD = self.get_buffer("tokens_ND")[self.get_buffer("image_M")[batch.inputs]]
        v_BE = self.head.texts(self.get_buffer("texts_TE")[text_B])
        return {"contrastive": contrastive(self.head.of_tokens(token_BD), v_BE, self.head.scale(), text_B)}


def embed(
    view: View,
    fit: Fit,
    config: AlignmentConfig,
    embed_texts: FrozenTexts,
    learn: Examples,
    rows: NDArray[np.int64],
    texts: Sequence[str],
    *,
    seed: int = 0,
    shuffled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Images [S, N, E] and texts [S, T, E], all of unit length, in S spaces: the backbone's own (S = 1), or one of each fit.

    Args:
        view: Of a probe's images.
        fit: Trains heads.
        config: How images and texts are aligned.
        embed_texts: The frozen tower.
        learn: Pairs to align by; not looked at where the backbone has a text tower.
        rows: Images to embed.
        texts: Texts to embed.
        seed: Of the first head; the others follow.
        shuffled: Align by captions that are permuted among the images.
    """
    if view.text is not None:
        return view.embeddings(rows)[None], encoded(view.text, texts)[None]
    readout = (default_readout(view.depth) if config.readout is None else Readout.parse(config.readout)).resolved(
        view.depth
    )
    known = sorted({caption for captions in learn.captions for caption in captions})
    known_TE, texts_TE = embed_texts(known), embed_texts(texts)
    place = {caption: number for number, caption in enumerate(known)}
    features_NF = view.vectors(learn.rows, readout)
    asked_BF = view.vectors(rows, readout)
    token = make_token(features_NF, (), config.reduced, power=config.power)
    images, sentences = [], []
    for number in range(config.seeds):
        captions = learn.captions
        if shuffled:
            order = np.random.default_rng((seed, number, 1)).permutation(len(captions))
            captions = tuple(captions[other] for other in order.tolist())
        image_M = torch.tensor([i for i, own in enumerate(captions) for _ in own])
        text_M = torch.tensor([place[caption] for own in captions for caption in own])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            features, reduced = token.axes_FD.shape
            width = known_TE.shape[1]
            head = AlignmentHead(features, reduced, width, config.hidden, config.dropout, config.text_side)
        head.reduction.take(token)
        head.mean_E.copy_(known_TE.mean(dim=0))
        model = _Alignment(head, token.z_ND, image_M, known_TE, text_M)
        fit(model, len(text_M), config.schedule, seed + number, f"alignment {number + 1} of {config.seeds}")
        head.eval().cpu()
        with torch.inference_mode():
            images.append(head.images(asked_BF))
            sentences.append(head.texts(texts_TE))
    return torch.stack(images), torch.stack(sentences)
