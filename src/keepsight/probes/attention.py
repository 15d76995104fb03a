"""The probe of attention: how much of what the class token attends to is on objects, and pictures of it. Learns nothing."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Config, Findings, Fit, Heat, Objects, Probe, Readout, Score, UserError, View
from keepsight.data.cached_scenes import probe_scenes, scenes_to_test
from keepsight.data.leakage import Stamps, shown_stamps
from keepsight.data.masks import decode_mask
from keepsight.data.scenes_load import load_scenes
from keepsight.data.subset import SubsetImages
from keepsight.features.attention import class_attention, rollout

METRIC = "attention_on_objects"

_AT_ONCE = 16  # images: the attention of all blocks is large


class AttentionConfig(Config):
    """Settings of `AttentionProbe`.

    Attributes:
        scenes: Scenes with objects, in any format; composed ones by default. Looked at is the first of test-unseen, test and val
            that there is, or all images.
        images: At most so many.
        seed: Of the composition and the choice of images.
        split: Of composed scenes: the seed by which stamps are held out, that of the scenes that a backbone was tuned on.
        size: Side of the backbone's input, px.
        blocks: Whose attention is looked at, counted from 1 or from the end; the last one named gives the headline.
        rollout: Also of the attention rolled out over all blocks.
        pictures: Images whose attention is shown.
    """

    scenes: Path | None = None
    images: int = Field(default=100, ge=1)
    seed: int = Field(default=0, ge=0)
    split: int = Field(default=0, ge=0)
    size: int = Field(default=168, ge=16)
    blocks: tuple[int, ...] = (-1,)
    rollout: bool = False
    pictures: int = Field(default=8, ge=0)

    @field_validator("blocks")
    @classmethod
    def _blocks(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return Readout(blocks=blocks).blocks


@final
class AttentionProbe(Probe):
    """The share of the class token's attention to the patches, averaged over heads, that falls on the objects.

    Objects are the union of the masks of an image (of boxes, where there is no mask). Attention that is the same everywhere has the
    share of the area, which is the chance. Shuffled, the cells of each image's map of objects change places.

    Attributes:
        stamps: Stamps that the objects of composed scenes show, for `data.leakage.check_leakage`.

    Raises:
        UserError: The scenes cannot be read or have no objects.
    """

    name = "attention"
    squash = True

    def __init__(self, config: AttentionConfig | None = None) -> None:
        self.config = config = config or AttentionConfig()
        self.size = config.size
        folder = Path(config.scenes or probe_scenes(config.seed, config.split))
        dataset = load_scenes(folder)
        rows, part = scenes_to_test(dataset)
        with_objects = [row for row in rows.tolist() if not dataset.objects[row].crowd.all()]
        if not with_objects:
            raise UserError(f"The scenes {dataset.name} have no objects to test on: use scenes with objects.")
        chosen = np.random.default_rng((config.seed, 5)).permutation(with_objects)[: config.images]
        self.images = SubsetImages(dataset.images, chosen)
        self.stamps: Stamps = shown_stamps(folder, "unseen" if part == "test-unseen" else "seen")
        self._dataset_name = "scenes" if config.scenes is None else dataset.name
        self._masks = [_union(dataset.objects[row], dataset.sizes[row]) for row in chosen.tolist()]

    def key(self) -> str:
        """See `Probe.key`."""
        about = f"attention 1 {self.config.model_dump_json(exclude={'scenes'})} {self._dataset_name}"
        found = hashlib.sha256(about.encode())
        for index, mask in enumerate(self._masks):
            found.update(self.images.content_hash(index) + f"{mask.shape}".encode() + np.packbits(mask).tobytes())
        return found.hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`; nothing is trained."""
        del fit
        blocks = Readout(blocks=self.config.blocks).resolved(view.depth).blocks
        names = [f"block {block}" for block in blocks] + ["rollout"] * self.config.rollout
        shares_NLhw = torch.cat([self._shares(view, blocks, rows) for rows in self._batches()])
        cover_Nhw = self._cover(shares_NLhw.shape[-1], shuffled)
        on_LN = (shares_NLhw * cover_Nhw[:, None]).sum(dim=(2, 3)).T.double().numpy()
        chance = float(cover_Nhw.double().mean())
        headline = names[len(blocks) - 1]
        order = [headline, *(name for name in names if name != headline)]
        scores = tuple(
            Score(
                METRIC if name == headline else f"{METRIC} ({name})",
                self._dataset_name,
                on_LN[names.index(name)][None],
                chance=chance,
                shown=name == headline,
            )
            for name in order
        )
        heats = tuple(
            Heat(row, name, shares_NLhw[row, names.index(name)].numpy())
            for row in range(min(self.config.pictures, len(self.images)))
            for name in order
        )
        return Findings(scores, heats=heats)

    def _batches(self) -> list[NDArray[np.int64]]:
        every = np.arange(len(self.images), dtype=np.int64)
        return [every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE)]

    def _shares(self, view: View, blocks: tuple[int, ...], rows: NDArray[np.int64]) -> Tensor:
        """Attention [B, L, h, w] of the class token, averaged over heads, of each block and maybe rolled out."""
        wanted = tuple(range(1, view.depth + 1)) if self.config.rollout else blocks
        found_BLHNN = view.attention(rows, wanted)
        side = grid_side(found_BLHNN.shape[-1])
        parts = [found_BLHNN[:, wanted.index(block)] for block in blocks]
        if self.config.rollout:
            parts.append(rollout(found_BLHNN)[:, None])
        return torch.stack([class_attention(part, (side, side)).mean(dim=1) for part in parts], dim=1)

    def _cover(self, side: int, shuffled: bool) -> Tensor:
        """Share [N, h, w] of each patch that objects cover."""
        masks = [torch.from_numpy(mask).float()[None, None] for mask in self._masks]
        cover_Nhw = torch.cat([F.adaptive_avg_pool2d(mask, side)[0] for mask in masks])
        if not shuffled:
            return cover_Nhw
        cells = np.random.default_rng((self.config.seed, 6)).permuted(cover_Nhw.flatten(1).numpy(), axis=1)
        return torch.from_numpy(cells).reshape(cover_Nhw.shape)


def grid_side(tokens: int) -> int:
    """Patches a side of a square input that gives so many tokens; there are fewer other tokens than would make a larger square.

    Example:
        >>> grid_side(1 + 144), grid_side(5 + 16)
        (12, 4)
    """
    return math.isqrt(tokens - 1)


def _union(objects: Objects, size: NDArray[np.int64]) -> NDArray[np.bool_]:
    """All single objects of an image as one mask [h, w]."""
    height, width = size.tolist()
    out = np.zeros((height, width), dtype=np.bool_)
    for box, crowd, mask in zip(objects.boxes, objects.crowd, objects.masks, strict=True):
        if crowd:
            continue
        if mask is not None:
            out |= decode_mask(mask)
        else:
            left, top, right, bottom = np.rint(box).astype(int).tolist()
            out[top:bottom, left:right] = True
    return out
