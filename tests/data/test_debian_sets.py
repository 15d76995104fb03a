"""Real image sets from Debian's packages, where they are installed (`.ci/run` installs them)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keepsight.core import UserError
from keepsight.data.folder import read_folder
from keepsight.data.load import load_dataset
from keepsight.data.splits import SplitConfig, make_splits

STAMPS = Path("/usr/share/tuxpaint/stamps")


def test_fashion_mnist_keeps_its_own_test_images() -> None:
    try:
        dataset = load_dataset("fashion-mnist")
    except UserError as error:
        if "dataset-fashion-mnist" not in str(error):
            raise
        pytest.skip(f"left out: {error}")
    assert len(dataset.images) == 70_000
    splits = make_splits(dataset, SplitConfig(labels=100), seeds=(0,))
    assert len(splits.test) == 10_000
    assert {dataset.parts[i] for i in splits.test.tolist()} == {"test"}
    counts = np.bincount(dataset.labels)
    assert counts.tolist() == [7_000] * 10


@pytest.mark.skipif(not STAMPS.is_dir(), reason="left out: Debian's tuxpaint-stamps-default is not installed")
def test_stamps_with_alpha_are_read_as_a_folder() -> None:
    dataset = read_folder(STAMPS)
    assert "animals" in dataset.classes
    for i in range(0, len(dataset.images), 40):
        assert dataset.images.load(i).mode == "RGB"
