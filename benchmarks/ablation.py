"""What does each part of content-style do? The method with one thing changed, against itself, on the same draws of labels.

Every variant is fitted on every draw; printed is its mean test error and the paired difference to the method as it is, with the
95 % t interval over draws. Draws and test images are those of a development split (split seed 100), which no reported table uses.

    python benchmarks/ablation.py --data mnist-5k --labels 40 --seeds 3
    python benchmarks/ablation.py --data mnist-5k --labels 100 --base content-style-paper --readout 6,8,9,10:mean

JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from keepsight.backbones.load import load_backbone
from keepsight.core import CollapsedError
from keepsight.data.limit import limited
from keepsight.data.load import load_dataset
from keepsight.data.splits import make_splits
from keepsight.features.extract import Extractor
from keepsight.recipes.config import resolve
from keepsight.recipes.content_style_settings import ContentStyleSettings
from keepsight.recipes.context import Cell, Context
from keepsight.recipes.fit_content_style import fit_content_style
from keepsight.recipes.readout import readout_of

Change = dict[str, Any]

EVERYTHING: dict[str, Change] = {
    "as it is": {},
    "no style, no reconstruction": {"objective": {"style": 0}},
    "no style critic": {"objective": {"style_prior": 0.0}},
    "no reconstruction": {"objective": {"reconstruction": 0.0}},
    "reconstruction 1": {"objective": {"reconstruction": 1.0}},
    "reconstruction by cosine": {"objective": {"reconstruction_kind": "cosine"}},
    "Gumbel content": {"objective": {"content": "gumbel"}},
    "hard Gumbel content": {"objective": {"content": "hard"}},
    "with a content critic 0.1": {"objective": {"content_prior": 0.1}},
    "with a token critic 0.03": {"objective": {"token_prior": 0.03}},
    "no propagated targets": {"objective": {"propagated": 0.0}},
    "targets not sharpened": {"objective": {"power": 1.0}},
    "with neighbours 0.3 and marginal 0.3": {"objective": {"neighbours": 0.3, "marginal": 0.3}},
    "with consistency 0.5": {"objective": {"consistency": 0.5}},
    "no linear path": {"objective": {"linear": False}},
    "no noise": {"objective": {"noise": 0.0}},
    "no dropout": {"objective": {"dropout": 0.0}},
    "unlabelled always in a view": {"objective": {"plain": 0.0}},
    "unlabelled always plain": {"objective": {"plain": 1.0}},
    "one round": {"guide": {"rounds": 1}},
    "no vote": {"guide": {"vote": 0.0}},
    "no views": {"token": {"views": 0}},
    "two views": {"token": {"views": 2}},
    "no average of the weights": {"training": {"ema": None}},
}

PAPER: dict[str, Change] = {
    "as it is": {},
    "cross-entropy only": {"objective": {"content_prior": 0.0, "style": 0}},
    "no style, no reconstruction": {"objective": {"style": 0}},
    "no content critic": {"objective": {"content_prior": 0.0}},
    "no style critic": {"objective": {"style_prior": 0.0}},
    "no reconstruction": {"objective": {"reconstruction": 0.0}},
    "reconstruction by cosine": {"objective": {"reconstruction_kind": "cosine"}},
    "Gumbel content": {"objective": {"content": "gumbel"}},
    "with a token critic 0.03": {"objective": {"token_prior": 0.03}},
    "no noise before the critics": {"objective": {"critic_noise": 0.0}},
    "one-hots not smoothed": {"objective": {"real_smoothing": 0.0}},
    "neither": {"objective": {"critic_noise": 0.0, "real_smoothing": 0.0}},
    "gradient penalty 1": {"objective": {"critic_penalty": 1.0}},
    "content critic 0.3": {"objective": {"content_prior": 0.3}},
    "content critic 3": {"objective": {"content_prior": 3.0}},
    "moments 0.9, 0.999": {"training": {"optim": {"betas": (0.9, 0.999)}}},
    "learning rate 1e-2": {"training": {"optim": {"lr": 1e-2}}},
    "half the steps": {"epochs": 20, "least_steps": 500},
}


def changed(settings: ContentStyleSettings, change: Change) -> ContentStyleSettings:
    """The settings with nested values replaced, validated."""
    merged = settings.model_dump()
    for part, values in change.items():
        if not isinstance(values, dict):
            merged[part] = values
            continue
        for name, value in values.items():
            if isinstance(value, dict):
                merged[part][name].update(value)
            else:
                merged[part][name] = value
    return ContentStyleSettings.model_validate(merged)


def prepared(arguments: argparse.Namespace, folder: Path) -> tuple[Context, list[Cell]]:
    """The data with its features, and one cell a draw."""
    split = {"labels": arguments.labels, "test": arguments.test, "seed": 100}
    config = resolve(
        arguments.data, settings={"readout": arguments.readout, "split": split, "backbone": {"size": arguments.size}}
    )
    dataset = limited(load_dataset(config.data), config.split, arguments.pool)
    splits = make_splits(dataset, config.split, tuple(range(arguments.seeds)))
    backbone = load_backbone(config.backbone)
    extractor = Extractor(backbone, dataset.images)
    readout = readout_of(config, dataset, extractor, splits.draws[0], folder)
    extractor.fill(np.arange(len(dataset.images)), readout.parts)
    cells = [
        Cell("content-style", f"seed-{d.seed}", d.seed, d.labelled, d.validation, d.unlabelled, splits.test)
        for d in splits.draws
    ]
    return Context(config, dataset, backbone, readout, extractor, folder), cells


def error(context: Context, cell: Cell, settings: ContentStyleSettings) -> float:
    """Test error; not a number where the training collapsed."""
    torch.manual_seed(cell.seed)
    with tempfile.TemporaryDirectory() as folder:
        there = Context(
            context.config, context.dataset, context.backbone, context.readout, context.extractor, Path(folder)
        )
        try:
            chances = fit_content_style(there, cell, settings).predict()
        except CollapsedError:
            return float("nan")
    return float((chances.argmax(axis=1) != context.dataset.labels[cell.measured_on]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist-5k")
    parser.add_argument("--labels", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--base", choices=["content-style", "content-style-paper"], default="content-style")
    parser.add_argument("--readout", default="auto")
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--test", type=int, default=1500)
    parser.add_argument("--pool", type=int, default=None)
    parser.add_argument(
        "--only", default="", help="words, comma-separated: variants whose name has one, and the method as it is"
    )
    arguments = parser.parse_args()
    variants = EVERYTHING if arguments.base == "content-style" else PAPER
    with tempfile.TemporaryDirectory() as folder:
        context, cells = prepared(arguments, Path(folder))
        base = context.config.content_style if arguments.base == "content-style" else context.config.content_style_paper
        about = (
            f"{arguments.data}, {arguments.labels} labels, readout {context.readout}, n = {len(cells[0].measured_on)}"
        )
        print(f"{arguments.base}: {about}, {len(cells)} draws", file=sys.stderr)
        reference = np.empty(0)
        for name, change in variants.items():
            if not any(part in name for part in arguments.only.split(",")) and name != "as it is":
                continue
            start = time.perf_counter()
            errors = np.array([error(context, cell, changed(base, change)) for cell in cells])
            seconds = (time.perf_counter() - start) / len(cells)
            reference = errors if name == "as it is" else reference
            apart = errors - reference
            half = t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / np.sqrt(len(apart)) if len(apart) > 1 else np.nan
            record = {"base": arguments.base, "data": arguments.data, "labels": arguments.labels, "variant": name}
            print(json.dumps({**record, "errors": errors.tolist(), "seconds": seconds}), flush=True)
            low, high = 100 * (apart.mean() - half), 100 * (apart.mean() + half)
            print(
                f"{name:38s} {100 * errors.mean():6.2f} %  {100 * apart.mean():+6.2f} [{low:+.2f}, {high:+.2f}]  {seconds:5.1f} s",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    main()
