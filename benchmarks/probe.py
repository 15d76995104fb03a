"""The probe's ladder against scikit-learn's LogisticRegressionCV: python benchmarks/probe.py [--runs 5]

The same 1,536-dimensional features (block 8 of the packaged ViT at 56 px, 2 x 2 grid) of real digits (MNIST-5k), the same
standardisation, 12 strengths, 5 folds. Each run draws other labels (the same for both); accuracy is on the 2,000 images that no
draw may take labels from, and `difference` is ours minus the peer's, with a 95 % interval over the draws (t).
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import torch
from scipy import stats
from side_by_side import alternate, table
from sklearn.linear_model import LogisticRegressionCV

from keepsight.backbones.load import load_backbone
from keepsight.core import Readout
from keepsight.data.load import load_dataset
from keepsight.data.splits import SplitConfig, make_splits
from keepsight.features.extract import Extractor
from keepsight.heads.linear import standardisation
from keepsight.methods.frozen import Probe, ProbeConfig

STRENGTHS, FOLDS, TEST = 12, 5, 2000


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    dataset = load_dataset("mnist-5k")
    extractor = Extractor(load_backbone("vit_s14_imgfocus", size=56), dataset.images)
    x_NF = extractor.features(np.arange(len(dataset.images)), Readout.parse("8:grid2"))
    y_N = torch.from_numpy(dataset.labels)
    config = ProbeConfig(folds=FOLDS)
    assert len(config.strengths) >= STRENGTHS
    lines = [measure(count, runs, x_NF, y_N, config) for count in (100, 1000)]
    table(f"probe: {len(config.strengths)} strengths, {FOLDS} folds, {x_NF.shape[1]} dimensions", lines)


def measure(count: int, runs: int, x_NF: torch.Tensor, y_N: torch.Tensor, config: ProbeConfig) -> dict[str, object]:
    """One line: `runs` draws of `count` labels."""
    dataset = load_dataset("mnist-5k")
    splits = make_splits(dataset, SplitConfig(labels=count, test=TEST), tuple(range(runs)))
    accuracy: dict[str, list[float]] = {"ours": [], "peer": []}
    test = torch.from_numpy(splits.test)

    def draw(side: str) -> tuple[torch.Tensor, torch.Tensor]:
        labelled = torch.from_numpy(splits.draws[len(accuracy[side])].labelled)
        return x_NF[labelled], y_N[labelled]

    def keep(side: str, predicted: torch.Tensor) -> None:
        accuracy[side].append((predicted == y_N[test]).double().mean().item())

    def ours() -> None:
        x, y = draw("ours")
        head = Probe(config).fit(x, y, x[:0], 10, seed=len(accuracy["ours"]))
        keep("ours", head(x_NF[test]).argmax(dim=1))

    def peer() -> None:
        x, y = draw("peer")
        mean_F, scale_F = standardisation(x)
        model = LogisticRegressionCV(Cs=STRENGTHS, cv=FOLDS, max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its coming renames, and strengths that do not converge
            model.fit(((x - mean_F) / scale_F).numpy(), y.numpy())
        keep("peer", torch.from_numpy(model.predict(((x_NF[test] - mean_F) / scale_F).numpy())))

    def interval() -> list[float]:
        d = np.subtract(accuracy["ours"], accuracy["peer"])
        half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
        return [round(float(d.mean() - half), 4), round(float(d.mean() + half), 4)]

    return alternate(
        "probe", f"{count} labels", ours, peer, runs,
        ours_accuracy=lambda: float(np.mean(accuracy["ours"])),
        peer_accuracy=lambda: float(np.mean(accuracy["peer"])),
        difference=interval,
        n_test=TEST,
    )  # fmt: skip


if __name__ == "__main__":
    main()
