"""Several runs that differ by their seed alone: the mean of every figure with its interval over seeds and images, as Markdown.

    python benchmarks/seeds.py runs/visft-0 runs/visft-1 runs/visft-2

Takes folders with a results.jsonl (of `keepsight visft` or `keepsight probe`). A figure that is not in all of them is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from keepsight.core import Result
from keepsight.core.result import read_results
from keepsight.evaluate.over_seeds import over_seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--details", action="store_true", help="also the figures behind others")
    args = parser.parse_args()
    of_run: list[dict[tuple[str, ...], Result]] = [
        {(r.split, r.task, r.method, r.metric): r for r in read_results(run / "results.jsonl")} for run in args.runs
    ]
    print("| part | what | figure | mean % [95 %] | of the seeds | n |")
    print("|---|---|---|---:|---|---:|")
    for key in of_run[0]:
        records = [found[key] for found in of_run if key in found]
        if len(records) < len(of_run) or (records[0].detail and not args.details):
            continue
        mean = over_seeds(records)
        seeds = ", ".join(f"{100 * r.value:.1f}" for r in records)
        what = f"{100 * mean.value:.1f} [{100 * mean.ci_low:.1f}, {100 * mean.ci_high:.1f}]"
        print(f"| {mean.split} | {mean.method} | {mean.metric} | {what} | {seeds} | {mean.n} |")


if __name__ == "__main__":
    main()
