"""Augmented views in the cache: functions of the image's content, shared whatever the order, never taken for the plain image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from keepsight.backbones.load import BackboneConfig, load_backbone
from keepsight.core import Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import AugmentConfig
from keepsight.features.cache import FeatureCache
from keepsight.features.extract import Extractor


def test_views(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 20, 20), dtype=np.uint8)
    backbone = load_backbone(BackboneConfig(name="test_vit3", weights="random", size=32))
    readout, everything = Readout.parse("3:mean"), np.arange(6)

    def extractor(images: np.ndarray) -> Extractor:
        cache = FeatureCache(backbone.weights_hash(), backbone.preprocessing, tmp_path)
        return Extractor(backbone, ArrayImages(images), cache=cache)

    plain = extractor(pixels)
    x = plain.features(everything, readout)
    first, second = (plain.view(number, AugmentConfig()) for number in (1, 2))
    one, two = first.features(everything, readout), second.features(everything, readout)
    assert not torch.allclose(x, one, atol=1e-3)
    assert not torch.allclose(one, two, atol=1e-3)
    assert first.extracted == 6
    # The same images in another order, later: nothing is computed again, and every image has its own view.
    later = extractor(pixels[::-1].copy()).view(1, AugmentConfig())
    torch.testing.assert_close(later.features(everything, readout), one.flip(0))
    assert later.extracted == 0
    # Another augmentation is another view; no augmentation at all is the plain image.
    other = plain.view(1, AugmentConfig(rotate=90.0)).features(everything, readout)
    assert not torch.allclose(other, one, atol=1e-3)
    same = plain.view(1, AugmentConfig.none()).features(everything, readout)
    torch.testing.assert_close(same, x, atol=1e-4, rtol=1e-4)
