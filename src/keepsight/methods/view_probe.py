"""The logistic probe on the view-whitened token: labels alone, but a representation that unlabelled images and their views made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from keepsight.core import Config, FeatureMethod
from keepsight.data.splits import stratified_folds
from keepsight.data.transforms import AugmentConfig
from keepsight.heads.linear import LinearHead
from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space
from keepsight.heads.token import fit_token
from keepsight.methods.frozen import ProbeConfig


class ViewProbeConfig(Config):
    """Settings of `ViewProbe`.

    Attributes:
        views: Augmented views of every image; see `LabelPropagationConfig.views`.
        augmentation: Of the views.
        reduced: Principal axes that are kept before views are compared.
        ridge: See `Reduction.fit_views`.
        probe: Ladder of penalties and folds.
    """

    views: int = Field(default=6, ge=0)
    augmentation: AugmentConfig = AugmentConfig()
    reduced: int = Field(default=384, ge=1)
    ridge: float = Field(default=0.03, gt=0)
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
        views: Sequence[Tensor] = (),
    ) -> LinearHead:
        """Fit the token on all images and the probe on the labelled ones; the seed shuffles the folds."""
        config, probe = self.config, self.config.probe
        reduction = fit_token(torch.cat([x_NF, unlabelled_MF]), views, config.reduced, config.ridge)
        space = row_space(reduction(x_NF))
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
        state = {"mean_F": reduction.mean_F, "scale_F": reduction.scale_F, "bias_K": bias_K}
        head.load_state_dict(state | {"weight_KF": weight_KD @ reduction.axes_FD.T})
        return head
