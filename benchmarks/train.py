"""Fine-tuning against a plain PyTorch loop with PEFT: python benchmarks/train.py [--runs 3]

The packaged ViT-S/14 at 56 px, 100 real digits (MNIST-5k), batches of 16, AdamW, the same augmentation and decoding on both
sides. Ours goes through `train` with its checks, schedules, clipping and checkpoints. The plain loop loads a batch, runs the
model, the loss, the backward pass and the optimizer; its LoRA is PEFT's on timm's fused qkv layer, the usual way.

- `full`, `lora`: 40 steps, all blocks.
- `lora upper half`: 140 steps (20 epochs), LoRA in blocks 7 to 12. Ours uses 4 fixed augmented views of each image, whose states
  after block 6 are computed once (their time is in the figure); the plain loop augments anew and runs all blocks, and its backward
  pass ends at block 7.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from side_by_side import alternate, table
from torch import nn

from keepsight.backbones.load import load_backbone
from keepsight.core import Readout
from keepsight.data.load import load_dataset
from keepsight.data.splits import SplitConfig, make_splits
from keepsight.data.streams import Stream
from keepsight.data.transforms import AugmentConfig, load_batch
from keepsight.features.states import States
from keepsight.heads.linear import LinearHead
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.train import ImageBatches, OptimConfig, StateBatches, TrainConfig, train

BATCH, VIEWS, FIRST = 16, 4, 7
READOUT = Readout(blocks=(12,), pools=("cls",))


class Bench:
    """What both sides share."""

    def __init__(self) -> None:
        self.dataset = load_dataset("mnist-5k")
        self.backbone = load_backbone("vit_s14_imgfocus", size=56)
        self.labelled = make_splits(self.dataset, SplitConfig(labels=100, test=1000), (0,)).draws[0].labelled
        self.config = TrainConfig(optim=OptimConfig(lr=1e-4))

    def ours(self, adapter: Adapter, steps: int, cached: bool) -> None:
        """The product's loop."""
        config = FinetuneConfig(first_block=FIRST if cached else 1)
        method = Finetune(copy.deepcopy(self.backbone), READOUT, LinearHead(384, 10), adapter, config, cached)
        nn.init.normal_(method.head.weight_KF, std=0.01)
        stream, images = Stream(self.labelled, BATCH, 0), self.dataset.images
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source: StateBatches | ImageBatches
            if cached:
                states = States(folder, self.backbone, FIRST - 1, images, self.labelled, AugmentConfig(), VIEWS, seed=0)
                source = StateBatches(states, self.dataset.labels, stream)
            else:
                preprocessing = self.backbone.preprocessing
                source = ImageBatches(images, self.dataset.labels, stream, None, preprocessing, AugmentConfig(), 0)
            train(method, source, steps, self.config, folder)

    def plain(self, adapter: Adapter, steps: int, upper: bool) -> None:
        """The loop that a tutorial shows."""
        model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=10, img_size=56)
        model.load_state_dict(self.backbone.network.state_dict(), strict=False)
        if adapter == "lora":
            layers = list(range(FIRST - 1, 12)) if upper else None
            settings = PeftLoraConfig(
                r=8, lora_alpha=16, target_modules=["qkv"], modules_to_save=["head"],
                layers_to_transform=layers, layers_pattern="blocks" if upper else None,
            )  # fmt: skip
            model = get_peft_model(model, settings)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        model.train()
        for images, labels in self.batches(steps):
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def batches(self, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Shuffled batches, decoded and augmented as ours are."""
        rng = np.random.default_rng(0)
        for step in range(steps):
            chosen = rng.choice(self.labelled, BATCH, replace=False)
            seeds = [(step, i) for i in range(BATCH)]
            images = load_batch(self.dataset.images, chosen, self.backbone.preprocessing, AugmentConfig(), seeds)
            yield images, torch.from_numpy(self.dataset.labels[chosen])


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    bench = Bench()
    cases: list[tuple[str, Adapter, int, bool]] = [
        ("full", "full", 40, False),
        ("lora", "lora", 40, False),
        ("lora upper half", "lora", 140, True),
    ]
    lines = []
    for name, adapter, steps, upper in cases:
        bench.ours(adapter, 2, upper)
        bench.plain(adapter, 2, upper)
        line = alternate(
            name, f"56 px, batch {BATCH}, {steps} steps",
            lambda a=adapter, s=steps, u=upper: bench.ours(a, s, u),
            lambda a=adapter, s=steps, u=upper: bench.plain(a, s, u),
            runs, unit="steps/s", amount=steps,
        )  # fmt: skip
        lines.append(line)
    table("training: ours against a plain PyTorch loop with PEFT", lines)


if __name__ == "__main__":
    main()
