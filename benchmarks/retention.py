"""What a retention penalty costs over plain fine-tuning: python benchmarks/retention.py [--penalties procrustes,cka] [--steps 15]

The packaged ViT-S/14 at 56 px, 256 real images (MNIST-5k), batches of 32, AdamW, through the product's own steps: forward and
backward pass, penalty, clipping and update, images already decoded. Every line is a process of its own.

- "live": fresh augmentation, so that the untouched network looks at every batch. "kept": images come again in the same view, and
  what the untouched network gave is kept (`retain.kept_mib`); measured from the second time on.
- "time" is the median over pairs of a penalised step and a plain one, taken in turn in the same process; "forward" is the time of
  one forward pass without gradients over that of a plain step, by the same medians: what a live reference may cost.
- "peak_mib" is the largest resident memory of the process during the first steps, above what it held before the method was made.

JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import statistics
import sys
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from keepsight.backbones.load import load_backbone
from keepsight.core import Batch, Method, Readout
from keepsight.data.load import load_dataset
from keepsight.data.transforms import load_batch
from keepsight.evaluate.cost import measured
from keepsight.heads.linear import LinearHead
from keepsight.methods.anchors import anchors, pairs
from keepsight.methods.encoder import Adapter
from keepsight.methods.finetune import Finetune, FinetuneConfig
from keepsight.methods.penalties import NAMES, About, make_penalty, parse_penalty
from keepsight.methods.reference import Reference
from keepsight.methods.retention import Attached, Retained

BATCH, IMAGES = 32, 256
READOUT = Readout(blocks=(12,), pools=("cls",))
PLAIN = "none"


class Side:
    """A method with its optimizer; a step is what the trainer does in one, without what both sides share."""

    def __init__(self, backbone: Any, adapter: Adapter, name: str, kept: bool) -> None:
        inner = Finetune(copy.deepcopy(backbone), READOUT, LinearHead(384, 10), adapter, FinetuneConfig())
        self.method: Method = inner if name == PLAIN else _retained(inner, name, kept)
        self.method.train()
        self.parameters = self.method.parameters_of("model")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.seconds: list[float] = []
        self.taken = 0

    def step(self, batch: Batch) -> None:
        """One, timed."""
        start = time.perf_counter()
        losses = self.method.losses(batch, "model", self.taken)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)
        self.taken += 1


def _retained(method: Finetune, name: str, kept: bool) -> Retained:
    config = parse_penalty(name)
    encoder = method.encoder
    about = About(
        features=384,
        depth=12,
        classes=10,
        seed=0,
        head=method.head,
        pairs=pairs(anchors(encoder)) if name == "l2-sp" and not encoder.has_adapters else {},
        peft=encoder.peft_model,
    )
    penalty = make_penalty(config, about)
    reference = Reference(encoder, 512 if kept else 0) if penalty.uses_reference else None
    return Retained(method, encoder, method.head, [Attached(name, penalty, config.weight)], reference)


def case(adapter: Adapter, name: str, kept: bool, steps: int) -> dict[str, Any]:
    """One line; runs in a fresh process."""
    dataset, backbone = load_dataset("mnist-5k"), load_backbone("vit_s14_imgfocus", size=56)
    rows = torch.randperm(len(dataset.images), generator=torch.Generator().manual_seed(0))[:IMAGES].numpy()
    images = load_batch(dataset.images, rows, backbone.preprocessing)
    labels = torch.from_numpy(dataset.labels[rows])
    batches = [Batch(images[i : i + BATCH], labels[i : i + BATCH], images[:0]) for i in range(0, IMAGES, BATCH)]
    with torch.inference_mode():
        backbone(batches[0].inputs, READOUT.blocks)
    with measured() as before:
        pass
    with measured() as cost:
        side = Side(backbone, adapter, name, kept)
        for batch in batches:  # warm, and with a kept reference all images have passed
            side.step(batch)
    plain = Side(backbone, adapter, PLAIN, False)
    for batch in batches[:2]:
        plain.step(batch)
    side.seconds, plain.seconds, passes = [], [], []
    for i in range(steps):
        batch = batches[i % len(batches)]
        order = (side, plain) if i % 2 else (plain, side)
        for one in order:
            one.step(batch)
        start = time.perf_counter()
        with torch.inference_mode():
            backbone(batch.inputs, READOUT.blocks)
        passes.append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(side.seconds, plain.seconds, strict=True)]
    return {
        "adapter": adapter,
        "penalty": name,
        "reference": "kept" if kept else "live",
        "time": statistics.median(ratios),
        "spread": statistics.stdev(ratios) / math.sqrt(steps),
        "forward": 1 + statistics.median(passes) / statistics.median(plain.seconds),
        "step_ms": 1000 * statistics.median(side.seconds),
        "peak_mib": cost.peak_mib - before.peak_mib,
        "steps": steps,
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--penalties", default=",".join(NAMES))
    parser.add_argument("--adapters", default="full,lora")
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["keepsight.methods.penalties", "keepsight.methods.finetune", "timm"])
    table = Table(
        "adapter", "penalty", "reference", "time of a step / plain", "one forward more would be", "peak MiB",
        title=f"56 px, batch {BATCH}, {args.steps} pairs of steps, {torch.get_num_threads()} threads",
    )  # fmt: skip
    for adapter in args.adapters.split(","):
        for name in (PLAIN, *args.penalties.split(",")):
            looks_back = name not in (PLAIN, "l2-sp", "bss", "r3f", "r4f", "pdr")
            for kept in (False, True) if looks_back else (False,):
                with context.Pool(1) as pool:
                    line = pool.apply(case, (adapter, name, kept, args.steps))
                print(json.dumps(line), flush=True)
                table.add_row(
                    line["adapter"], line["penalty"], line["reference"], f"{line['time']:.2f} ± {line['spread']:.2f}",
                    f"{line['forward']:.2f}", f"{line['peak_mib']:.0f}",
                )  # fmt: skip
    Console(file=sys.stderr).print(table)


if __name__ == "__main__":
    main()
