"""The symmetric contrastive loss of image-text pairs. Tensors in, a scalar out; knows no tower."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(image_BE: Tensor, text_BE: Tensor, scale: Tensor | float, captions_B: Tensor | None = None) -> Tensor:
    """1/2 mean_i [-log softmax_j(s <u_i, v_j>)_i - log softmax_j(s <u_j, v_i>)_i], nats.

    CLIP's loss (Radford et al. 2021, arXiv 2103.00020, figure 3), which LiT trains one side with (Zhai et al. 2022, arXiv
    2111.07991). Another pair j with the same caption is left out of both sums: it is right as well, and no negative. Without any
    negative the loss is zero.

    Args:
        image_BE: u, of unit length.
        text_BE: v, of unit length.
        scale: s > 0, one divided by the temperature.
        captions_B: Numbers of the captions [B]: equal numbers are the same caption; None where all differ.

    Example:
        >>> u = torch.eye(2)
        >>> round(contrastive(u, u, scale=1.0).item(), 4)
        0.3133
        >>> contrastive(u, u, 1.0, torch.tensor([7, 7])).item()
        0.0
    """
    logits_BB = scale * (image_BE @ text_BE.T)
    if captions_B is not None:
        same_BB = captions_B[:, None] == captions_B[None, :]
        same_BB = same_BB & ~torch.eye(len(captions_B), dtype=torch.bool, device=captions_B.device)
        logits_BB = logits_BB.masked_fill(same_BB, -torch.inf)
    own_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
