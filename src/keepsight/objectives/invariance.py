"""How far features have moved from the ones they started as, in units of those. Pure functions: features in, a scalar out.

X are features now, X0 the same images' features before, [N, F] each; the second argument is always the reference, which no
function here changes or averages over time. Everything is normalised by the reference, so that features of both networks times
any factor give the same value, and one weight serves backbones and data sets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.objectives.pairs import centred, full_precision
from keepsight.objectives.similarity import linear_cka, procrustes_distance


def covariance(x_NF: Tensor) -> Tensor:
    """Covariance [F, F] about the rows' own mean, divided by N: the plug-in estimate, of which a single row's is zero.

    Example:
        >>> covariance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    z_NF = centred(x_NF)
    with full_precision(z_NF):
        return z_NF.T @ z_NF / len(z_NF)


def effective_rank(c_FF: Tensor) -> Tensor:
    """(tr C)^2 / ||C||_F^2, from 1 (one direction) to F (white): how many directions a covariance has.

    A covariance estimated from n normal rows misses the true one by E||C_n - C||_F^2 = (effective rank + 1) / (n - 1) ||C||_F^2.

    Example:
        >>> effective_rank(torch.eye(5)).item()
        5.0
    """
    return torch.trace(c_FF).square() / _positive(c_FF.square().sum())


def rotation(skew_FF: Tensor) -> Tensor:
    """The orthogonal matrix (I + A)^-1 (I - A), A = L - L^T of the strictly lower triangle L: Cayley's map, I at zero.

    It reaches every rotation without an eigenvalue -1, and no reflection.

    Example:
        >>> rotation(torch.zeros(2, 2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    lower_FF = skew_FF.tril(-1)
    a_FF = lower_FF - lower_FF.T
    eye_FF = torch.eye(len(skew_FF), dtype=skew_FF.dtype, device=skew_FF.device)
    q_FF: Tensor = torch.linalg.solve(eye_FF + a_FF, eye_FF - a_FF)
    return q_FF


def covariance_gap(c_FF: Tensor, c0_FF: Tensor, q_FF: Tensor | None = None) -> Tensor:
    """||C - Q^T C0 Q||_F^2 / ||C0||_F^2, with an orthogonal Q; None is the identity.

    RIFT as reconstructed from the abstract of Zu et al. 2025 ('Exploring Representation Invariance in Finetuning'); the norm and
    its normalisation are ours. Zero does not mean that the features are alike: independent features may have one covariance.

    Example:
        >>> covariance_gap(2 * torch.eye(3), torch.eye(3)).item()
        1.0
    """
    with full_precision(c_FF):
        target_FF = c0_FF if q_FF is None else q_FF.T @ c0_FF @ q_FF
    return (c_FF - target_FF).square().sum() / _positive(c0_FF.square().sum())


def feature_covariance_gap(x_NF: Tensor, x0_NF: Tensor) -> Tensor:
    """`covariance_gap` of the covariances of features of the same N images, in O(N^2 F) where N < F, without an F x F matrix.

    With centred Y = X - X0 and Z = X + X0: X^T X - X0^T X0 = (Y^T Z + Z^T Y) / 2, of which the squared norm is
    (<Y Y^T, Z Z^T> + <Z Y^T, Y Z^T>) / 2. Nothing cancels where little has changed.
    """
    if len(x_NF) >= x_NF.shape[1]:
        return covariance_gap(covariance(x_NF), covariance(x0_NF))
    x_NF, x0_NF = centred(x_NF), centred(x0_NF)
    y_NF, z_NF = x_NF - x0_NF, x_NF + x0_NF
    with full_precision(x_NF):
        cross_NN = z_NF @ y_NF.T
        squared = ((y_NF @ y_NF.T) * (z_NF @ z_NF.T)).sum() + (cross_NN * cross_NN.T).sum()
        return 0.5 * squared / _positive((x0_NF @ x0_NF.T).square().sum())


def spectrum_gap(c: Tensor, c0: Tensor) -> Tensor:
    """sum_i (l_i - l0_i)^2 / sum_i l0_i^2 of the sorted eigenvalues: `covariance_gap` with the best of all Q.

    min over Q of ||C - Q^T C0 Q||_F^2 (Hoffman-Wielandt). The two symmetric matrices may differ in size (a covariance, and a Gram
    matrix with the same eigenvalues but fewer zeros): what is missing counts as zero.

    Example:
        >>> spectrum_gap(torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([2.0, 1.0]))).item()
        0.0
    """
    values, values0 = torch.linalg.eigvalsh(c), torch.linalg.eigvalsh(c0)
    length = max(len(values), len(values0))
    values, values0 = (F.pad(v, (length - len(v), 0)).sort().values for v in (values, values0))
    return (values - values0).square().sum() / _positive(values0.square().sum())


def feature_spectrum_gap(x_NF: Tensor, x0_NF: Tensor) -> Tensor:
    """`spectrum_gap` of the covariances of features of the same images, through the smaller of covariance and Gram matrix."""

    def small(x_NF: Tensor) -> Tensor:
        if len(x_NF) >= x_NF.shape[1]:
            return covariance(x_NF)
        z_NF = centred(x_NF)
        with full_precision(z_NF):
            return z_NF @ z_NF.T / len(z_NF)

    return spectrum_gap(small(x_NF), small(x0_NF))


def procrustes_gap(x_NF: Tensor, x0_NF: Tensor) -> Tensor:
    """min over orthogonal Q of ||X - X0 Q||_F^2 / ||X0||_F^2, centred: blind to rotation, and tied to which image is which."""
    return procrustes_distance(x_NF, x0_NF)


def cka_gap(x_NF: Tensor, x0_NF: Tensor, debiased: bool = True) -> Tensor:
    """1 - linear CKA (Kornblith et al. 2019): blind to rotation and scale; the debiased one needs four images.

    Biased CKA of N independent F-dimensional features is about F / (F + N), so that in a small batch little of the gap is left.
    """
    return 1 - linear_cka(x_NF, x0_NF, debiased=debiased)


def feature_distance(x_NF: Tensor, x0_NF: Tensor) -> Tensor:
    """Mean ||x - x0||^2, divided by the total variance of x0: 0 unchanged, 1 where all images get the mean feature.

    Feature distillation (Romero et al. 2015, FitNets), normalised. The mean of the features counts too: a shift is a change.

    Example:
        >>> feature_distance(torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]])).item()
        1.0
    """
    return (x_NF - x0_NF).square().sum() / _positive(centred(x0_NF).square().sum())


def layerwise_distance(layers: Sequence[Tensor], layers0: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the mean over images and tokens of ||x/||x|| - x0/||x0||||^2, from 0 to 4; layers are [..., D] each.

    LDIFS (Mukhoti et al. 2023, arXiv 2308.13320), with each token's feature vector normalised over its channels as in LPIPS, which
    the paper builds on. The published code normalises another axis; ours is a reconstruction. Blind to the length of features.

    Example:
        >>> layerwise_distance([torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 3.0]])]).item()
        2.0
    """
    if not layers or len(layers) != len(layers0):
        raise ValueError(f"layers must be paired, and at least one: got {len(layers)} and {len(layers0)}")
    distances = [
        (F.normalize(x, dim=-1) - F.normalize(x0, dim=-1)).square().sum(dim=-1).mean()
        for x, x0 in zip(layers, layers0, strict=True)
    ]
    return torch.stack(distances).mean()


def weighted_map_distance(map_BND: Tensor, map0_BND: Tensor, weight_D: Tensor) -> Tensor:
    """sum_d w_d mean (x_d - x0_d)^2 / sum_d w_d var(x0_d), of feature maps [B, N, D]; mean and variance over images and places.

    DELTA (Li et al. 2019, arXiv 1901.09229) for one layer, normalised; w says which channels matter and has no gradient here.
    A factor on all weights changes nothing.

    Example:
        >>> x0 = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
        >>> weighted_map_distance(torch.zeros(1, 2, 2), x0, torch.ones(2)).item()
        1.0
    """
    x_MD, x0_MD, w_D = map_BND.flatten(0, -2), map0_BND.flatten(0, -2), weight_D.detach()
    moved = (w_D * (x_MD - x0_MD).square().mean(dim=0)).sum()
    return moved / _positive((w_D * centred(x0_MD).square().mean(dim=0)).sum())


def activation_attention(map_BND: Tensor) -> Tensor:
    """Weights [D] of mean 1: a channel's standard deviation over images and places, over the mean of these.

    Stands in for DELTA's weights, which ask for the loss of a classifier without each channel in turn: a reconstruction that needs
    no labels. 1 for all where nothing varies.
    """
    std_D = map_BND.flatten(0, -2).std(dim=0, correction=0)
    return torch.where(std_D.sum() > 0, std_D / _positive(std_D.mean()), torch.ones_like(std_D))


def batch_spectral_shrinkage(x_NF: Tensor, k: int = 1) -> Tensor:
    """Sum of the k smallest squared singular values of the features, over their mean squared singular value (no gradient there).

    BSS (Chen et al. 2019, 'Catastrophic Forgetting Meets Negative Transfer'), normalised. It suppresses directions that the task
    does not use and looks at no reference. Features are not centred, as in the paper; k above the number of values takes all.

    Example:
        >>> round(batch_spectral_shrinkage(torch.diag(torch.tensor([3.0, 1.0])), k=1).item(), 4)
        0.2
    """
    squared: Tensor = torch.linalg.svdvals(x_NF).square()  # falling
    return squared[-k:].sum() / _positive(squared.detach().mean())


def _positive(x: Tensor) -> Tensor:
    """Kept off zero, so far down that only features which do not vary at all meet it, and what is divided by it stays finite."""
    return x.clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
