"""Label propagation over labelled and unlabelled features. Knows features and labels only."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import FeatureMethod, Token
from keepsight.data.splits import stratified_folds
from keepsight.heads.graph import Array, neighbour_graph, posteriors, propagate
from keepsight.heads.linear import standardisation
from keepsight.heads.neighbours import NeighbourHead, smoothed_log, unit_rows
from keepsight.methods.tokens import TokenConfig

PRIOR_WIDTH = 0.3
"""Standard deviation of the sharpness' logarithm around its default before any label is seen."""


class LabelPropagationConfig(TokenConfig):
    """Settings of `LabelPropagation`.

    Attributes:
        k: Neighbours of each node in the graph, and of a new image among the nodes.
        alpha: Share of a node's value that comes from its neighbours.
        tolerance: Relative residual at which conjugate gradients stop.
        folds: Folds of hidden labels on which the sharpness of the probabilities is fitted.
        default_sharpness: Used where a class has a single label, so that nothing can be hidden.
        views: 0 compares the plain images' features; with views tokens are compared, each image as the mean of its views.
    """

    k: int = Field(default=5, ge=1)
    alpha: float = Field(default=0.95, ge=0, lt=1)
    tolerance: float = Field(default=1e-6, gt=0)
    folds: int = Field(default=5, ge=2)
    default_sharpness: float = Field(default=1.3, gt=0)
    views: int = Field(default=0, ge=0)


class LabelPropagation(FeatureMethod):
    """Labels spread over the neighbour graph of all images; new images take the vote of their neighbours in it.

    Features are standardised over all images and normalised. Labelled images keep their label, the others get posteriors.
    Zhou et al., "Learning with local and global consistency" (2004): (I - alpha S) Z = Y.
    """

    def __init__(self, config: LabelPropagationConfig | None = None) -> None:
        self.config = config or LabelPropagationConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> NeighbourHead:
        """Propagate over N + M nodes and store them all with their posteriors; the seed shuffles calibration folds."""
        nodes = torch.cat([x_NF, unlabelled_MF])
        axes_FD: Tensor | None = None
        if token is not None:
            mean_F, scale_F, axes_FD = token.mean_F, token.scale_F, token.axes_FD
            unit = F.normalize(token.mean_over_views(), dim=1)
        else:
            mean_F, scale_F = standardisation(nodes)
            unit = unit_rows(nodes, mean_F, scale_F)
        graph = neighbour_graph(unit, self.config.k)
        y = np.zeros((len(nodes), num_classes))
        y[np.arange(len(x_NF)), labels_N.cpu().numpy()] = 1.0
        votes = self._posteriors(graph, y)
        sharpness = self._sharpness(graph, y, labels_N.cpu().numpy(), seed)
        votes[: len(x_NF)] = y[: len(x_NF)]
        k = min(self.config.k, len(nodes))
        reduced = 0 if axes_FD is None else axes_FD.shape[1]
        head = NeighbourHead(features=x_NF.shape[1], classes=num_classes, bank=len(nodes), k=k, reduced=reduced)
        head.store_rows(unit, torch.from_numpy(votes).to(x_NF), mean_F, scale_F, axes_FD, sharpness)
        return head

    def _posteriors(self, graph: sparse.csr_array, y_NK: Array) -> Array:
        return posteriors(propagate(graph, y_NK, self.config.alpha, self.config.tolerance), y_NK.sum(axis=0))

    def _sharpness(self, graph: sparse.csr_array, y_NK: Array, labels_L: NDArray[np.int64], seed: int) -> float:
        """The power of the posteriors with the least log-loss on labels hidden fold by fold; the default without folds.

        Propagated posteriors are much too modest (0.7 where 0.9 are right), because every label reaches every node.
        """
        folds = stratified_folds(labels_L, self.config.folds, seed)
        if not folds:
            return self.config.default_sharpness
        logs_LK = torch.empty(len(labels_L), y_NK.shape[1], dtype=torch.float64)
        for _, hidden in folds:
            without_NK = y_NK.copy()
            without_NK[hidden] = 0
            logs_LK[torch.from_numpy(hidden)] = smoothed_log(
                torch.from_numpy(self._posteriors(graph, without_NK)[hidden])
            )
        target_L = torch.from_numpy(labels_L)

        def loss(log_power: float) -> float:
            # Few labels may all be right and would ask for certainty: a normal prior on the log of the power.
            prior = 0.5 * ((log_power - math.log(self.config.default_sharpness)) / PRIOR_WIDTH) ** 2
            return F.cross_entropy(math.exp(log_power) * logs_LK, target_L, reduction="sum").item() + prior

        found = minimize_scalar(loss, bounds=(math.log(0.25), math.log(16)), method="bounded")
        return math.exp(found.x)
