"""The graph and the propagation against their dense definitions in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from keepsight.heads import graph as graph_module
from keepsight.heads.graph import leave_one_out, neighbour_graph, posteriors, propagate


def unit_rows(rows: int, features: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(rows, features, generator=torch.Generator().manual_seed(seed)), dim=1)


def dense_graph(unit: Tensor, k: int) -> np.ndarray:
    """The same graph by the definition, one edge at a time."""
    u = unit.double().numpy()
    similar = u @ u.T
    n = len(u)
    a = np.zeros((n, n))
    for i in range(n):
        for j in sorted((j for j in range(n) if j != i), key=lambda j: -similar[i, j])[:k]:
            a[i, j] = max(similar[i, j], 0) ** 3
    w = (a + a.T) / 2
    root = np.sqrt(w.sum(axis=1))
    return w / root[:, None] / root[None, :]


@pytest.mark.parametrize("chunk", [10**7, 100])
def test_graph_is_its_definition_whatever_the_chunk(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "SIMILARITIES_AT_ONCE", chunk)
    unit = unit_rows(40, 6)
    graph = neighbour_graph(unit, 4).toarray()
    np.testing.assert_allclose(graph, dense_graph(unit, 4), atol=1e-6)
    np.testing.assert_allclose(graph, graph.T)
    assert np.abs(np.linalg.eigvalsh(graph)).max() == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.95, 0.999])
def test_solution_equals_a_dense_solve(alpha: float) -> None:
    unit = unit_rows(120, 5)
    graph = neighbour_graph(unit, 5)
    y = np.zeros((120, 3))
    y[[0, 1, 2, 3], [0, 1, 2, 2]] = 1
    expected = np.linalg.solve(np.eye(120) - alpha * graph.toarray(), y)
    np.testing.assert_allclose(propagate(graph, y, alpha, 1e-10), expected, rtol=1e-6, atol=1e-8)


def test_alpha_one_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        propagate(neighbour_graph(torch.eye(3), 1), np.eye(3), 1.0)


def test_class_masses_follow_the_label_counts() -> None:
    z = np.array([[3.0, 1.0], [1.0, 0.2], [2.0, 0.1]])
    p = posteriors(z, np.array([9.0, 1.0]))
    odds = p[:, 0] / p[:, 1]
    # The prior is (10 : 2) over column masses 6 and 1.3.
    np.testing.assert_allclose(odds, (z[:, 0] / 6 * 10) / (z[:, 1] / 1.3 * 2))


def test_leave_one_out_equals_hiding_each_label_in_turn() -> None:
    graph = neighbour_graph(unit_rows(60, 4), 5)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 0, 1])
    found = leave_one_out(graph, labels, 3, 0.9)
    for hidden in range(len(labels)):
        y = np.zeros((60, 3))
        y[np.arange(9), labels] = 1
        y[hidden] = 0
        expected = posteriors(propagate(graph, y, 0.9, 1e-10), y.sum(axis=0))[hidden]
        np.testing.assert_allclose(found[hidden], expected, atol=1e-4)
