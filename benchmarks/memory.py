"""Is memory flat however many images are extracted? Peak resident memory of an extraction, at several numbers of images.

Every size runs in a process of its own, into an empty temporary cache, so that nothing is left over from the one before. "images"
are the decoded data sets (28 x 28 bytes an image: IDX files are held in memory whole), "features" what is written to disk; the
figure to compare is "extraction_mib", the peak above what the process held before the first image was extracted, which should not
grow with the number of images.

    python benchmarks/memory.py                                       # 5,000 digits, and Fashion-MNIST's 60,000 + 10,000
    python benchmarks/memory.py --sizes mnist-5k:5000 fashion-mnist:10000 --pixels 28

JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

MIB = 2**20


class Peak:
    """Largest resident memory of this process, split into its own and mapped pages, sampled every 20 ms."""

    def __init__(self) -> None:
        self.own, self.total = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.02):
            memory = process.memory_info()
            self.total = max(self.total, memory.rss)
            self.own = max(self.own, memory.rss - getattr(memory, "shared", 0))


def extract(data: str, count: int, backbone_name: str, pixels: int, parts: int) -> dict[str, object]:
    """One extraction in this process."""
    import torch

    from keepsight.backbones.load import load_backbone
    from keepsight.core import UserError
    from keepsight.data.load import load_dataset
    from keepsight.features.cache import FeatureCache
    from keepsight.features.extract import Extractor

    try:
        dataset = load_dataset(data)
    except UserError as error:
        sys.exit(str(error))
    backbone = load_backbone(backbone_name, size=pixels)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(backbone.weights_hash(), backbone.preprocessing, Path(folder))
        extractor = Extractor(backbone, dataset.images, cache=cache)
        with torch.inference_mode():
            backbone(
                torch.zeros(extractor.batch_size, 3, pixels, pixels), (backbone.depth,)
            )  # what the model itself needs
        before = psutil.Process().memory_info().rss
        wanted = [(block, "cls") for block in range(backbone.depth, max(0, backbone.depth - parts), -1)]
        start = time.perf_counter()
        with Peak() as peak:
            extractor.fill(np.arange(min(count, len(dataset.images))), wanted)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
        written = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        descriptors = psutil.Process().num_fds()
    return {
        "name": f"memory of extraction ({backbone_name}, {pixels} px, {parts} parts)",
        "data": data,
        "size": extractor.extracted,
        "before_mib": round(before / MIB, 1),
        "peak_mib": round(max(peak.total, before) / MIB, 1),
        "extraction_mib": round(max(0, peak.total - before) / MIB, 1),
        "own_peak_mib": round(peak.own / MIB, 1),
        "lifetime_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "written_mib": round(written / MIB, 1),
        "open_files": descriptors,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["mnist-5k:5000", "fashion-mnist:70000"], metavar="DATA:IMAGES")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--pixels", type=int, default=32, help="side of the input, px")
    parser.add_argument("--parts", type=int, default=2, help="blocks that are read, from the last one")
    parser.add_argument("--inside", nargs=2, metavar=("DATA", "IMAGES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        data, count = options.inside
        print(json.dumps(extract(data, int(count), options.backbone, options.pixels, options.parts)))
        return
    print(
        f"{'data':>14} {'images':>7} {'before':>8} {'peak':>8} {'extraction':>10} {'written':>8}   MiB", file=sys.stderr
    )
    for size in options.sizes:
        data, _, count = size.partition(":")
        same = ["--backbone", options.backbone, "--pixels", str(options.pixels), "--parts", str(options.parts)]
        command = [sys.executable, __file__, *same, "--inside", data, count]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="", flush=True)
        r = json.loads(done.stdout)
        line = f"{data:>14} {r['size']:>7} {r['before_mib']:>8} {r['peak_mib']:>8} {r['extraction_mib']:>10} {r['written_mib']:>8}"
        print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
