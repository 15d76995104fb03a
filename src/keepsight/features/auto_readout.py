"""The choice of the readout: which blocks and pools to read, from labelled and unlabelled features.

Knows features and labels, not the backbone they came from; never sees a validation or test image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Config, Pool, Readout
from keepsight.data.multilabel import draw_rows, multilabel_folds
from keepsight.data.splits import stratified_folds
from keepsight.heads.graph import leave_one_out, neighbour_graph
from keepsight.heads.independent import cross_validate_independent
from keepsight.heads.linear import standardisation
from keepsight.heads.logistic import Folds, cross_validate, row_space
from keepsight.heads.neighbours import unit_rows

NEIGHBOURS = 5
"""Neighbours of a node in the graph, as in label propagation."""

ALPHA = 0.95
"""The alpha of label propagation that its leave-one-out loss uses."""

STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""The probe's ladder here: coarser than the probe's own."""

LABELLED_AT_MOST = 250
"""Labelled images that the losses are measured on; more would cost time and no longer change the choice."""

EIGENVALUES_AT_MOST = 50
"""Eigenvalues summed where there are more classes: a sample of a few thousand images resolves no more clusters."""

KRYLOV_STEPS = 10
"""Blocks of the Krylov space: eigenvalues are then right to about 1e-3 on graphs of images."""

Part = Callable[[int, Pool], tuple[Tensor, Tensor]]
"""(block, pool) -> pooled features of the labelled [N, F] and of a sample of the unlabelled images [M, F]."""


class ReadoutChoice(Config):
    """The chosen readout and how it was chosen.

    Attributes:
        readout: The choice.
        criterion: What decided, in words.
        scores: Each candidate's score, higher is better.
    """

    readout: Readout
    criterion: str
    scores: dict[str, float]


def candidate_readouts(depth: int) -> tuple[Readout, ...]:
    """The candidates for a backbone of `depth` blocks: every pool at five depths, and concatenations of middle blocks.

    Example:
        >>> [str(c) for c in candidate_readouts(12)][:4]
        ['4:cls', '4:mean', '4:grid2', '4:grid3']
    """
    levels = [max(1, round(depth * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)]
    pools: tuple[Pool, ...] = ("cls", "mean", "grid2", "grid3")
    single = [Readout(blocks=(block,), pools=(pool,)) for block in dict.fromkeys(levels) for pool in pools]
    middle = tuple(dict.fromkeys(levels[1:4]))
    joint = [
        Readout(blocks=middle, pools=("cls",)),
        Readout(blocks=middle, pools=("mean",)),
        Readout(blocks=middle[:2], pools=("grid2",)),
        Readout(blocks=(levels[2],), pools=("cls", "mean")),
        Readout(blocks=(depth,), pools=("cls", "mean")),
    ]
    return tuple({str(readout): readout for readout in [*single, *joint]}.values())


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one candidate.

    Attributes:
        clusters: Mean of the graph's K largest eigenvalues, at most 1; needs no label. None where the graph is too small.
        propagation_loss: Leave-one-out log-loss of label propagation, nats. None where a class has a single label.
        probe_loss: Cross-validated log-loss of the logistic probe, nats. None where a class has a single label.
    """

    clusters: float | None
    propagation_loss: float | None
    probe_loss: float | None


def choose_readout(
    candidates: Sequence[Readout], part: Part, labels_N: Tensor, num_classes: int, seed: int
) -> ReadoutChoice:
    """The best candidate by the mean rank over three kinds of evidence, or by the label-free one where labels are too few.

    The three are the probe's cross-validated log-loss, label propagation's exact leave-one-out log-loss, and how well the
    neighbour graph of all images falls into K clusters. The first two need two labels in every class; the third is used
    alone where a class has one. Without enough images even for that, the last block's class token is taken (or the last
    candidate, if it is not among them).

    Args:
        candidates: Readouts with blocks counted from 1.
        part: Gives the features of a (block, pool).
        labels_N: Class indices of the labelled images, every class present; targets [N, K] in multi-label data, where the probe's
            log-loss alone decides.
        num_classes: K.
        seed: Shuffles the folds, and the labelled images where there are more than needed.
    """
    labels = labels_N.cpu().numpy()
    if labels.ndim == 2:
        kept = np.arange(len(labels))
        if len(labels) > LABELLED_AT_MOST:
            kept = draw_rows(labels, LABELLED_AT_MOST, np.random.default_rng(seed))
        folds = multilabel_folds(labels[kept], 3, seed)
        several = [_evidence_of_several(_features(c, part)[0][kept], labels_N[kept], folds) for c in candidates]
        return decide(candidates, several, num_classes)
    kept = _stratified_subset(labels, LABELLED_AT_MOST, seed)
    evidence = [gather_evidence(*_features(c, part), labels, kept, num_classes, seed) for c in candidates]
    return decide(candidates, evidence, num_classes)


def decide(candidates: Sequence[Readout], evidence: Sequence[Evidence], num_classes: int) -> ReadoutChoice:
    """The candidate of the best mean rank over the kinds of evidence that every candidate has; the first of equals."""
    columns = {
        "probe's cross-validated log-loss": [_negative(e.probe_loss) for e in evidence],
        "label propagation's leave-one-out log-loss": [_negative(e.propagation_loss) for e in evidence],
        f"{num_classes} clusters of the neighbour graph (no label used)": [e.clusters for e in evidence],
    }
    known = {name: column for name, column in columns.items() if None not in column}
    if not known:
        last = max(max(c.blocks) for c in candidates)
        readout = next((c for c in candidates if c == Readout(blocks=(last,), pools=("cls",))), candidates[-1])
        return ReadoutChoice(readout=readout, criterion="default: too few images to compare readouts", scores={})
    # Ranks, because the three have no common unit, and because one outlying candidate must not set the scale.
    score = np.mean([rankdata(column) / len(candidates) for column in known.values()], axis=0)
    return ReadoutChoice(
        readout=candidates[int(score.argmax())],
        criterion=("mean rank of " if len(known) > 1 else "") + ", ".join(known),
        scores={str(c): round(float(s), 4) for c, s in zip(candidates, score, strict=True)},
    )


def gather_evidence(
    labelled_NF: Tensor,
    unlabelled_MF: Tensor,
    labels_N: NDArray[np.int64],
    kept: NDArray[np.int64],
    num_classes: int,
    seed: int,
) -> Evidence:
    """The evidence on one candidate's features; the losses are measured on the labelled rows `kept`, in this order."""
    rows = torch.from_numpy(kept)
    others = torch.from_numpy(np.setdiff1d(np.arange(len(labels_N)), kept))
    nodes = torch.cat([labelled_NF[rows], labelled_NF[others], unlabelled_MF])
    graph = neighbour_graph(unit_rows(nodes, *standardisation(nodes)), NEIGHBOURS)
    clusters = cluster_score(graph, num_classes) if len(nodes) >= 3 * max(num_classes, 2) else None
    labels = labels_N[kept]
    folds = stratified_folds(labels, 5, seed)
    if not folds:
        return Evidence(clusters, None, None)
    chances_LK = leave_one_out(graph, labels, num_classes, ALPHA, tolerance=1e-3)
    own_L = chances_LK[np.arange(len(labels)), labels]
    propagation_loss = float(-np.log(0.99 * own_L + 0.01 / num_classes).mean())
    x_LF = labelled_NF[rows]
    mean_F, scale_F = standardisation(x_LF)
    space = row_space((x_LF - mean_F) / scale_F)
    target_L = torch.from_numpy(labels)
    _, logits_LK = cross_validate(space, target_L, num_classes, STRENGTHS, folds, tolerance=0.1)
    return Evidence(clusters, propagation_loss, F.cross_entropy(logits_LK, target_L).item())


def _evidence_of_several(x_LF: Tensor, targets_LK: Tensor, folds: Folds) -> Evidence:
    """Of multi-label data: the log-loss of one logistic regression a class, on a coarser ladder, since there are so many."""
    if not folds:
        return Evidence(None, None, None)
    mean_F, scale_F = standardisation(x_LF)
    space = row_space((x_LF - mean_F) / scale_F)
    _, loss = cross_validate_independent(space, targets_LK, STRENGTHS[::2], folds, tolerance=0.1)
    return Evidence(None, None, loss)


def cluster_score(graph: sparse.csr_array, num_classes: int) -> float:
    """Mean of the eigenvalues 2 to K of the normalised graph: near 1 where it falls into K separate parts.

    K minus the sum of the K largest is the relaxed normalised cut of the best partition into K parts (von Luxburg, "A
    tutorial on spectral clustering", 2007), so this compares readouts by how separable K groups are in them, by no label.
    """
    count = min(max(num_classes, 2), EIGENVALUES_AT_MOST)
    return float(largest_eigenvalues(graph, count)[1:].mean())


def largest_eigenvalues(graph: sparse.csr_array, count: int) -> NDArray[np.float64]:
    """The `count` largest eigenvalues of a symmetric matrix, in descending order, by block Krylov iteration.

    ARPACK, one vector at a time, misses copies of an eigenvalue, and a graph that falls into K parts has the eigenvalue 1 K
    times; a block of more than K random vectors sees them all.
    """
    n = graph.shape[0]
    block = np.random.default_rng(0).standard_normal((n, min(n, count + 6)))
    blocks = []
    for _ in range(max(1, min(KRYLOV_STEPS, n // block.shape[1]))):
        block = _orthonormal(graph @ (graph @ block))
        blocks.append(block)
    basis = _orthonormal(np.concatenate(blocks, axis=1))
    values = torch.linalg.eigvalsh(torch.from_numpy(basis.T) @ torch.from_numpy(graph @ basis))
    descending: NDArray[np.float64] = values.flip(0)[:count].numpy()
    return descending


def _orthonormal(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    # In torch and not in numpy: two pools of BLAS threads in one process slow each other down tenfold on few cores.
    q: NDArray[np.float64] = torch.linalg.qr(torch.from_numpy(columns)).Q.numpy()
    return q


def _features(readout: Readout, part: Part) -> tuple[Tensor, Tensor]:
    parts = [part(block, pool) for block, pool in readout.parts]
    return torch.cat([labelled for labelled, _ in parts], dim=1), torch.cat([other for _, other in parts], dim=1)


def _negative(loss: float | None) -> float | None:
    return None if loss is None else -loss


def _stratified_subset(labels_N: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Sorted rows, at most about `size`, class by class in turn, so that rare classes keep their labels."""
    if len(labels_N) <= size:
        return np.arange(len(labels_N))
    order = np.random.default_rng(seed).permutation(len(labels_N))
    turn = np.empty(len(labels_N), dtype=np.int64)
    for label in np.unique(labels_N):
        own = order[labels_N[order] == label]
        turn[own] = np.arange(len(own))
    first = order[np.argsort(turn[order], kind="stable")][:size]
    return np.sort(first)
