"""Batches in order, one ahead, with bad images left out where asked; memory does not grow."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from keepsight.core import Backbone, ImageList, UserError
from keepsight.data.transforms import load_batch
from keepsight.features.stream import stream_batches


class Watched(ImageList):
    """Another list that counts what was loaded, and has unreadable images."""

    def __init__(self, inner: ImageList, bad: frozenset[int] | set[int] = frozenset()) -> None:
        self.inner, self.bad = inner, bad
        self.loaded: set[int] = set()

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, index: int) -> Any:
        self.loaded.add(index)
        if index in self.bad:
            raise UserError(f"The image {index} cannot be read.")
        return self.inner.load(index)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def content_hash(self, index: int) -> bytes:
        return self.inner.content_hash(index)


def test_all_images_in_order(noise_images: ImageList, tiny_backbone: Backbone) -> None:
    chosen = np.arange(3, 38)
    batches = list(stream_batches(noise_images, chosen, tiny_backbone.preprocessing, batch_size=8))
    assert [len(i) for i, _ in batches] == [8, 8, 8, 8, 3]
    assert np.array_equal(np.concatenate([i for i, _ in batches]), chosen)
    whole = load_batch(noise_images, chosen, tiny_backbone.preprocessing)
    assert torch.equal(torch.cat([x for _, x in batches]), whole)
    assert list(stream_batches(noise_images, chosen[:0], tiny_backbone.preprocessing)) == []


def test_no_more_than_one_batch_ahead_is_read(noise_images: ImageList, tiny_backbone: Backbone) -> None:
    images = Watched(noise_images)
    stream = stream_batches(images, np.arange(40), tiny_backbone.preprocessing, batch_size=8)
    next(stream)
    time.sleep(0.2)
    assert images.loaded == set(range(16))
    stream.close()


def test_bad_images_raise_or_are_left_out(
    noise_images: ImageList, tiny_backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    images = Watched(noise_images, {2, *range(8, 16)})
    with pytest.raises(UserError, match="image 2"):
        list(stream_batches(images, np.arange(40), tiny_backbone.preprocessing, 8))
    batches = list(stream_batches(images, np.arange(40), tiny_backbone.preprocessing, 8, skip_bad=True))
    good = [i for i in range(40) if i not in images.bad]
    assert np.concatenate([i for i, _ in batches]).tolist() == good
    whole = load_batch(noise_images, good, tiny_backbone.preprocessing)
    assert torch.equal(torch.cat([x for _, x in batches]), whole)
    assert caplog.text.count("left out: The image") == 9
