"""Is the memory that `keepsight plan visft` predicts the memory that a training step takes? Three small sizes, on this CPU.

Every size runs in a process of its own. "predicted" are the bytes of one step beside the weights: gradients and activations, by
`evaluate.memory_model`, without any weights. "measured" are those that torch's allocator gave at the peak of a real step in float32
(its profiler's events). "resident" is the growth of the process's resident memory over the same step, sampled each 2 ms by somebody
who knows nothing of torch; matrix products keep buffers of their own, which the allocator does not see and a GPU does not have.

    python benchmarks/plan_memory.py
    python benchmarks/plan_memory.py --checkpointing

JSON lines go to stdout: one a size, bytes and ratios of predicted to measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

SIZES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "vit-tiny": ("vit_tiny_patch16_224", 8, 224, {}),
    "vit-small": ("vit_small_patch16_224", 4, 224, {}),
    "eva-like": ("eva_giant_patch14_clip_224", 4, 224, {"embed_dim": 352, "num_heads": 4, "depth": 10}),
}
"""Name, images, side in px, arguments; the last one is EVA-G at a quarter of its width and depth."""


class Resident:
    """The largest resident memory of this process within the block, above what it was at its beginning."""

    def __enter__(self) -> Resident:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.start = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.growth = self.peak - self.start

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)


def measure(size: str, rank: int, checkpointing: bool) -> dict[str, Any]:
    """One size, in this process."""
    import torch

    from keepsight.adapters.freeze import checkpoint_blocks
    from keepsight.adapters.lora import LoraConfig, add_lora
    from keepsight.backbones.load import load_backbone
    from keepsight.core import Readout
    from keepsight.core.features import feature_map
    from keepsight.evaluate.memory_model import LoraModel

    name, batch, pixels, arguments = SIZES[size]
    lora = LoraConfig(rank=rank, alpha=1)
    start = time.monotonic()
    model = LoraModel(name, lora, pixels, arguments)
    predicted = 4 * model.sizes.lora + model.step(batch, checkpointing=checkpointing).peak
    seconds = time.monotonic() - start

    backbone = load_backbone(name, weights="random", size=pixels, timm_args=arguments)
    add_lora(backbone, Readout(blocks=(backbone.depth,)), lora)
    backbone.train()
    if checkpointing:
        checkpoint_blocks(backbone)

    def step() -> None:
        backbone.zero_grad(set_to_none=True)
        images = torch.zeros(batch, 3, pixels, pixels)
        feature_map(backbone(images, (backbone.depth,))).square().mean().backward()

    with Resident() as resident:
        step()
    backbone.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    alive = measured = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        measured = max(measured, alive)
    return {
        "size": size,
        "backbone": name,
        "batch": batch,
        "checkpointing": checkpointing,
        "predicted": predicted,
        "measured": measured,
        "ratio": round(predicted / measured, 3),
        "resident": resident.growth,
        "ratio_resident": round(predicted / resident.growth, 3),
        "seconds_to_predict": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--here", action="store_true", help="measure the first size in this process")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.sizes[0], arguments.rank, arguments.checkpointing)))
        return
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--here", "--sizes", size, "--rank", str(arguments.rank)]
        command += ["--checkpointing"] if arguments.checkpointing else []
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(said.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
