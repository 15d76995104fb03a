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


def binary_cross_entropy(logits_BK: Tensor, targets_BK: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over images and classes of the binary cross-entropy in nats.

    -1/(B K) sum_ik t_ik log p_ik + (1 - t_ik) log(1 - p_ik) with p = sigmoid(logits).

    t is 0 or 1, mixed with one half: t = (1 - s) target + s / 2.

    Args:
        logits_BK: Logits [B, K].
        targets_BK: 1 for the classes that an image has, else 0 [B, K].
        label_smoothing: s in [0, 1).

    Example:
        >>> import torch
        >>> round(binary_cross_entropy(torch.zeros(3, 4), torch.ones(3, 4)).item(), 4)
        0.6931
    """
    soft_BK = (1 - label_smoothing) * targets_BK.to(logits_BK) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits_BK, soft_BK)
