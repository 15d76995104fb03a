"""Label propagation over labelled and unlabelled features. Knows features and labels only."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keepsight.core import Config, FeatureMethod
from keepsight.heads.graph import neighbour_graph, posteriors, propagate
from keepsight.heads.linear import standardisation
from keepsight.heads.neighbours import NeighbourHead, unit_rows


class LabelPropagationConfig(Config):
    """Settings of `LabelPropagation`.

    Attributes:
        k: Neighbours of each node in the graph, and of a new image among the nodes.
        alpha: Share of a node's value that comes from its neighbours.
        tolerance: Relative residual at which conjugate gradients stop.
    """

    k: int = 5
    alpha: float = 0.95
    tolerance: float = 1e-6


class LabelPropagation(FeatureMethod):
    """Labels spread over the neighbour graph of all images; new images take the vote of their neighbours in it.

    Features are standardised over all images and normalised. Labelled images keep their label, the others get posteriors.
    Zhou et al., "Learning with local and global consistency" (2004): (I - alpha S) Z = Y.
    """

    def __init__(self, config: LabelPropagationConfig | None = None) -> None:
        self.config = config or LabelPropagationConfig()

    def fit(self, x_NF: Tensor, labels_N: Tensor, unlabelled_MF: Tensor, num_classes: int, seed: int) -> NeighbourHead:
        """Propagate over N + M nodes and store them all with their posteriors; nothing is random."""
        del seed
        nodes = torch.cat([x_NF, unlabelled_MF])
        mean_F, scale_F = standardisation(nodes)
        graph = neighbour_graph(unit_rows(nodes, mean_F, scale_F), self.config.k)
        y = np.zeros((len(nodes), num_classes))
        y[np.arange(len(x_NF)), labels_N.cpu().numpy()] = 1.0
        votes = posteriors(propagate(graph, y, self.config.alpha, self.config.tolerance), y.sum(axis=0))
        votes[: len(x_NF)] = y[: len(x_NF)]
        k = min(self.config.k, len(nodes))
        head = NeighbourHead(features=x_NF.shape[1], classes=num_classes, bank=len(nodes), k=k)
        head.store(nodes, torch.from_numpy(votes).to(x_NF), mean_F, scale_F)
        return head
