"""Decoders that say the next word of a caption from a map of features: the paper's LSTM and a small transformer.

Tensors in, tensors out: they know no loss, no vocabulary and no search. Both say the words of several captions an image at once
(C captions in training, W hypotheses in beam search), so that what the map gives is computed once an image:

    memory = net.look(map)                                    # [B, ...]
    logits, attention = net.teacher(map, words_BCT)           # all steps, given the words
    logits, state = net.step(words_BW, memory, net.start(memory, W))   # one step, for `heads.beam`
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.heads.beam import State
from keepsight.heads.position import sine_embedding, sine_positions


class CaptionNet(nn.Module, ABC):
    """The interface of both decoders."""

    @abstractmethod
    def look(self, map_BChw: Tensor) -> State:
        """What the map gives, once an image: tensors [B, ...]."""

    @abstractmethod
    def start(self, memory: State, width: int) -> State:
        """The state before the first word of W captions an image: tensors [B, W, ...]."""

    @abstractmethod
    def step(self, words_BW: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
        """Logits [B, W, V] of the word after this one, and the state after it."""

    @abstractmethod
    def teacher(self, map_BChw: Tensor, words_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits [B, C, T, V] of the word after each given one, and the attention [B, C, T, N] over the map, where there is one."""

    def forward(self, map_BChw: Tensor, words_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """`teacher`, reached through the module call."""
        return self.teacher(map_BChw, words_BCT)


class LstmNet(CaptionNet):
    """Show, attend and tell (Xu et al. 2015), as the ViSFT paper's captioning head: soft attention over the map, and an LSTM.

        a_t = softmax_n v . relu(K x_n + Q h_t),  z_t = sigmoid(G h_t) * sum_n a_tn x_n
        h_t+1, c_t+1 = LSTM([embed(word_t), z_t], h_t, c_t),  logits = O dropout(h_t+1)

    x are the places of the map, pooled to `side` x `side` where it is larger, and brought to `width` by a linear layer (the
    paper's code attends over the channels themselves).

    Args:
        channels: Of the map.
        words: Size V of the vocabulary.
        width: Of words, attention and LSTM; 384 in the paper.
        dropout: Before the output; 0.5 in the paper.
        side: Places of the map along a side, at most; 14 in the paper.
    """

    def __init__(self, channels: int, words: int, width: int = 384, dropout: float = 0.5, side: int = 14) -> None:
        super().__init__()
        self.side = side
        self.project = nn.Linear(channels, width)
        self.embed = nn.Embedding(words, width)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.gate = nn.Linear(width, width)
        self.first = nn.Linear(width, 2 * width)
        self.cell = nn.LSTMCell(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, words)

    def look(self, map_BChw: Tensor) -> State:
        """Places [B, N, D] and their keys [B, N, D]."""
        h, w = map_BChw.shape[2:]
        if max(h, w) > self.side:
            map_BChw = F.adaptive_avg_pool2d(map_BChw, (min(h, self.side), min(w, self.side)))
        x_BND = self.project(map_BChw.flatten(2).transpose(1, 2))
        return x_BND, self.key(x_BND)

    def start(self, memory: State, width: int) -> State:
        """h and c [B, W, D], of the mean place."""
        h_BD, c_BD = self.first(memory[0].mean(dim=1)).chunk(2, dim=1)
        return h_BD[:, None].repeat(1, width, 1), c_BD[:, None].repeat(1, width, 1)

    def step(self, words_BW: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
        """See the interface."""
        state, _ = self._advance(self.embed(words_BW), memory, state)
        return self.out(self.dropout(state[0])), state

    def teacher(self, map_BChw: Tensor, words_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the interface; each step's attention [N] sums to 1."""
        memory = self.look(map_BChw)
        state = self.start(memory, words_BCT.shape[1])
        hidden, attention = [], []
        for word_BCD in self.embed(words_BCT).unbind(dim=2):
            state, attention_BCN = self._advance(word_BCD, memory, state)
            hidden.append(state[0])
            attention.append(attention_BCN)
        return self.out(self.dropout(torch.stack(hidden, dim=2))), torch.stack(attention, dim=2)

    def _advance(self, word_BCD: Tensor, memory: State, state: State) -> tuple[State, Tensor]:
        """h and c after the word, and where was looked [B, C, N]."""
        x_BND, keys_BND = memory
        h_BCD, c_BCD = state
        match_BCND = (keys_BND[:, None] + self.query(h_BCD)[:, :, None]).relu()
        attention_BCN = self.score(match_BCND).squeeze(-1).softmax(dim=-1)
        seen_BCD = self.gate(h_BCD).sigmoid() * (attention_BCN @ x_BND)
        both = torch.cat([word_BCD, seen_BCD], dim=-1).flatten(0, 1)
        h, c = self.cell(both, (h_BCD.flatten(0, 1), c_BCD.flatten(0, 1)))
        return (h.view_as(h_BCD), c.view_as(c_BCD)), attention_BCN


class TransformerNet(CaptionNet):
    """A decoder of a few pre-norm layers: self-attention over the words so far, cross-attention over all places of the map.

    Places carry 2-D sine positions, words 1-D ones. Dropout is on embeddings and on what each part adds (not within attention).

    Args:
        channels: Of the map.
        words: Size V of the vocabulary.
        width: d; a multiple of 4 and of `heads`.
        layers: Decoder layers, 2 to 4.
        heads: Attention heads.
        dropout: See above.
        tied: Whether the output layer's weights are the word embeddings.
    """

    def __init__(
        self,
        channels: int,
        words: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(channels, width)
        self.place_norm = nn.LayerNorm(width)
        self.embed = nn.Embedding(words, width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        # Tied weights are one tensor under one name: safetensors refuses a state dict that holds it twice.
        self.out: nn.Parameter | None = None if tied else nn.Parameter(self.embed.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(words))

    def look(self, map_BChw: Tensor) -> State:
        """Keys and values [B, H, N, d/H] of the places, of each layer in turn."""
        h, w = map_BChw.shape[2:]
        x_BND = self.project(map_BChw.flatten(2).transpose(1, 2))
        x_BND = self.place_norm(x_BND) + sine_positions(h, w, self.width, x_BND.device)
        return tuple(each for layer in self._layers() for each in layer.places(x_BND))

    def _layers(self) -> list[_Layer]:
        return [layer for layer in self.layers if isinstance(layer, _Layer)]

    def start(self, memory: State, width: int) -> State:
        """Keys and values [B, W, 0, d] of the words so far, of each layer in turn."""
        nothing = memory[0].new_zeros(memory[0].shape[0], width, 0, self.width)
        return tuple(nothing for _ in range(2 * len(self.layers)))

    def step(self, words_BW: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
        """See the interface."""
        logits_BW1V, state = self._advance(words_BW[..., None], memory, state)
        return logits_BW1V[:, :, 0], state

    def teacher(self, map_BChw: Tensor, words_BCT: Tensor) -> tuple[Tensor, Tensor | None]:
        """See the interface; no attention is given."""
        memory = self.look(map_BChw)
        return self._advance(words_BCT, memory, self.start(memory, words_BCT.shape[1]))[0], None

    def _advance(self, words_BCT: Tensor, memory: State, state: State) -> tuple[Tensor, State]:
        past = state[0].shape[2]
        place_T1 = torch.arange(past, past + words_BCT.shape[2], device=words_BCT.device)[:, None]
        # From a quarter turn a word down to half a turn in 64 words.
        position_TD = sine_embedding(place_T1 / 64, self.width, range_=32.0)
        x_BCTD = self.dropout(self.embed(words_BCT) * self.width**0.5 + position_TD)
        after: list[Tensor] = []
        for i, layer in enumerate(self._layers()):
            x_BCTD, *words = layer(x_BCTD, memory[2 * i : 2 * i + 2], state[2 * i : 2 * i + 2])
            after += words
        weight_VD = self.embed.weight if self.out is None else self.out
        return F.linear(self.norm(x_BCTD), weight_VD, self.bias), tuple(after)


class _Layer(nn.Module):
    """One decoder layer; what it remembers is given and returned."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.words_qkv, self.words_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.places_q, self.places_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.places_out = nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def places(self, x_BND: Tensor) -> State:
        """Keys and values [B, H, N, d/H]."""
        key_BND, value_BND = self.places_kv(x_BND).chunk(2, dim=-1)
        return self._split(key_BND), self._split(value_BND)

    def forward(self, x_BCTD: Tensor, places: State, words: State) -> tuple[Tensor, Tensor, Tensor]:
        """The words' vectors after the layer, and keys and values of all words so far [B, C, past + T, d]."""
        query, key, value = self.words_qkv(self.norms[0](x_BCTD)).chunk(3, dim=-1)
        key, value = torch.cat([words[0], key], dim=2), torch.cat([words[1], value], dim=2)
        # A single new word may look at all words; several are the first ones, each of which sees those before it and itself.
        seen = F.scaled_dot_product_attention(
            self._split(query), self._split(key), self._split(value), is_causal=query.shape[2] > 1
        )
        x_BCTD = x_BCTD + self.dropout(self.words_out(self._joined(seen)))
        query = self.places_q(self.norms[1](x_BCTD)).flatten(
            1, 2
        )  # [B, C T, d]: all captions of an image look at its one map
        seen = F.scaled_dot_product_attention(self._split(query), places[0], places[1])
        x_BCTD = x_BCTD + self.dropout(self.places_out(self._joined(seen).view_as(x_BCTD)))
        x_BCTD = x_BCTD + self.dropout(self.narrow(F.gelu(self.wide(self.norms[2](x_BCTD)))))
        return x_BCTD, key, value

    def _split(self, x_XTD: Tensor) -> Tensor:
        return x_XTD.reshape(*x_XTD.shape[:-1], self.heads, -1).transpose(-3, -2)

    def _joined(self, x_XHTd: Tensor) -> Tensor:
        return x_XHTd.transpose(-3, -2).flatten(-2)
