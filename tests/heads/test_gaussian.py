"""The Gaussian head's logits are log densities, whatever the number of covariances and of rows at once."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from keepsight.heads import gaussian
from keepsight.heads.gaussian import GaussianHead, log_densities


@pytest.mark.parametrize("shared", [True, False])
def test_log_densities_against_scipy(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    means, roots = rng.normal(size=(3, 4)), rng.normal(size=(1 if shared else 3, 4, 4)) + 2 * np.eye(4)
    covariances, prior, z = roots @ roots.transpose(0, 2, 1), np.array([0.5, 0.2, 0.3]), rng.normal(size=(7, 4))
    expected = np.stack(
        [multivariate_normal(means[k], covariances[0 if shared else k]).logpdf(z) + np.log(prior[k]) for k in range(3)],
        axis=1,
    )
    lower = np.linalg.cholesky(covariances)
    constant = np.log(prior) - np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1) - 2 * np.log(2 * np.pi)
    arguments = [torch.from_numpy(a) for a in (z, means, np.linalg.inv(lower), constant)]
    np.testing.assert_allclose(log_densities(*arguments).numpy(), expected, rtol=1e-9)
    monkeypatch.setattr(gaussian, "ENTRIES_AT_ONCE", 24)  # two rows at once
    np.testing.assert_allclose(log_densities(*arguments).numpy(), expected, rtol=1e-9)


def test_no_rows_and_impossible_covariances() -> None:
    assert GaussianHead(features=4, reduced=2, classes=3, covariances=1)(torch.zeros(0, 4)).shape == (0, 3)
    with pytest.raises(ValueError, match="1 or the number of classes"):
        GaussianHead(features=4, reduced=2, classes=3, covariances=2)
