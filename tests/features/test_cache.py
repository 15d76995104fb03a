"""Extraction and the cache: right values, nothing twice, shared, resumable after a kill, safe against damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from keepsight.core import ImageList, Preprocessing, Readout
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.features.cache import FeatureCache, FeaturePart, cache_key
from keepsight.features.extract import CHUNK, Extractor


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


READOUTS = ["1:cls", "2:mean", "1,2:grid2", "last:cls+grid3", "2,1:mean+cls"]


@pytest.mark.parametrize("text", READOUTS)
def test_features_equal_the_readout_of_the_backbone(tiny_backbone, noise_images: ImageList, text: str) -> None:
    readout = Readout.parse(text).resolved(2)
    indices = np.arange(40)
    images = load_batch(noise_images, indices, tiny_backbone.preprocessing)
    expected = readout.read(tiny_backbone(images, readout.blocks)).detach()
    found = Extractor(tiny_backbone, noise_images).features(indices, readout)
    torch.testing.assert_close(found, expected)


def test_nothing_is_extracted_twice_and_parts_are_shared(tiny_backbone, noise_images: ImageList) -> None:
    Extractor(tiny_backbone, noise_images).fill(np.arange(40), [(1, "cls"), (2, "mean")])
    again = Extractor(tiny_backbone, noise_images)
    again.features(np.arange(40), Readout.parse("1:cls"))
    again.features(np.arange(10, 30), Readout.parse("2:mean"))
    assert again.extracted == 0
    again.features(np.arange(5), Readout.parse("2:cls"))
    assert again.extracted == 5


def test_equal_images_are_computed_once(tiny_backbone) -> None:
    pixels = np.zeros((7, 16, 16), np.uint8)
    pixels[5] = 90
    extractor = Extractor(tiny_backbone, ArrayImages(pixels))
    found = extractor.features(np.arange(7), Readout.parse("1:cls"))
    assert extractor.extracted == 2
    assert torch.equal(found[0], found[6])
    assert not torch.equal(found[0], found[5])


def test_blocks_after_the_readout_are_not_run(tiny_backbone, noise_images: ImageList) -> None:
    Extractor(tiny_backbone, noise_images).features(np.arange(8), Readout.parse("1:cls"))
    assert set(tiny_backbone.block_calls) == {1}


def test_other_weights_or_preprocessing_have_other_keys(tiny_backbone) -> None:
    first = cache_key(tiny_backbone.weights_hash(), tiny_backbone.preprocessing)
    with torch.no_grad():
        tiny_backbone.network["block2"].bias[0] += 1e-3
    assert cache_key(tiny_backbone.weights_hash(), tiny_backbone.preprocessing) != first
    other = Preprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="crop")
    assert cache_key("same", other) != cache_key("same", tiny_backbone.preprocessing)


def test_features_are_memory_mapped(tmp_path: Path) -> None:
    part = FeaturePart(tmp_path)
    part.add([bytes([i]) * 32 for i in range(3)], np.arange(6, dtype=np.float32).reshape(3, 2))
    assert isinstance(part._chunks[0], np.memmap)
    reopened = FeaturePart(tmp_path)
    assert reopened.read([bytes([2]) * 32, bytes([0]) * 32]).tolist() == [[4, 5], [0, 1]]


def test_a_damaged_chunk_is_computed_again(tiny_backbone, noise_images: ImageList) -> None:
    readout = Readout.parse("1:cls")
    extractor = Extractor(tiny_backbone, noise_images)
    expected = extractor.features(np.arange(40), readout)
    (chunk,) = extractor.cache.folder.rglob("*.npy")
    chunk.write_bytes(chunk.read_bytes()[:200])
    again = Extractor(tiny_backbone, noise_images)
    assert torch.equal(again.features(np.arange(40), readout), expected)
    assert again.extracted == 40


def test_empty_request(tiny_backbone, noise_images: ImageList) -> None:
    found = Extractor(tiny_backbone, noise_images).features(np.arange(0), Readout.parse("1:cls"))
    assert len(found) == 0


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from conftest import TinyBackbone
from keepsight.core import Readout
from keepsight.data.arrays import ArrayImages
from keepsight.features.extract import Extractor
kill_after = int(sys.argv[1])
pixels = np.random.default_rng(1).integers(0, 256, (1400, 16, 16, 3), dtype=np.uint8)
class Killing(TinyBackbone):
    calls = 0
    def forward(self, images, blocks):
        Killing.calls += 1
        if Killing.calls == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images, blocks)
extractor = Extractor(Killing(), ArrayImages(pixels))
x = extractor.features(np.arange(1400), Readout.parse("1,2:cls"))
np.save(sys.argv[3], x.numpy())
print(extractor.extracted)
"""


def test_a_killed_extraction_resumes_without_repeating_finished_chunks(tmp_path: Path) -> None:
    def start(kill_after: int, cache: str, out: str) -> subprocess.CompletedProcess[str]:
        tests = str(Path(__file__).parents[1])
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(kill_after), tests, str(tmp_path / out)],
            env={**os.environ, "KEEPSIGHT_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert start(12, "killed", "x.npy").returncode == -signal.SIGKILL
    resumed = start(-1, "killed", "resumed.npy")
    straight = start(-1, "straight", "straight.npy")
    assert int(resumed.stdout) == 1400 - CHUNK  # one chunk was complete at the kill
    assert int(straight.stdout) == 1400
    assert np.array_equal(np.load(tmp_path / "resumed.npy"), np.load(tmp_path / "straight.npy"))


def test_cache_folder_can_be_chosen(tmp_path: Path, tiny_backbone) -> None:
    cache = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path / "elsewhere")
    cache.part(1, "cls").add([b"x" * 32], np.ones((1, 4), np.float32))
    assert len(list((tmp_path / "elsewhere").rglob("*.npy"))) == 1
