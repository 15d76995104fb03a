"""The guide: pools label propagation and probe by hidden labels, estimates the prior, finds neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from content_parts import CLASSES, tokens
from keepsight.heads.token import make_token
from keepsight.methods.frozen import Probe
from keepsight.methods.guide import (
    GuideConfig,
    bank_of,
    compared,
    compared_again,
    label_prior,
    make_guide,
    pooled_powers,
    probe_evidence,
    unguided,
)


def test_rows_compare_images_as_they_are_and_by_the_mean_of_their_views() -> None:
    z, views, _ = tokens(12)
    rows = compared(z, views)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(12))
    mean = torch.stack([z, *views]).mean(dim=0)
    expected = (F.cosine_similarity(z[3], z[7], dim=0) + F.cosine_similarity(mean[3], mean[7], dim=0)) / 2
    assert (rows[3] @ rows[7]).item() == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(compared(z, []), F.normalize(z, dim=1))
    torch.testing.assert_close(bank_of(z, []), F.normalize(z, dim=1))


def test_what_was_learnt_draws_images_of_one_class_together() -> None:
    z, views, truth = tokens(12)
    rows = compared(z, views)
    content = torch.full((12, CLASSES), 0.05) + 0.85 * F.one_hot(truth, CLASSES)
    again = compared_again(rows, content, 0.7)
    torch.testing.assert_close(again.norm(dim=1), torch.ones(12))
    before, after = rows @ rows.T, again @ again.T
    same = truth[:, None] == truth[None]
    expected = (before + 0.49 * torch.where(same, 1.0, -0.5)) / 1.49
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        compared_again(rows, content, 0.0) @ again.new_ones(1).expand(again.shape[1]), rows.sum(1)
    )


def test_posteriors_find_the_classes_and_keep_the_labels() -> None:
    z, views, truth = tokens(90)
    config = GuideConfig(k=5)
    guide = make_guide(compared(z, views), truth[:9], CLASSES, probe_evidence(z, truth[:9], CLASSES, 0, config), config)
    assert (guide.posteriors_NK.argmax(dim=1) == truth).float().mean() > 0.95
    assert torch.equal(guide.posteriors_NK[:9], F.one_hot(truth[:9], CLASSES).float())
    torch.testing.assert_close(guide.posteriors_NK.sum(dim=1), torch.ones(90))
    assert guide.neighbours_Nk.shape == (90, 5)
    assert (truth[guide.neighbours_Nk] == truth[:, None]).float().mean() > 0.8
    assert not (guide.neighbours_Nk == torch.arange(90)[:, None]).any()


def test_the_prior_is_estimated_from_the_images_and_not_assumed_even() -> None:
    z, views, truth = tokens(150)
    kept = torch.cat([torch.arange(6), 6 + torch.where((truth[6:] == 0) | (torch.arange(144) % 10 == 0))[0]])
    z, views, truth = z[kept], [v[kept] for v in views], truth[kept]
    share = (truth == 0).float().mean().item()
    assert share > 0.7
    config = GuideConfig(k=5)
    guide = make_guide(compared(z, views), truth[:6], CLASSES, probe_evidence(z, truth[:6], CLASSES, 0, config), config)
    assert abs(guide.prior_K[0].item() - share) < 0.12
    assert label_prior(truth[:6], CLASSES).tolist() == pytest.approx([1 / 3] * 3)


def test_the_evidence_of_the_probe_is_the_probes() -> None:
    z, _, truth = tokens(60)
    z = (z - z[:30].mean(dim=0)) / z[:30].std(dim=0, correction=0)  # the probe standardises, the guide does not
    evidence = probe_evidence(z, truth[:30], CLASSES, 3, GuideConfig())
    head = Probe().fit(z[:30], truth[:30], z[:0], CLASSES, 3)
    with torch.no_grad():
        expected = torch.softmax(head(z), dim=1)
    torch.testing.assert_close(evidence.logs_NK.exp(), 0.999 * expected + 0.001 / CLASSES, atol=1e-5, rtol=0)
    # A label is hidden from the probe that judges it: with wrong labels the hidden judgement contradicts them.
    wrong = truth[:30].clone()
    wrong[:3] = (wrong[:3] + 1) % CLASSES
    hidden = probe_evidence(z, wrong, CLASSES, 3, GuideConfig()).hidden_LK
    assert (hidden[:3].argmax(dim=1) != wrong[:3]).all()


def test_one_label_a_class_leaves_the_probe_out() -> None:
    z, views, truth = tokens(30)
    evidence = probe_evidence(z, truth[:3], CLASSES, 0, GuideConfig())
    assert evidence.folds == []
    guide = make_guide(compared(z, views), truth[:3], CLASSES, evidence, GuideConfig(k=5))
    assert guide.powers == (GuideConfig().propagation_power, 0.0)


def test_powers_follow_the_better_source_and_their_prior() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    good = torch.log_softmax(2 * F.one_hot(labels, 3) + torch.randn(300, 3, generator=generator), dim=1)
    noise = torch.log_softmax(torch.randn(300, 3, generator=generator), dim=1)
    a, b = pooled_powers(good, noise, labels, (1.0, 1.0), width=1.0)
    assert a > 5 * b
    assert pooled_powers(good[:3], noise[:3], labels[:3], (1.3, 0.25), width=0.01) == pytest.approx(
        (1.3, 0.25), rel=0.05
    )
    # Against a direct search on a grid.
    grid = np.exp(np.linspace(-3, 2, 41))
    best = min(
        ((F.cross_entropy(x * good + y * noise, labels).item(), x, y) for x in grid for y in grid), key=lambda f: f[0]
    )
    loose = pooled_powers(good, noise, labels, (1.0, 0.3), width=50.0)
    found = F.cross_entropy(loose[0] * good + loose[1] * noise, labels).item()
    assert found <= best[0] + 1e-4


def test_without_a_guide_there_is_the_prior_of_the_labels() -> None:
    guide = unguided(torch.tensor([0, 0, 1]), 2)
    assert guide.prior_K.tolist() == pytest.approx([0.6, 0.4])
    assert guide.posteriors_NK.shape == (0, 2)
    assert guide.neighbours_Nk.numel() == 0


def test_duplicated_images_are_no_error() -> None:
    z = torch.ones(12, 6) + 1e-3 * torch.randn(12, 6)
    z[3:] = z[3]
    reduced = make_token(z, (), 4).z_ND
    evidence = probe_evidence(reduced, torch.tensor([0, 1, 2]), CLASSES, 0, GuideConfig())
    guide = make_guide(compared(reduced, []), torch.tensor([0, 1, 2]), CLASSES, evidence, GuideConfig(k=5))
    assert torch.isfinite(guide.posteriors_NK).all()
