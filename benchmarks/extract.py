"""Extraction against the plain timm loop, and against the machine's own ceiling: python benchmarks/extract.py [--runs 5]

Real digits (MNIST-5k) as PNG files, the packaged ViT-S/14 at 56, 112 and 224 px, the same decoding on both sides. Ours goes through
the whole product: hashing the files, decoding one batch ahead, cache lookup, cache writes with flush, in a fresh cache every time.
The peer decodes a batch, runs timm's model, and keeps the class token in memory. With the readout at block 10 ours does not run
blocks 11 and 12; timm's loop does, unless one asks it to stop.

`model` compares the model part alone with the ceiling: float32 matrix products of 2,048 x 2,048 in the same process.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from side_by_side import alternate, say, table
from torch.utils.flop_counter import FlopCounterMode

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone
from keepsight.data.files import FileImages
from keepsight.data.load import load_dataset
from keepsight.data.transforms import load_batch
from keepsight.features.cache import FeatureCache
from keepsight.features.extract import Extractor

BATCH = 64
COUNTS = {56: 512, 112: 192, 224: 64}


def ceiling(repeats: int = 8, side: int = 2048) -> float:
    """Best float32 matrix product, GFLOP/s."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    best = 1e9
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def png_files(folder: Path, count: int) -> FileImages:
    """The first digits of every class, as PNG files."""
    dataset = load_dataset("mnist-5k")
    chosen = np.linspace(0, len(dataset.images) - 1, count).astype(int)
    for i in chosen:
        dataset.images.load(int(i)).convert("L").save(folder / f"{i:05d}.png")
    return FileImages(folder, sorted(path.name for path in folder.iterdir()))


def plain_model(backbone: Backbone) -> torch.nn.Module:
    """timm's own model with the same weights."""
    size = backbone.preprocessing.size
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0, img_size=size)
    model.load_state_dict(backbone.network.state_dict())
    return model.eval()


def measure(size: int, runs: int, folder: Path) -> list[dict[str, object]]:
    """All lines of one input size."""
    count = COUNTS[size]
    backbone = load_backbone("vit_s14_imgfocus", size=size)
    (folder / str(size)).mkdir()
    images, indices = png_files(folder / str(size), count), np.arange(count)
    model, weights = plain_model(backbone), backbone.weights_hash()

    def ours(block: int) -> torch.Tensor:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            extractor = Extractor(
                backbone, images, BATCH, FeatureCache(weights, backbone.preprocessing, root=Path(cache))
            )
            return extractor.part(indices, block, "cls")

    def peer(block: int) -> torch.Tensor:
        rows = []
        with torch.inference_mode():
            for start in range(0, count, BATCH):
                batch = load_batch(images, indices[start : start + BATCH], backbone.preprocessing)
                if block == 12:
                    rows.append(model.forward_features(batch)[:, 0])
                else:
                    ((_, prefix),) = model.forward_intermediates(
                        batch, indices=[block - 1], return_prefix_tokens=True, intermediates_only=True
                    )
                    rows.append(prefix[:, 0])
        return torch.cat(rows)

    lines = []
    for block in (12, 10):
        torch.testing.assert_close(ours(block), peer(block), atol=1e-3, rtol=1e-3)  # also warms both up
        line = alternate(
            f"extract block {block}",
            f"{size} px, {count} images",
            lambda block=block: ours(block),
            lambda block=block: peer(block),
            runs,
            unit="images/s",
            amount=count,
        )
        lines.append(line)
    return [*lines, model_part(backbone, runs)]


def model_part(backbone: Backbone, runs: int) -> dict[str, object]:
    """GFLOP/s of the forward pass alone, against the ceiling measured in turn."""
    size = backbone.preprocessing.size
    images = torch.randn(min(BATCH, COUNTS[size]), 3, size, size)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            backbone(images, (12,))
        reached, limits = [], []
        for _ in range(runs):
            limits.append(ceiling())
            start = time.perf_counter()
            backbone(images, (12,))
            reached.append(counter.get_total_flops() / (time.perf_counter() - start) / 1e9)
    ours, limit = max(reached), max(limits)
    return say(
        name="model", size=f"{size} px", ours=ours, peer=limit, unit="GFLOP/s", ratio=ours / limit, runs=runs,
        threads=torch.get_num_threads(), images_per_second=ours * 1e9 / counter.get_total_flops() * len(images),
    )  # fmt: skip


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", default="56,112,224")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        lines = [line for size in arguments.sizes.split(",") for line in measure(int(size), arguments.runs, folder)]
    finally:
        shutil.rmtree(folder)
    table("extraction: ours against the plain timm loop; the model part against float32 matrix products", lines)


if __name__ == "__main__":
    main()
