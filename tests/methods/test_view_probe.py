"""The probe on the view-whitened token: scikit-learn's solution, blind to what varies between views, few images."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from content_parts import CLASSES, tokens
from keepsight.heads.token import make_token
from keepsight.methods.frozen import ProbeConfig
from keepsight.methods.view_probe import ViewProbe, ViewProbeConfig


def test_it_is_scikit_learns_regression_on_the_token() -> None:
    x, views, truth = tokens(60)
    config = ViewProbeConfig(probe=ProbeConfig(strengths=(1e-2,), final_tolerance=1e-5))
    head = ViewProbe(config).fit(x[:20], truth[:20], x[20:], CLASSES, 0, make_token(x, views, 384))
    z = make_token(x, views, config.reduced, config.ridge).z_ND.double()
    centred = z[:20] - z[:20].mean(dim=0)
    strength = 1e-2 * centred.square().sum(dim=1).mean().item()
    peer = LogisticRegression(C=1 / (strength * 20), tol=1e-10, max_iter=10_000).fit(z[:20].numpy(), truth[:20].numpy())
    with torch.no_grad():
        found = torch.softmax(head(x), dim=1).numpy()
    np.testing.assert_allclose(found, peer.predict_proba(z.numpy()), atol=2e-3)


def test_views_make_it_blind_to_what_varies_between_them() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(120) % CLASSES
    content = 1.5 * torch.eye(CLASSES)[truth] + 0.3 * torch.randn(120, CLASSES, generator=generator)
    views = [torch.cat([content, 4 * torch.randn(120, 20, generator=generator)], dim=1) for _ in range(7)]
    errors = []
    for seen in (views[1:], []):
        head = ViewProbe().fit(views[0][:9], truth[:9], views[0][9:], CLASSES, 0, make_token(views[0], seen, 23))
        with torch.no_grad():
            errors.append((head(views[0][9:]).argmax(dim=1) != truth[9:]).float().mean().item())
    assert errors[0] < 0.1
    assert errors[1] > errors[0] + 0.2


def test_one_label_a_class_and_images_that_are_all_the_same() -> None:
    x, views, truth = tokens(30)
    head = ViewProbe().fit(x[:3], truth[:3], x[3:], CLASSES, 0, make_token(x, views, 384))
    assert torch.isfinite(head(x)).all()
    same = torch.ones(6, 4)
    head = ViewProbe().fit(same[:3], truth[:3], same[3:], CLASSES, 0, make_token(same, [same], 4))
    assert torch.isfinite(head(same)).all()
