"""What a reader of words is taught: CTC, and a head start from letters spread evenly over the columns. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ctc(logits_BTA: Tensor, texts_BL: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean over the batch of -log p(text) / length (Graves et al. 2006, equation 14 by each letter); class 0 is the blank.

    Args:
        logits_BTA: T columns of 1 + A classes.
        texts_BL: Letters 1 to A, filled up with 0.
        lengths_B: Letters of each, at least 1. A text that does not fit into T columns (its letters, and a blank between two equal
            ones) costs nothing.
    """
    logs_TBA = logits_BTA.log_softmax(dim=2).transpose(0, 1)
    columns_B = torch.full_like(lengths_B, logits_BTA.shape[1])
    return F.ctc_loss(logs_TBA, texts_BL, columns_B, lengths_B, blank=0, zero_infinity=True)


def spread_evenly(texts_BL: Tensor, lengths_B: Tensor, columns: int) -> Tensor:
    """The letter [B, T] of each of T columns if every letter were equally wide: letter floor(t * length / T) in column t.

    Example:
        >>> spread_evenly(torch.tensor([[3, 1, 0], [1, 2, 3]]), torch.tensor([2, 3]), 6).tolist()
        [[3, 3, 3, 1, 1, 1], [1, 1, 2, 2, 3, 3]]
    """
    t_T = torch.arange(columns, device=texts_BL.device)
    place_BT = t_T * lengths_B[:, None] // columns
    return texts_BL.gather(1, place_BT)


def evenly(logits_BTA: Tensor, texts_BL: Tensor, lengths_B: Tensor) -> Tensor:
    """Mean over columns of the cross-entropy with `spread_evenly`."""
    wanted_BT = spread_evenly(texts_BL, lengths_B, logits_BTA.shape[1])
    return F.cross_entropy(logits_BTA.flatten(0, 1), wanted_BT.flatten())
