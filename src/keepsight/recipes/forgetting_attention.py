"""Where a network looked before tuning and looks after it, in some images, as a gallery. Knows no suite and no folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from keepsight.core import Backbone, Dataset, Preprocessing, UserError
from keepsight.core.progress import log
from keepsight.data.transforms import load_batch
from keepsight.features.attention import attention, class_attention
from keepsight.features.device import this_device
from keepsight.report.galleries import Gallery
from keepsight.report.probe_examples import Looks, probe_galleries


def attention_galleries(
    before: Backbone, after: Backbone, dataset: Dataset, rows: Sequence[int], count: int, seed: int
) -> list[Gallery]:
    """The class token's attention in the last block, averaged over heads, in at most `count` of an image list's rows; one gallery.

    None for networks whose attention is not known (no class token, a convolutional network) or that see other inputs, and where an
    image cannot be read any more.

    Args:
        before, after: The two networks.
        dataset: Of the images.
        rows: Which may be shown.
        count: How many are.
        seed: Of the choice.
    """
    if before.preprocessing != after.preprocessing or not count or not len(rows):
        return []
    order = np.random.default_rng((seed, 8)).permutation(np.asarray(rows, dtype=np.int64))
    chosen = np.sort(order[:count])
    try:
        inputs_BCHW = load_batch(dataset.images, chosen, before.preprocessing)
        maps = tuple(tuple(one.numpy() for one in _looked_at(network, inputs_BCHW)) for network in (before, after))
    except UserError as error:
        log.info("Where the networks look is not shown: %s", error)
        return []
    seen = tuple(_as_seen(one, before.preprocessing) for one in inputs_BCHW)
    return probe_galleries(
        [], [Looks(dataset.name, f"attention in block {before.depth}", seen, maps, ("before", "after"))]
    )


def _looked_at(backbone: Backbone, inputs_BCHW: Tensor) -> Tensor:
    """Shares [B, h, w] of the last block's attention."""
    device = this_device()
    backbone.to(device).eval()
    found_BHNN = attention(backbone, inputs_BCHW.to(device), (backbone.depth,))[:, 0].float().cpu()
    with torch.inference_mode():
        (features,) = backbone(inputs_BCHW[:1].to(device), (backbone.depth,))
    return class_attention(found_BHNN, features.grid).mean(dim=1)


def _as_seen(input_CHW: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The picture that a network's input was, cut as it sees it."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    scaled = (255 * (input_CHW.float() * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(scaled.permute(1, 2, 0).numpy())
