"""Losses of captioning: how surprised a decoder is by the next word, and whether it looked everywhere. Tensors in, scalars out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def next_word(logits_XTV: Tensor, words_XT: Tensor, count: Tensor | float, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy per word, in nats: -1/count sum_xt log softmax(logits_xt)_word, over places whose word is not 0 (filling).

    Args:
        logits_XTV: Logits [..., T, V] of the next word.
        words_XT: That word [..., T], int64; the end of a caption counts as one.
        count: What the sum is divided by: words in the global batch divided by the number of processes; with none, 0 or 1.
        label_smoothing: s in [0, 1): the target is (1 - s) onehot + s / V.

    Example:
        >>> words = torch.tensor([[5, 2, 0]])
        >>> round(next_word(torch.zeros(1, 3, 8), words, count=2).item(), 4)
        2.0794
    """
    total = F.cross_entropy(
        logits_XTV.flatten(0, -2).float(),
        words_XT.flatten(),
        ignore_index=0,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / _not_zero(count, total)


def doubly_stochastic(attention_XTN: Tensor, words_XT: Tensor, count: Tensor | float) -> Tensor:
    """1/(count N) sum_xn (1 - sum_t attention_xtn)^2: over a whole caption every place of the map is to be looked at once.

    Xu et al., "Show, Attend and Tell" (2015), equation 14, as a mean over places. Only steps whose word is not 0 count, and only
    captions that have any.

    Args:
        attention_XTN: Weights [..., T, N] of the N places of the map at each of T steps; each step's sum is 1.
        words_XT: The words [..., T] to be said, 0 where there is none.
        count: What the sum over captions is divided by: captions in the global batch divided by the number of processes.

    Example:
        >>> once = torch.eye(3)[None]
        >>> doubly_stochastic(once, torch.tensor([[5, 6, 2]]), count=1).item()
        0.0
    """
    said_XT = words_XT != 0
    looked_XN = (attention_XTN.float() * said_XT[..., None]).sum(dim=-2)
    missing_X = (1 - looked_XN).square().mean(dim=-1)
    total = (missing_X * said_XT.any(dim=-1)).sum()
    return total / _not_zero(count, total)


def _not_zero(count: Tensor | float, like: Tensor) -> Tensor:
    """The count, or 1 where there is nothing to count (a share of one process may be below 1)."""
    count = torch.as_tensor(count, dtype=like.dtype, device=like.device)
    return torch.where(count > 0, count, torch.ones_like(count))
