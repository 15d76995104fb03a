"""Debiased linear CKA of the same features: ours in one streaming pass against ckatorch, torch-cka and pytorch-cka.

    python benchmarks/similarity.py            # all sizes, and a million images in chunks (minutes)
    python benchmarks/similarity.py --quick    # small sizes only

Every figure comes from a fresh process: the seconds of the computation alone (features ready, libraries imported and warmed
up; the median of repeats within half a second, and of `--runs` processes, in turn, unless one took longer than 20 s) and the peak
resident memory of the whole process, with how much of it is above what the process held before (features and libraries). Features
are float32 of two networks that share 32 directions. How each is called:

- keepsight: `StreamingCKA`, fed batches of 256 as a loader would, accumulates in float64; the value of all images.
- keepsight linear_cka: all images at once, in float64.
- ckatorch: `cka_base(unbiased=True)`, its function for features, in float64; the value of all images.
- torch-cka: `CKA.compare` on identity networks, all images as one batch: the only way to the value of all images. It is float32.
- pytorch-cka: `cka_from_features`, its function for features, in the features' float32.
- torch-cka in batches: the same with batches of 256, as its readme shows. It averages estimates of batches, so it is cheap
  and *another number*: `digits` says how near.

`digits` is -log10 of the relative difference to ckatorch's value (ours is compared with it too). `times` is how many times longer
than ours it took; `cpu_seconds` is processor time over all threads, which a busy machine changes less. `ceiling` is the machine's
best float64 matrix product in the same run, `reached` the part of it that ours got to. JSON lines go to stdout (every process,
then the summary), tables to stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from side_by_side import say, table
from torch import Tensor

from keepsight.evaluate.cost import measured
from keepsight.objectives.similarity import StreamingCKA, linear_cka
from keepsight.objectives.streaming_cka import BLOCK

SIZES = [(64, 384), (64, 768), (512, 768), (2_000, 384), (2_000, 768), (10_000, 384), (10_000, 768)]
PEERS = ("ckatorch", "torch-cka", "pytorch-cka", "torch-cka in batches")
BATCH = 256
LONG = 20.0  # seconds: what took longer is not repeated


def chunks(n: int, d: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of two networks with 32 shared directions, the same for every caller with the same `size`."""
    generator = torch.Generator().manual_seed(0)
    x_map, y_map = torch.randn(32, d, generator=generator), torch.randn(32, d, generator=generator)
    for start in range(0, n, size):
        rows = min(size, n - start)
        shared = torch.randn(rows, 32, generator=generator)
        noise_x, noise_y = (4 * torch.randn(rows, d, generator=generator) for _ in range(2))
        yield shared @ x_map + noise_x + 1, shared @ y_map + noise_y - 1


def ours(x: Tensor, y: Tensor) -> float:
    cka = StreamingCKA(x.shape[1], y.shape[1])
    for start in range(0, len(x), BATCH):
        cka.update(x[start : start + BATCH], y[start : start + BATCH])
    return cka.debiased().item()


def whole(x: Tensor, y: Tensor) -> float:
    return linear_cka(x.double(), y.double(), debiased=True).item()


def ckatorch(x: Tensor, y: Tensor) -> float:
    from ckatorch import cka_base

    return float(cka_base(x, y, kernel="linear", unbiased=True))


def torch_cka(x: Tensor, y: Tensor, batch: int | None = None) -> float:
    from torch_cka import CKA
    from torch_cka import cka as module

    module.tqdm = lambda lines, **_: lines  # no progress bar in the figures
    networks = (torch.nn.Sequential(torch.nn.Identity()) for _ in range(2))
    cka = CKA(*networks, "x", "y", ["0"], ["0"])
    size = batch or len(x)
    loaders = (
        [(part[i : i + size],) for i in range(0, len(x), size) if len(part[i : i + size]) > 3] for part in (x, y)
    )
    cka.compare(*(Loader(batches) for batches in loaders))
    return float(cka.export()["CKA"][0, 0])


class Loader(list):  # type: ignore[type-arg]
    """Batches with the attribute that torch-cka asks a loader for."""

    dataset = "features"


def torch_cka_in_batches(x: Tensor, y: Tensor) -> float:
    return torch_cka(x, y, BATCH)


def pytorch_cka(x: Tensor, y: Tensor) -> float:
    from cka import cka_from_features

    return float(cka_from_features(x, y))


WAYS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "keepsight": ours,
    "keepsight linear_cka": whole,
    "ckatorch": ckatorch,
    "torch-cka": torch_cka,
    "pytorch-cka": pytorch_cka,
    "torch-cka in batches": torch_cka_in_batches,
}


def one(way: str, n: int, d: int) -> dict[str, float]:
    """Measured in this process: seconds, value, peak memory, and the part of it that the work added."""
    if way == "ceiling":
        return {"gflops": ceiling()}
    if way == "stream":
        return stream(n, d)
    parts = list(chunks(n, d, 1000))
    x, y = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts])
    del parts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WAYS[way](x[:16].clone(), y[:16].clone())
        before, seconds = psutil.Process().memory_info().rss / 2**20, []
        with measured(every=0.005) as cost:
            start_processor = time.process_time()
            while sum(seconds) < 0.5:
                start = time.perf_counter()
                value = WAYS[way](x, y)
                seconds.append(time.perf_counter() - start)
        processor = (time.process_time() - start_processor) / len(seconds)
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": processor,
        "value": value,
        "peak_mib": cost.peak_mib,
        "added_mib": cost.peak_mib - before,
    }


def stream(n: int, d: int) -> dict[str, float]:
    """A stream that is never held: seconds in `update` and at the end alone."""
    cka, seconds = StreamingCKA(d, d), 0.0
    with measured() as cost:
        for x, y in chunks(n, d, 2048):
            start = time.perf_counter()
            cka.update(x, y)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
        value = cka.debiased().item()
        seconds += time.perf_counter() - start
    return {"seconds": seconds, "value": value, "peak_mib": cost.peak_mib}


def ceiling(side: int = 2048, repeats: int = 6) -> float:
    """Best float64 matrix product, GFLOP/s."""
    a, b = (torch.randn(side, side, dtype=torch.float64) for _ in range(2))
    best = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e9


def work(n: int, d: int) -> float:
    """GFLOP of our matrix products: the blocks on and above the diagonal (n x n products for up to 1,024 images not counted)."""
    return sum(2 * n * min(BLOCK, 2 * d - start) * (2 * d - start) for start in range(0, 2 * d, BLOCK)) / 1e9


def child(way: str, n: int, d: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", way, str(n), str(d)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def installed(way: str) -> bool:
    try:
        child(way, 64, 8)
    except subprocess.CalledProcessError as error:
        print(f"left out: {way} ({error.stderr.strip().splitlines()[-1]})", file=sys.stderr)
        return False
    return True


def compare(n: int, d: int, ways: list[str], runs: int) -> list[dict[str, Any]]:
    """All ways at one size, in turn."""
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for run in range(runs):
        for way in ways if run % 2 == 0 else reversed(ways):
            if not any(figures["seconds"] > LONG for figures in seen[way]):
                seen[way].append(child(way, n, d))
                say(name=way, size=f"n={n}, d={d}", run=run, **seen[way][-1])
    best = child("ceiling", 0, 0)["gflops"]
    seconds = {way: statistics.median(figures["seconds"] for figures in seen[way]) for way in ways}
    reference = seen["ckatorch" if "ckatorch" in ways else "keepsight linear_cka"][0]["value"]
    lines = []
    for way in ways:
        difference = abs(seen[way][0]["value"] - reference) / abs(reference)
        lines.append(
            say(
                name=way,
                size=f"n={n}, d={d}",
                seconds=seconds[way],
                times=seconds[way] / seconds["keepsight"],
                cpu_seconds=statistics.median(figures["cpu_seconds"] for figures in seen[way]),
                peak_mib=max(figures["peak_mib"] for figures in seen[way]),
                added_mib=max(figures["added_mib"] for figures in seen[way]),
                digits=round(-math.log10(difference), 1) if difference else 16.0,
                runs=len(seen[way]),
            )
        )
        if way == "keepsight" and n > 1024:
            lines[-1] |= say(
                name="reached",
                size=f"n={n}, d={d}",
                ceiling=best,
                gflops=work(n, d) / seconds[way],
                reached=work(n, d) / seconds[way] / best,
            ) | {"name": way}
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--sizes", nargs="*", help="N:D in place of all of them")
    parser.add_argument(
        "--streams", nargs="*", type=int, help="numbers of features that are never held, in place of those"
    )
    parser.add_argument(
        "--one", nargs=3, metavar=("WAY", "N", "D"), help="measure one in this process (used by the benchmark itself)"
    )
    arguments = parser.parse_args()
    if arguments.one:
        way, n, d = arguments.one
        print(json.dumps(one(way, int(n), int(d))))
        return
    say(name="machine", threads=torch.get_num_threads(), cores=psutil.cpu_count(), torch=torch.__version__)
    ways = ["keepsight", "keepsight linear_cka", *(way for way in PEERS if installed(way))]
    sizes = [size for size in SIZES if size[0] <= 2_000] if arguments.quick else SIZES
    if arguments.sizes is not None:
        sizes = [(int(n), int(d)) for n, d in (size.split(":") for size in arguments.sizes)]
    counts = (5_000, 20_000) if arguments.quick else (10_000, 100_000, 1_000_000)
    lines = [line for n, d in sizes for line in compare(n, d, ways, arguments.runs)]
    streams = []
    for n in counts if arguments.streams is None else arguments.streams:
        streams.append(say(name="keepsight, never held", size=f"n={n}, d=768", **child("stream", n, 768)))
    table("Debiased CKA of all images", lines)
    table("A stream of features", streams)


if __name__ == "__main__":
    main()
