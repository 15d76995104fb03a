"""Batches are functions of the step; shares of processes and micro-batches make up the whole, augmentation included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from keepsight.core import ImageList, Preprocessing, UserError
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig
from keepsight.train import FeatureBatches, ImageBatches

PREPROCESSING = Preprocessing(size=16, mean=(0, 0, 0), std=(1, 1, 1))


def image_batches(images: ImageList, augmentation: AugmentConfig | None = None) -> ImageBatches:
    labels = np.arange(40) % 3
    streams = Stream(np.arange(10), 12, 0), Stream(np.arange(10, 40), 24, 1)
    return ImageBatches(images, labels, *streams, PREPROCESSING, augmentation, seed=5)


@pytest.mark.parametrize("augmentation", [None, AugmentConfig()], ids=["plain", "augmented"])
@pytest.mark.parametrize("shares", [2, 3, 12])
def test_shares_make_up_the_whole_batch(
    noise_images: ImageList, shares: int, augmentation: AugmentConfig | None
) -> None:
    source = image_batches(noise_images, augmentation)
    whole = source(3, 0, 1)
    parts = [source(3, share, shares) for share in range(shares)]
    assert {len(p.inputs) for p in parts} == {12 // shares}
    for share, part in enumerate(parts):
        assert torch.equal(part.inputs, whole.inputs[share::shares])
        assert torch.equal(part.labels, whole.labels[share::shares])
        assert torch.equal(part.unlabelled, whole.unlabelled[share::shares])


def test_augmentation_depends_on_the_step_alone(noise_images: ImageList) -> None:
    source, again = image_batches(noise_images, AugmentConfig()), image_batches(noise_images, AugmentConfig())
    source(0, 0, 1)
    assert torch.equal(source(4, 0, 1).inputs, again(4, 0, 1).inputs)
    plain = image_batches(noise_images)
    assert not torch.equal(plain(4, 0, 1).inputs, again(4, 0, 1).inputs)


def test_labels_belong_to_their_inputs_and_unlabelled_ones_have_none() -> None:
    x, labels = torch.arange(40.0)[:, None], torch.arange(40) % 7
    source = FeatureBatches(x, labels, Stream(np.arange(10), 4, 0), Stream(np.arange(10, 40), 6, 0))
    batch = source(2, 0, 1)
    assert torch.equal(batch.labels, batch.inputs[:, 0].long() % 7)
    assert (batch.inputs < 10).all()
    assert (batch.unlabelled >= 10).all()
    assert len(batch.unlabelled) == 6


def test_without_an_unlabelled_stream_there_are_none(noise_images: ImageList) -> None:
    source = ImageBatches(
        noise_images, np.zeros(40, np.int64), Stream(np.arange(5), 4, 0), None, PREPROCESSING, None, 0
    )
    assert source(0, 0, 1).unlabelled.shape == (0, 3, 16, 16)


def test_an_unequal_cut_is_refused(noise_images: ImageList) -> None:
    with pytest.raises(UserError, match="batch of 12 cannot be cut into 5"):
        image_batches(noise_images)(0, 0, 5)


def test_views_labelled_in_any_unlabelled_plain_and_strong_in_an_augmented_one() -> None:
    plain = torch.arange(40.0)[:, None]
    views = [plain + 100, plain + 200]
    source = FeatureBatches(
        plain, torch.arange(40) % 7, Stream(np.arange(10), 12, 0), Stream(np.arange(40), 24, 1), views, seed=3
    )
    batches = [source(step, 0, 1) for step in range(6)]
    for batch in batches:
        assert torch.equal(batch.unlabelled[:, 0].long(), batch.rows)
        assert torch.equal(batch.strong[:, 0].long() % 100, batch.rows)
        assert (batch.strong >= 100).all()
        assert torch.equal(batch.labels, batch.inputs[:, 0].long() % 100 % 7)
    seen = torch.cat([batch.inputs[:, 0] for batch in batches])
    assert {int(v) // 100 for v in seen} == {0, 1, 2}
    assert torch.equal(source(4, 0, 1).strong, batches[4].strong)
    parts = [source(2, share, 3) for share in range(3)]
    for share, part in enumerate(parts):
        for name in ("inputs", "labels", "unlabelled", "strong", "rows"):
            assert torch.equal(getattr(part, name), getattr(batches[2], name)[share::3])


def test_images_have_a_strong_view_where_it_is_asked_for(noise_images: ImageList) -> None:
    labels = np.arange(40) % 3
    source = ImageBatches(
        noise_images,
        labels,
        Stream(np.arange(10), 4, 0),
        Stream(np.arange(10, 40), 6, 1),
        PREPROCESSING,
        AugmentConfig(),
        seed=5,
        strong=AugmentConfig(rotate=40.0),
    )
    batch = source(1, 0, 1)
    plain = ImageBatches(
        noise_images, labels, Stream(np.arange(10), 4, 0), Stream(np.arange(10, 40), 6, 1), PREPROCESSING, None, seed=5
    )
    assert torch.equal(batch.unlabelled, plain(1, 0, 1).unlabelled)
    assert batch.strong.shape == batch.unlabelled.shape
    assert not torch.equal(batch.strong, batch.unlabelled)
    assert torch.equal(batch.rows, torch.from_numpy(Stream(np.arange(10, 40), 6, 1).batch(1)))
    assert len(image_batches(noise_images)(0, 0, 1).strong) == 0
