"""Does readout="auto" choose well? Regret of the choice against the best candidate, over several draws of labels.

For each data set, number of labels and draw, every candidate readout is scored as `keepsight.features.auto_readout`
does (labelled images and a sample of unlabelled ones) and then measured: error of the probe and of label propagation on
test images that took no part. Regret is the error of the chosen readout minus that of the best one, the mean of the two
methods, with the half width of its 95 % t interval over draws;
rho is Spearman's rank correlation of the score with the accuracy. Rules compared: auto, each kind of evidence
alone, fixed readouts, a random one.

    python benchmarks/readout_choice.py                     # minutes: two draws of each set
    python benchmarks/readout_choice.py --draws 10 --data mnist-5k

JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr, t
from torch import Tensor

from keepsight.backbones.load import load_backbone
from keepsight.core import Head, Readout, UserError
from keepsight.data.load import load_dataset
from keepsight.features.auto_readout import Evidence, candidate_readouts, decide, gather_evidence
from keepsight.features.extract import Extractor
from keepsight.methods.frozen import Probe
from keepsight.methods.semi_supervised import LabelPropagation

Rows = NDArray[np.int64]

RULES = {
    "auto": ("clusters", "propagation_loss", "probe_loss"),
    "clusters alone": ("clusters",),
    "propagation alone": ("propagation_loss",),
    "probe alone": ("probe_loss",),
    "probe + propagation": ("propagation_loss", "probe_loss"),
}


def draw_rows(labels: Rows, per_class: int, unlabelled: int, test: int, seed: int) -> tuple[Rows, Rows, Rows]:
    """(labelled, unlabelled, test) rows, disjoint; `per_class` labels of every class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    pool = order[test:]
    labelled = np.concatenate([pool[labels[pool] == c][:per_class] for c in np.unique(labels)])
    return labelled, np.setdiff1d(pool, labelled, assume_unique=True)[:unlabelled], order[:test]


def test_error(head: Head, x: Tensor, truth: Tensor) -> float:
    with torch.inference_mode():
        return (head(x).argmax(dim=1) != truth).double().mean().item()


def measure(
    features: Callable[[Readout], Tensor],
    labels: Rows,
    candidates: Sequence[Readout],
    rows: tuple[Rows, Rows, Rows],
    seed: int,
) -> tuple[list[Evidence], NDArray[np.float64], float]:
    """Evidence and true errors [candidates, (probe, propagation)] of all candidates, and the seconds of the evidence."""
    labelled, unlabelled, test = rows
    y, truth = torch.from_numpy(labels[labelled]), torch.from_numpy(labels[test])
    classes = int(labels.max()) + 1
    evidence, errors, seconds = [], [], 0.0
    for readout in candidates:
        x = features(readout)
        start = time.perf_counter()
        evidence.append(gather_evidence(x[labelled], x[unlabelled], y.numpy(), np.arange(len(y)), classes, seed))
        seconds += time.perf_counter() - start
        heads = [method.fit(x[labelled], y, x[unlabelled], classes, seed) for method in (Probe(), LabelPropagation())]
        errors.append([test_error(head, x[test], truth) for head in heads])
    return evidence, np.array(errors), seconds


def only(evidence: Evidence, kinds: tuple[str, ...]) -> Evidence:
    """The evidence with all other kinds removed."""
    names = [f.name for f in dataclasses.fields(Evidence)]
    return Evidence(**{name: getattr(evidence, name) if name in kinds else None for name in names})


def outcomes(
    candidates: Sequence[Readout],
    evidence: list[Evidence],
    errors: NDArray[np.float64],
    fixed: Sequence[str],
    classes: int,
) -> dict[str, dict[str, float]]:
    """Each rule's regret, rank correlation and errors in this draw."""
    mean = errors.mean(axis=1)
    names = [str(c) for c in candidates]
    found: dict[str, dict[str, float]] = {}

    def note(rule: str, error: NDArray[np.float64], rho: float | None = None) -> None:
        found[rule] = {
            "regret": float(error.mean() - mean.min()),
            "probe": float(error[0]),
            "propagation": float(error[1]),
        }
        if rho is not None:
            found[rule]["rho"] = rho

    for rule, kinds in RULES.items():
        choice = decide(candidates, [only(e, kinds) for e in evidence], classes)
        if choice.scores:
            rho = spearmanr([choice.scores[name] for name in names], -mean).statistic
            note(rule, errors[names.index(str(choice.readout))], float(rho))
    for name in fixed:
        note(f"always {name}", errors[names.index(name)])
    note("at random", errors.mean(axis=0))
    note("the best", errors[int(mean.argmin())])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["mnist-5k", "digits", "fashion-mnist"])
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--images", type=int, default=3000, help="images of each set that take part")
    parser.add_argument("--unlabelled", type=int, default=1500)
    parser.add_argument("--backbone", default="vit_s14_imgfocus")
    parser.add_argument("--size", type=int, default=56)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    # Small matrices: one thread is as fast as two, and is not slowed down by what else runs.
    torch.set_num_threads(1)
    backbone = load_backbone(arguments.backbone, size=arguments.size)
    candidates = candidate_readouts(backbone.depth)
    middle = next(c for c in candidates if len(c.blocks) > 1 and c.pools == ("mean",))
    fixed = [f"{backbone.depth}:cls", f"{backbone.depth}:mean", str(middle), f"{middle.blocks[-2]}:grid2"]
    for source in arguments.data:
        try:
            dataset = load_dataset(source)
        except UserError as error:
            print(f"{source} left out: {error}", file=sys.stderr)
            continue
        chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.labels))[: arguments.images])
        labels = dataset.labels[chosen]
        classes = len(dataset.classes)
        extractor = Extractor(backbone, dataset.images)
        extractor.fill(chosen, sorted({part for c in candidates for part in c.parts}))
        cached = {str(c): extractor.features(chosen, c) for c in candidates}
        for count in arguments.labels:
            collected: dict[str, list[dict[str, float]]] = defaultdict(list)
            seconds = []
            for seed in range(arguments.first_seed, arguments.first_seed + arguments.draws):
                rows = draw_rows(labels, max(1, count // classes), arguments.unlabelled, len(chosen) // 3, seed)
                evidence, errors, spent = measure(lambda c: cached[str(c)], labels, candidates, rows, seed)  # noqa: B023
                seconds.append(spent)
                for rule, values in outcomes(candidates, evidence, errors, fixed, classes).items():
                    collected[rule].append(values)
            print(
                f"\n{source}, {count} labels, {arguments.draws} draws, choice {np.mean(seconds):.1f} s", file=sys.stderr
            )
            print(f"{'rule':24}{'regret %':>9}{'+-':>6}{'rho':>6}{'probe %':>9}{'prop. %':>9}", file=sys.stderr)
            for rule, draws in collected.items():
                mean = {key: float(np.mean([d[key] for d in draws])) for key in draws[0]}
                regrets = [d["regret"] for d in draws]
                half = float(t.ppf(0.975, len(draws) - 1) * np.std(regrets, ddof=1) / np.sqrt(len(draws)))
                mean["regret_half_interval"] = half
                record = {"dataset": source, "labels": count, "draws": arguments.draws, "rule": rule, **mean}
                print(json.dumps(record | {"choice_seconds": float(np.mean(seconds))}), flush=True)
                rho = f"{mean['rho']:.2f}" if "rho" in mean else ""
                errors = f"{100 * mean['probe']:9.1f}{100 * mean['propagation']:9.1f}"
                print(
                    f"{rule:24}{100 * mean['regret']:9.1f}{100 * half:6.1f}{rho:>6}{errors}",
                    file=sys.stderr,
                    flush=True,
                )


if __name__ == "__main__":
    main()
