"""The ladder against scikit-learn's solver (an independent one), and the exactness of its reductions."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space


def blobs(rows: int, features: int, classes: int, seed: int = 0, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, features, generator=generator)
    # Unequal scales and an offset, so that neither centring nor conditioning is for free.
    scales = torch.logspace(0.5, -1.5, features)
    noise = torch.randn(rows, features, generator=generator)
    return ((centres[labels] * 0.5 + spread * noise) * scales + 3).double(), labels


def reference(x: Tensor, labels: Tensor, strength: float, weights: Tensor) -> LogisticRegression:
    kept = weights > 0
    # For two classes scikit-learn penalises the one difference w, which has twice the square of (w / 2, -w / 2).
    c = (2 if int(labels.max()) == 1 else 1) / (strength * float(weights[kept].sum()))
    model = LogisticRegression(C=c, solver="newton-cg", tol=1e-8, max_iter=20_000)
    return model.fit(x[kept].numpy(), labels[kept].numpy(), sample_weight=weights[kept].numpy())


@pytest.mark.parametrize(
    ("rows", "features", "classes"), [(30, 80, 3), (90, 12, 4), (40, 40, 2), (60, 20, 10)], ids=lambda v: str(v)
)
def test_equals_scikit_learn_for_every_strength_and_fold(rows: int, features: int, classes: int) -> None:
    x, labels = blobs(rows, features, classes)
    strengths = [1e-3, 1.0, 3e-2]
    weights = torch.ones(3, rows, dtype=torch.float64)
    weights[0, :classes] = 0
    weights[1, classes : 3 * classes] = 0
    fit = fit_logistic_ladder(row_space(x), labels, classes, strengths, weights, tolerance=1e-7, max_iterations=3000)
    for split in range(3):
        for index, strength in enumerate(strengths):
            model = reference(x, labels, strength, weights[split])
            weight, bias = fit.coefficients(split, index)
            expected = model.predict_proba(x.numpy())
            assert np.abs(torch.softmax(x @ weight.T + bias, dim=1).numpy() - expected).max() < 2e-5
            assert np.abs(torch.softmax(fit.logits(split, index), dim=1).numpy() - expected).max() < 2e-5
            if classes > 2:  # scikit-learn keeps one row for two classes
                assert np.abs(weight.numpy() - model.coef_).max() < 1e-4 * np.abs(model.coef_).max()
            assert fit.error_SL[split, index] <= 1e-7


def test_row_weights_and_unbalanced_classes_equal_scikit_learn() -> None:
    x, labels = blobs(60, 25, 3)
    keep = torch.cat([torch.nonzero(labels == 0)[:, 0], torch.tensor([1, 4, 2])])
    x, labels = x[keep], labels[keep]
    weights = torch.linspace(0.2, 3.0, len(x), dtype=torch.float64)
    fit = fit_logistic_ladder(row_space(x), labels, 3, [0.05], weights[None], tolerance=1e-7, max_iterations=3000)
    expected = reference(x, labels, 0.05, weights).predict_proba(x.numpy())
    assert np.abs(torch.softmax(fit.logits(0, 0), dim=1).numpy() - expected).max() < 2e-5


def test_one_label_a_class_stays_finite_and_fits_its_labels() -> None:
    x, labels = blobs(10, 200, 10)
    fit = fit_logistic_ladder(row_space(x.float()), labels, 10, [1e-3, 1.0])
    weight, bias = fit.coefficients(0, 0)
    assert weight.dtype == torch.float32
    assert torch.isfinite(weight).all()
    assert ((x.float() @ weight.T + bias).argmax(dim=1) == labels).all()


def test_solution_is_stationary_in_the_original_features() -> None:
    """Gradient of the stated objective by autograd: no use of the solver's basis or of another library."""
    x, labels = blobs(50, 300, 5)
    fit = fit_logistic_ladder(row_space(x), labels, 5, [0.02], tolerance=1e-8, max_iterations=3000)
    weight, bias = (t.clone().requires_grad_() for t in fit.coefficients(0, 0))
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, labels) + 0.01 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert weight.grad.norm() < 1e-7 * 0.02 * weight.detach().norm()
    assert bias.grad.norm() < 1e-8


def test_float32_agrees_with_float64() -> None:
    x, labels = blobs(80, 120, 4)
    exact = fit_logistic_ladder(row_space(x), labels, 4, [1e-2, 1.0], tolerance=1e-7, max_iterations=3000)
    single = fit_logistic_ladder(row_space(x.float()), labels, 4, [1e-2, 1.0], tolerance=1e-4)
    for index in range(2):
        difference = torch.softmax(exact.logits(0, index), 1) - torch.softmax(single.logits(0, index), 1)
        assert difference.abs().max() < 2e-4


def test_groups_of_strengths_give_what_one_batch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = blobs(40, 30, 4)
    strengths = [1e-3, 1e-1, 1e-2, 1.0]
    together = fit_logistic_ladder(row_space(x), labels, 4, strengths, tolerance=1e-7)
    monkeypatch.setattr("keepsight.heads.logistic.LOGITS_AT_ONCE", 1)
    one_by_one = fit_logistic_ladder(row_space(x), labels, 4, strengths, tolerance=1e-7)
    for index in range(4):
        torch.testing.assert_close(together.logits(0, index), one_by_one.logits(0, index), rtol=1e-5, atol=1e-5)


def test_duplicated_and_constant_features_do_no_harm() -> None:
    x, labels = blobs(30, 10, 3)
    plain = fit_logistic_ladder(row_space(x), labels, 3, [0.1], tolerance=1e-8)
    wide = torch.cat([x / 2**0.5, x / 2**0.5, torch.ones(30, 2, dtype=torch.float64)], dim=1)
    doubled = fit_logistic_ladder(row_space(wide), labels, 3, [0.1], tolerance=1e-8)
    torch.testing.assert_close(plain.logits(0, 0), doubled.logits(0, 0), rtol=1e-5, atol=1e-5)


def test_a_class_without_weight_and_a_penalty_of_zero_are_refused() -> None:
    x, labels = blobs(12, 4, 3)
    weights = torch.ones(1, 12, dtype=torch.float64)
    weights[0, labels == 2] = 0
    with pytest.raises(ValueError, match="every class"):
        fit_logistic_ladder(row_space(x), labels, 3, [1.0], weights)
    with pytest.raises(ValueError, match="positive"):
        fit_logistic_ladder(row_space(x), labels, 3, [0.0])


def test_cross_validation_scores_only_rows_that_were_held_out() -> None:
    x, labels = blobs(45, 15, 3)
    rows = np.arange(45)
    folds = [(rows[rows % 5 != fold], rows[rows % 5 == fold]) for fold in range(5)]
    space, strengths = row_space(x), [1e-5, 1e-3, 1e-1, 10.0]
    scores = []
    for strength in strengths:
        chances = np.zeros((45, 3))
        for training, held_out in folds:
            weights = torch.zeros(45, dtype=torch.float64)
            weights[training] = 1
            chances[held_out] = reference(x, labels, strength * space.squared_length, weights).predict_proba(x.numpy())[
                held_out
            ]
        accuracy = (chances.argmax(axis=1) == labels.numpy()).mean()
        scores.append((accuracy, np.log(chances[rows, labels.numpy()]).mean(), chances))
    best, logits = cross_validate(space, labels, 3, strengths, folds, tolerance=1e-5)
    assert best == max(range(4), key=lambda i: scores[i][:2])
    assert np.abs(torch.softmax(logits, dim=1).numpy() - scores[best][2]).max() < 1e-4
