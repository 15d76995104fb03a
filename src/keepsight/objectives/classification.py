"""Classification losses."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits_BK: Tensor, labels_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats: -1/B sum_i sum_k t_ik log softmax(logits_i)_k.

    t is one-hot, mixed with the uniform distribution: t = (1 - s) onehot + s / K.

    Args:
        logits_BK: Logits [B, K].
        labels_B: Class indices [B], int64; none may be negative (unlabelled images travel in their own stream).
        label_smoothing: s in [0, 1).

    Example:
        >>> import torch
        >>> round(cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 2])).item(), 4)
        1.3863
    """
    return F.cross_entropy(logits_BK, labels_B, label_smoothing=label_smoothing)
