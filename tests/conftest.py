"""Small real parts that tests of several folders share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from keepsight.core import Backbone, Features, ImageList, Preprocessing
from keepsight.data.arrays import ArrayImages
from keepsight.recipes import suite

# Two test processes share the machine: more threads each would only wait for one another.
torch.set_num_threads(1)


class TinyBackbone(Backbone):
    """Two blocks on 4 x 4 patches of 16 px images; deterministic from its seed."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.name, self.depth = "tiny", 2
        self.preprocessing = Preprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="squash")
        self.network = nn.ModuleDict(
            {
                "embed": nn.Conv2d(3, width, 4, 4),
                "block1": nn.Linear(width, width),
                "block2": nn.Linear(width, width),
            }
        )
        with torch.no_grad():
            for p in self.network.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
        self.block_calls: list[int] = []
        self.eval()

    def forward(self, images_BCHW: Tensor, blocks: tuple[int, ...]) -> tuple[Features, ...]:
        tokens = self.network["embed"](images_BCHW).flatten(2).transpose(1, 2)
        grid = (images_BCHW.shape[2] // 4, images_BCHW.shape[3] // 4)
        found = {}
        for block in range(1, max(blocks) + 1):
            self.block_calls.append(block)
            tokens = tokens + torch.tanh(self.network[f"block{block}"](tokens))
            found[block] = Features(tokens.mean(1), tokens, grid)
        return tuple(found[block] for block in blocks)

    def weights_hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()

    def spec(self) -> dict[str, str | int | bool]:
        return {"name": "tiny"}


@pytest.fixture(scope="session", autouse=True)
def _small_suite() -> Iterator[None]:
    """Tests that do not name data sets measure no forgetting on the bundled ones, which would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "BUNDLED_SETS", ())
        yield


@pytest.fixture
def tiny_backbone() -> TinyBackbone:
    return TinyBackbone()


@pytest.fixture
def noise_images() -> ImageList:
    """40 different 16 x 16 RGB images."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    return ArrayImages(pixels)


@pytest.fixture
def stamp() -> Image.Image:
    """A small picture with structure: a bright diagonal on a dark ground."""
    pixels = np.zeros((24, 32, 3), np.uint8)
    for i in range(24):
        pixels[i, i] = (250, 180, 40)
    return Image.fromarray(pixels)
