"""Does the representation get better? Both stages of ViSFT on composed scenes, and the suite of probes before and after.

    python benchmarks/visft_study.py --out runs/visft-study

Scenes of 112 px and 200 steps of stage 2, so that all of it fits into 100 minutes of two cores; --size and --settings take others.
For every seed the three heads are trained once; stage 2 then runs through them in variants, each of which chooses a rung of its
ladder on validation data (the untouched backbone is one of the rungs):

- "plain": as `keepsight visft` does it;
- "retain": with a retention penalty (--retain);
- "shuffled": the negative control; every image learns from another one's boxes, masks and captions.

The untouched backbone, the rung that each variant chose and its last one are asked all probes on the same items: "chosen" is what a
user gets, "last" is what the training does, whatever was chosen. A change is the mean over the seeds, and its interval covers seeds
and items (see `evaluate.over_seeds`).

With what is left of --minutes, diagnoses are made on the first seed and at the last rung: other learning rates, more steps, one
task alone. Every step is a command of its own, in a folder of its own; --jobs of them run side by side and share the cores. A
killed study goes on with the same command. The tables go to stdout and, with all figures and costs, to study.md and study.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from keepsight.backbones.load import BackboneConfig
from keepsight.core import Result
from keepsight.core.files import write_text
from keepsight.core.result import read_results
from keepsight.evaluate.over_seeds import over_seeds

CONTROL = "shuffled"
COSTS = "costs.json"
UNTOUCHED = "untouched, probes"
SHORTER = ["joint.steps=200", "joint.ladder=100"]
DIAGNOSES: dict[str, list[str]] = {
    "learning rate x 5": ["joint.training.optim.lr=5e-4"],
    "learning rate / 5": ["joint.training.optim.lr=2e-5"],
    "steps x 3": ["joint.steps=600", "joint.ladder=300"],
    "detection alone": ["joint.probabilities.segmentation=0", "joint.probabilities.captioning=0"],
    "captions alone": ["joint.probabilities.segmentation=0", "joint.probabilities.detection=0"],
    "rank 64": ["joint.adapter.lora.rank=64", "joint.adapter.lora.alpha=64"],
}


@dataclass
class Study:
    """Where it lies, how long it may take, how many commands run side by side, and what each took."""

    out: Path
    minutes: float
    jobs: int
    costs: dict[str, float] = field(default_factory=dict)
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, name: str, *words: str, alone: bool = False) -> None:
        """One command of keepsight; its time is added to what earlier starts of the study took for it."""
        started = time.monotonic()
        print(f"# {name}: keepsight {' '.join(words)}", file=sys.stderr, flush=True)
        threads = {} if alone else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))}
        environment = {**os.environ, **threads}
        subprocess.run([sys.executable, "-m", "keepsight", *words], check=True, stdout=sys.stderr, env=environment)
        with self.lock:
            self.costs[name] = self.costs.get(name, 0.0) + time.monotonic() - started
            write_text(self.out / COSTS, json.dumps({"all": self.seconds(), "of": self.costs}, indent=2) + "\n")

    def seconds(self) -> float:
        """Of all starts of the study."""
        return self.before + time.monotonic() - self.started

    def fits(self, *like: str) -> bool:
        """Whether as much time is left as these commands took."""
        return self.seconds() + sum(self.costs.get(name, 0.0) for name in like) < 60 * self.minutes


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
    parser.add_argument("--jobs", type=int, default=2, help="commands side by side")
    parser.add_argument("--settings", nargs="*", default=[], help="key=value of keepsight visft, for every run")
    parser.add_argument("--probing", nargs="*", default=[], help="words for keepsight probe")
    return parser.parse_args()


def main() -> None:
    """The whole study."""
    args = arguments()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    study = Study(out, args.minutes, args.jobs)
    if (out / COSTS).is_file():
        there = json.loads((out / COSTS).read_text())
        study.costs, study.before = there["of"], there["all"]
    scenes = out / "scenes"
    if not scenes.is_dir():
        study.run("scenes", "demo-data", "scenes", str(scenes), "--images", str(args.images), "--size", str(args.size))
    # What every difference begins with: kept in the user's cache, so that it is measured once.
    name = args.backbone or BackboneConfig().name
    study.run(UNTOUCHED, "probe", name, "--out", str(out / "untouched"), *args.probing, alone=True)
    variants: dict[str, list[str]] = {
        "plain": [],
        "retain": ["--retain", args.retain],
        CONTROL: ["joint.shuffled=true"],
    }

    def one_seed(seed: int) -> dict[str, Path]:
        """The variants of a seed; the first one trains the heads that the others take."""
        found = {}
        for variant, words in variants.items():
            found |= tuned(study, args, scenes, seed, variant, words)
        return found

    def diagnosis(variant: str) -> dict[str, Path]:
        """A diagnosis on the first seed; nothing where there is no time left for it."""
        like = ["seed 0, retain"] * (3 if "x 3" in variant else 1) + ["seed 0, plain, last rung"]
        there = study.out / "seed-0" / plain_name(variant) / "last" / "results.jsonl"
        wanted = there.is_file() or study.fits(*like)
        return tuned(study, args, scenes, 0, variant, DIAGNOSES[variant]) if wanted else {}

    with ThreadPoolExecutor(args.jobs) as pool:
        # All are begun at once: diagnoses follow as soon as the first seeds are done.
        of_seeds = pool.map(one_seed, range(args.seeds))
        diagnosed = pool.map(diagnosis, DIAGNOSES)
        seeds, diagnoses = list(of_seeds), list(diagnosed)
    main_rows = {name: changes([found[name] for found in seeds]) for name in seeds[0]}
    more_rows = {name: changes([folder]) for found in diagnoses for name, folder in found.items()}
    left_out = [variant for variant, found in zip(DIAGNOSES, diagnoses, strict=True) if not found]
    report(study, main_rows, more_rows, left_out, args)


def tuned(
    study: Study, args: argparse.Namespace, scenes: Path, seed: int, variant: str, words: Sequence[str]
) -> dict[str, Path]:
    """Stage 2 of a variant; the folders of the probes of its chosen rung (not of diagnoses) and of its last one."""
    folder = study.out / f"seed-{seed}" / plain_name(variant)
    heads = study.out / f"seed-{seed}" / "plain" / "visft"
    reuse = [] if variant == "plain" else ["--reuse", str(heads)]
    backbone = [] if args.backbone is None else ["--backbone", args.backbone]
    name = f"seed {seed}, {variant}"
    where = ["--size", str(args.size), "--out", str(folder / "visft"), "--seed", str(seed)]
    study.run(name, "visft", str(scenes), *where, *backbone, *reuse, *SHORTER, *args.settings, *words)
    choice = chosen(folder)
    last = folder / "visft" / "joint" / "ladder" / f"step-{choice['rungs'][-1]['step']:06d}"
    study.run(f"{name}, last rung", "probe", str(last), "--out", str(folder / "last"), *args.probing)
    if variant in DIAGNOSES:
        return {variant: folder / "last"}
    if choice["step"] == choice["rungs"][-1]["step"]:
        return {f"{variant}, chosen": folder / "last", f"{variant}, last": folder / "last"}
    study.run(f"{name}, chosen rung", "probe", str(folder / "visft"), "--out", str(folder / "probe"), *args.probing)
    return {f"{variant}, chosen": folder / "probe", f"{variant}, last": folder / "last"}


def chosen(folder: Path) -> dict[str, Any]:
    """choice.json of a variant."""
    found: dict[str, Any] = json.loads((folder / "visft" / "joint" / "choice.json").read_text())
    return found


def plain_name(variant: str) -> str:
    """A folder's name for a variant."""
    return "".join(c if c.isalnum() else "-" for c in variant)


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
    found = read_results(folder / "results.jsonl")
    suffix = "_change"
    return {
        f"{r.method}: {r.metric.removesuffix(suffix)}": r for r in found if r.metric.endswith(suffix) and not r.detail
    }


Rows = dict[str, dict[str, dict[str, Any]]]


def report(study: Study, seeds: Rows, diagnoses: Rows, left_out: Sequence[str], args: argparse.Namespace) -> None:
    """study.json, study.md and the tables."""
    folders = {
        f"seed {seed}, {v}": study.out / f"seed-{seed}" / v
        for seed in range(args.seeds)
        for v in ("plain", "retain", CONTROL)
    }
    folders |= {f"seed 0, {v}": study.out / "seed-0" / plain_name(v) for v in diagnoses}
    choices = {name: chosen(folder) for name, folder in folders.items()}
    facts = {
        "seeds": seeds, "diagnoses": diagnoses, "choices": choices, "costs_s": study.costs, "seconds": study.seconds(),
        "left_out": list(left_out),
    }  # fmt: skip
    write_text(study.out / "study.json", json.dumps(facts, indent=2) + "\n")
    lines = [f"Changes of the probes in points, {args.seeds} seeds; a star where the interval excludes zero.", ""]
    lines += shown(f"change of the probes, {args.seeds} seeds", seeds)
    if diagnoses:
        lines += ["", "Diagnoses, seed 0, the last rung:", "", *shown("diagnoses, seed 0, last rung", diagnoses)]
    lines += [
        "",
        "| run | chosen step | probes of the half that chooses, by rung | minutes of stage 2 |",
        "|---|---:|---|---:|",
    ]
    for name, choice in choices.items():
        rungs = ", ".join(f"{rung['step']}: {rung['probes']:+.1f}" for rung in choice["rungs"])
        lines.append(f"| {name} | {choice['step']} | {rungs} | {choice['seconds'] / 60:.1f} |")
    if left_out:
        lines += ["", f"Left out for want of time: {', '.join(left_out)}."]
    untouched = study.costs.get(UNTOUCHED, 0.0) / 60
    lines += [
        "",
        f"In all {study.seconds() / 60:.0f} minutes, {untouched:.1f} of them the probes of the untouched backbone.",
    ]
    write_text(study.out / "study.md", "\n".join(lines) + "\n")


def shown(title: str, rows: Rows) -> list[str]:
    """A table on stdout, and its lines in Markdown."""
    first = next(iter(rows.values()))
    table = Table(title=title)
    table.add_column("probe")
    for column in ("before", *rows):
        table.add_column(column, justify="right")
    lines = ["| probe | before | " + " | ".join(rows) + " |", "|---|---:|" + "---:|" * len(rows)]
    for key, found in first.items():
        cells = [key, f"{100 * found['before']:.1f}", *(cell(of.get(key)) for of in rows.values())]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    Console(width=220).print(table)
    return lines


def cell(found: dict[str, Any] | None) -> str:
    """A change in points with its interval; a star where it excludes zero."""
    if found is None:
        return "-"
    star = " *" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{100 * found['change']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]{star}"


if __name__ == "__main__":
    main()
