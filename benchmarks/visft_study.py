"""Does the representation get better? Both stages of ViSFT on composed scenes, and the suite of probes before and after.

    python benchmarks/visft_study.py --out runs/visft-study

Scenes of 112 px and 200 steps of stage 2, so that all of it fits into 100 minutes of two cores; --size and --settings take others.
For every seed the three heads are trained once; stage 2 then runs through them in variants, each of which chooses a rung of its
ladder on validation data:

- "plain": as `keepsight visft` does it;
- "retain": with a retention penalty (--retain);
- "shuffled": the negative control; every image learns from another one's boxes, masks and captions.

The untouched backbone and each of the tuned ones are asked all probes on the same items. A change is the mean over the seeds. Its
interval covers seeds and items: the squared standard error is s^2 / S + v, s the deviation over the S seeds and v the mean of the
squared standard errors over items (these are shared by the seeds, so v is not divided), with t and Welch's degrees of freedom.

With what is left of --minutes, diagnoses are made on the first seed: other learning rates, more steps, one task alone. Every step
is a command of its own, in a folder of its own; a killed study goes on with the same command. The table goes to stdout and, with
all figures and costs, to study.md and study.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from keepsight.core import Result
from keepsight.core.files import write_text
from keepsight.core.result import read_results
from keepsight.evaluate.over_seeds import over_seeds

CONTROL = "shuffled"
SHORTER = ["joint.steps=200", "joint.ladder=100"]
DIAGNOSES: dict[str, list[str]] = {
    "learning rate x 5": ["joint.training.optim.lr=5e-4"],
    "learning rate / 5": ["joint.training.optim.lr=2e-5"],
    "steps x 3": ["joint.steps=600", "joint.ladder=300"],
    "detection alone": ["joint.probabilities.segmentation=0", "joint.probabilities.captioning=0"],
    "captions alone": ["joint.probabilities.segmentation=0", "joint.probabilities.detection=0"],
    "last rung, rank 64": ["joint.select=last", "joint.adapter.lora.rank=64", "joint.adapter.lora.alpha=64"],
}


@dataclass
class Study:
    """Where it lies, how long it may take, and what each command took."""

    out: Path
    until: float
    costs: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, *words: str) -> None:
        """One command of keepsight; its time is added to what earlier starts of the study took for it."""
        started = time.monotonic()
        print(f"# {name}: keepsight {' '.join(words)}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "keepsight", *words], check=True, stdout=sys.stderr)
        self.costs[name] = self.costs.get(name, 0.0) + time.monotonic() - started
        write_text(self.out / "costs.json", json.dumps(self.costs, indent=2) + "\n")

    def fits(self, *like: str) -> bool:
        """Whether as much time is left as these commands took."""
        return time.monotonic() + sum(self.costs.get(name, 0.0) for name in like) < self.until


def arguments() -> argparse.Namespace:
    """The command's words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/visft-study"))
    parser.add_argument("--images", type=int, default=1200, help="training scenes")
    parser.add_argument("--size", type=int, default=112, help="of the scenes, px")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default=None, help="as for keepsight visft; the packaged ViT by default")
    parser.add_argument("--retain", default="distill", help="what the variant 'retain' has")
    parser.add_argument("--minutes", type=float, default=100.0, help="diagnoses that would take longer are left out")
    parser.add_argument("--settings", nargs="*", default=[], help="key=value of keepsight visft, for every run")
    parser.add_argument("--probing", nargs="*", default=[], help="words for keepsight probe")
    return parser.parse_args()


def main() -> None:
    """The whole study."""
    args = arguments()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    study = Study(out, time.monotonic() + 60 * args.minutes)
    if (out / "costs.json").is_file():
        study.costs = json.loads((out / "costs.json").read_text())
    scenes = out / "scenes"
    if not scenes.is_dir():
        study.run("scenes", "demo-data", "scenes", str(scenes), "--images", str(args.images), "--size", str(args.size))
    variants: dict[str, list[str]] = {
        "plain": [],
        "retain": ["--retain", args.retain],
        CONTROL: ["joint.shuffled=true"],
    }
    done: dict[str, list[Path]] = {}
    for seed in range(args.seeds):
        for variant, words in variants.items():
            done.setdefault(variant, []).append(tuned(study, args, scenes, seed, variant, words))
    left_out = []
    for variant, words in DIAGNOSES.items():
        times = 3 if "x 3" in variant else 1
        if study.fits(*["seed 0, retain", "seed 0, retain, probes"] * times):
            done[variant] = [tuned(study, args, scenes, 0, variant, words)]
        else:
            left_out.append(variant)
    rows = {variant: changes(folders) for variant, folders in done.items()}
    report(study, rows, done, left_out, args)


def tuned(study: Study, args: argparse.Namespace, scenes: Path, seed: int, variant: str, words: Sequence[str]) -> Path:
    """The folder with stage 2 and the probes of a variant."""
    folder = study.out / f"seed-{seed}" / "".join(c if c.isalnum() else "-" for c in variant)
    heads = study.out / f"seed-{seed}" / "plain" / "visft"
    reuse = [] if variant == "plain" else ["--reuse", str(heads)]
    backbone = [] if args.backbone is None else ["--backbone", args.backbone]
    name = f"seed {seed}, {variant}"
    where = ["--out", str(folder / "visft"), "--seed", str(seed)]
    study.run(name, "visft", str(scenes), *where, *backbone, *reuse, *SHORTER, *args.settings, *words)
    study.run(f"{name}, probes", "probe", str(folder / "visft"), "--out", str(folder / "probe"), *args.probing)
    return folder


def changes(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """By probe and metric the change over the seeds, in the metric's unit, and the figures of each seed."""
    of_seed = [_changes_of(folder) for folder in folders]
    return {key: figures([one[key] for one in of_seed]) for key in of_seed[0] if all(key in one for one in of_seed)}


def figures(records: Sequence[Result]) -> dict[str, Any]:
    """Mean change with its 95 % interval, and those of the seeds."""
    mean = over_seeds(records)
    return {
        "change": mean.value, "low": mean.ci_low, "high": mean.ci_high, "before": mean.before, "chance": mean.chance,
        "better": mean.better, "n": mean.n, "seeds": mean.seeds, "of_seeds": [r.value for r in records],
    }  # fmt: skip


def _changes_of(folder: Path) -> dict[str, Result]:
    found = read_results(folder / "probe" / "results.jsonl")
    suffix = "_change"
    return {
        f"{r.method}: {r.metric.removesuffix(suffix)}": r for r in found if r.metric.endswith(suffix) and not r.detail
    }


def report(
    study: Study,
    rows: dict[str, dict[str, dict[str, Any]]],
    done: dict[str, list[Path]],
    left_out: Sequence[str],
    args: argparse.Namespace,
) -> None:
    """study.json, study.md and the table."""
    chosen = {
        variant: [json.loads((f / "visft" / "joint" / "choice.json").read_text())["step"] for f in folders]
        for variant, folders in done.items()
    }
    facts = {"changes": rows, "chosen_steps": chosen, "costs_s": study.costs, "left_out": list(left_out)}
    write_text(study.out / "study.json", json.dumps(facts, indent=2) + "\n")
    keys = list(next(iter(rows.values())))
    table = Table(title=f"change of the probes by stage 2; {args.seeds} seeds; diagnoses: one seed")
    lines = ["| probe | before | " + " | ".join(rows) + " |", "|---|---:|" + "---:|" * len(rows)]
    table.add_column("probe")
    table.add_column("before", justify="right")
    for variant in rows:
        table.add_column(variant, justify="right")
    for key in keys:
        before = next(iter(rows.values()))[key]["before"]
        cells = [key, f"{100 * before:.1f}", *(cell(of.get(key)) for of in rows.values())]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    steps = ["step that was chosen", "", *(", ".join(map(str, chosen[variant])) for variant in rows)]
    seconds = ["minutes, stage 2 and probes", ""]
    for variant in rows:
        took = [s for name, s in study.costs.items() if name.split(", ")[1:2] == [variant]]
        seconds.append(f"{sum(took) / 60:.1f}")
    for cells in (steps, seconds):
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    if left_out:
        lines.append(f"\nLeft out for want of time: {', '.join(left_out)}.")
    lines.append(f"\nIn all {sum(study.costs.values()) / 60:.0f} minutes.")
    write_text(study.out / "study.md", "\n".join(lines) + "\n")
    Console(width=200).print(table)


def cell(found: dict[str, Any] | None) -> str:
    """A change in points with its interval; a star where it excludes zero."""
    if found is None:
        return "-"
    star = " *" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{100 * found['change']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]{star}"


if __name__ == "__main__":
    main()
