"""The logistic probe on the view-whitened token: labels alone, but a representation that unlabelled images and their views made."""

from __future__ import annotations

import torch
from torch import Tensor

from keepsight.core import FeatureMethod, Token
from keepsight.data.splits import stratified_folds
from keepsight.heads.linear import LinearHead
from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space
from keepsight.heads.token import make_token
from keepsight.methods.frozen import ProbeConfig
from keepsight.methods.tokens import TokenConfig


class ViewProbeConfig(TokenConfig):
    """Settings of `ViewProbe`.

    Attributes:
        probe: Ladder of penalties and folds.
    """

    probe: ProbeConfig = ProbeConfig()


class ViewProbe(FeatureMethod):
    """Multinomial logistic regression on tokens of plain images, its penalty chosen by cross-validation on the labels.

    The tokens are not standardised again: what varies between views has little variance in them, and standardising would undo that.
    """

    def __init__(self, config: ViewProbeConfig | None = None) -> None:
        self.config = config or ViewProbeConfig()

    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> LinearHead:
        """Fit the token on all images and the probe on the labelled ones; the seed shuffles the folds."""
        config, probe = self.config, self.config.probe
        token = token or make_token(torch.cat([x_NF, unlabelled_MF]), (), config.reduced, config.ridge)
        space = row_space(token.z_ND[: len(x_NF)])
        folds = stratified_folds(labels_N.cpu().numpy(), probe.folds, seed)
        strength = probe.default_strength
        if folds:
            best, _ = cross_validate(space, labels_N, num_classes, probe.strengths, folds, probe.search_tolerance)
            strength = probe.strengths[best]
        penalty = strength * space.squared_length
        fit = fit_logistic_ladder(space, labels_N, num_classes, [penalty], tolerance=probe.final_tolerance)
        weight_KD, bias_K = fit.coefficients(split=0, strength=0)
        head = LinearHead(features=x_NF.shape[1], classes=num_classes)
        # The head works on the standardised features: the axes are folded into its weights.
        state = {"mean_F": token.mean_F, "scale_F": token.scale_F, "bias_K": bias_K}
        head.load_state_dict(state | {"weight_KF": weight_KD @ token.axes_FD.T})
        return head
