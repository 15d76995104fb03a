"""The neighbour graph of features, and labels that spread over it. Knows tensors and sparse matrices only."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from keepsight.heads.neighbours import SIMILARITIES_AT_ONCE

Array = NDArray[np.float64]


def neighbour_graph(unit_NF: Tensor, k: int) -> sparse.csr_array:
    """Normalised weights S = D^-1/2 W D^-1/2 [N, N] of the graph in which each row is tied to its k nearest.

    W = (A + A^T) / 2 with A_ij = max(cos_ij, 0)^3 for the k most similar j of i, itself excepted. Similarities are taken in
    chunks, so that memory grows with N k and not with N^2.
    """
    n = len(unit_NF)
    k = min(k, n - 1)
    if k < 1:
        return sparse.csr_array((n, n))
    values, columns = [], []
    chunk = max(1, SIMILARITIES_AT_ONCE // n)
    for first in range(0, n, chunk):
        similar = unit_NF[first : first + chunk] @ unit_NF.T
        similar[:, first:].fill_diagonal_(-torch.inf)
        top = similar.topk(k, dim=1)
        values.append(top.values.clamp(min=0).double().pow(3).cpu())
        columns.append(top.indices.cpu())
    weights = torch.cat(values).flatten().numpy()
    rows = np.repeat(np.arange(n), k)
    a = sparse.csr_array((weights, (rows, torch.cat(columns).flatten().numpy())), shape=(n, n))
    w = (a + a.T) * 0.5
    degree = np.asarray(w.sum(axis=1)).ravel()
    root = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-300)), 0.0)
    return sparse.csr_array(w.multiply(root[:, None]).multiply(root[None, :]))


def propagate(graph: sparse.csr_array, y_NC: Array, alpha: float, tolerance: float = 1e-6) -> Array:
    """Z [N, C] with (I - alpha S) Z = Y, all columns at once by conjugate gradients.

    Stops when every column's residual norm is below tolerance times the norm of that column of Y.

    Raises:
        ValueError: alpha is outside [0, 1), where the system is not positive definite.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")
    z = y_NC.copy()
    residual = alpha * (graph @ y_NC)
    direction = residual.copy()
    size = np.square(residual).sum(axis=0)
    target = np.square(y_NC).sum(axis=0) * tolerance**2
    # The condition number is at most (1 + alpha) / (1 - alpha), which bounds the iterations.
    limit = 50 + int(20 * np.sqrt((1 + alpha) / (1 - alpha)))
    for _ in range(limit):
        if np.all(size <= target):
            break
        image = direction - alpha * (graph @ direction)
        length = size / np.maximum((direction * image).sum(axis=0), 1e-300)
        z += length * direction
        residual -= length * image
        size, last = np.square(residual).sum(axis=0), size
        direction = residual + (size / np.maximum(last, 1e-300)) * direction
    return z


def posteriors(z_NK: Array, counts_K: Array) -> Array:
    """Class probabilities [N, K] of propagated labels [N, K], by class mass normalisation (Zhu et al., 2003).

    Column k is scaled to a total mass proportional to counts_k + 1, then rows to sum to one: without it the class whose labels
    happen to lie in dense places wins too much. A row that no label has reached gets the prior.

    Example:
        >>> posteriors(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 1.0])).round(2).tolist()
        [[1.0, 0.0], [0.33, 0.67], [0.5, 0.5]]
    """
    return _shares(z_NK, z_NK.sum(axis=0), counts_K)


def leave_one_out(
    graph: sparse.csr_array, labels_L: NDArray[np.int64], num_classes: int, alpha: float, tolerance: float = 1e-6
) -> Array:
    """Posteriors [L, K] of the graph's first L nodes, each from the labels of the others; exact, by one solve for all.

    With M = (I - alpha S)^-1, hiding label i takes M_ii from its class at node i, and column i of M from its class's mass.
    """
    size = len(labels_L)
    m_NL = propagate(graph, np.eye(graph.shape[0], size), alpha, tolerance)
    labels_LK = np.eye(num_classes)[labels_L]
    z_LK = m_NL[:size] @ labels_LK - np.diagonal(m_NL)[:, None] * labels_LK
    mass_LK = m_NL.sum(axis=0) @ labels_LK - m_NL.sum(axis=0)[:, None] * labels_LK
    return _shares(z_LK, mass_LK, labels_LK.sum(axis=0) - labels_LK)


def _shares(z_NK: Array, mass_K: Array, counts_K: Array) -> Array:
    """Rows proportional to z / mass * prior, the prior being that of counts + 1; mass and counts may differ by row."""
    prior_K = (counts_K + 1) / (counts_K + 1).sum(axis=-1, keepdims=True)
    p_NK = np.maximum(z_NK, 0) / np.maximum(mass_K, 1e-12) * prior_K
    total_N1 = p_NK.sum(axis=1, keepdims=True)
    shares: Array = np.where(total_N1 > 0, p_NK / np.maximum(total_N1, 1e-300), prior_K)
    return shares
