"""A finished run of `tune` as its records tell of it, planted: hostile names, a class without test images, bad images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from keepsight.core import Dataset, Result
from keepsight.data.arrays import ArrayImages
from keepsight.data.splits import Draw, Splits
from keepsight.recipes.diagnosis import Outcomes, diagnose
from keepsight.report.diagnosis_records import ClassFacts, DataFacts, Diagnosis, write_diagnosis
from keepsight.report.loss_records import FitCurves, LossCurve, write_losses
from keepsight.report.run_records import RunNotes, write_notes

EVIL = ('<script>alert("x")</script>', "[bold]b", 'a "b",\nc', "\u202eright to left", "\U0001f98b")


def figure(method: str, value: float, split: str = "test", metric: str = "error") -> Result:
    return Result(
        task="classification",
        dataset=EVIL[0],
        split=split,
        method=method,
        backbone="tiny",
        readout="8:mean",
        metric=metric,
        value=value,
        ci_low=value / 2,
        ci_high=min(1.0, value * 1.5),
        interval="bootstrap",
        n=60,
        labels=60,
        seed=None if split == "test" else 0,
        seeds=1,
    )


def planted(k: int, seed: int = 0) -> tuple[Dataset, Splits]:
    rng = np.random.default_rng(seed)
    classes = (*EVIL, *(f"class {i}" for i in range(5, k)))[:k]
    per = max(120 // k, 3)
    labels = np.repeat(np.arange(k), per)
    images = ArrayImages(rng.integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8))
    dataset = Dataset(EVIL[0], images, labels, classes, ("",) * len(labels))
    test = np.arange(0, len(labels), per)[1:]  # the first class is not in it
    rest = np.setdiff1d(np.arange(len(labels)), test)
    none = np.empty(0, np.int64)
    return dataset, Splits(test, (Draw(0, rest, none, none),), "")


def said(dataset: Dataset, rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = len(dataset.classes)
    answer = np.where(rng.random(len(rows)) < share, dataset.labels[rows], rng.integers(0, k, len(rows)))
    return 0.8 * np.eye(k)[answer] + 0.2 / k


def planted_run(folder: Path, k: int, skipped: int = 0) -> Diagnosis:
    dataset, splits = planted(k)
    rows = splits.draws[0].labelled
    methods = [
        Outcomes(
            name=name,
            tuned=name.startswith("finetune"),
            rows=rows,
            held_out=said(dataset, rows, share, 1),
            tested={0: said(dataset, splits.test, share, 2)},
        )
        for name, share in (("knn", 0.3), ("probe", 0.6), ("finetune-lora", 0.9))
    ]
    results = [figure(m.name, 0.2) for m in methods]
    results += [figure(m.name, 0.2, metric="ece") for m in methods]
    results += [figure(m.name, v, "cross-validation") for m, v in zip(methods, (0.7, 0.4, 0.1), strict=True)]
    facts = DataFacts(
        name=dataset.name,
        images=len(dataset.images),
        labelled=len(rows),
        validation=0,
        unlabelled=0,
        test=len(splits.test),
        classes=tuple(
            ClassFacts(name=name, labelled=2, validation=0, test=int(i > 0)) for i, name in enumerate(dataset.classes)
        ),
        split_seed=0,
        skipped=skipped,
        skipped_reasons=tuple(f"{EVIL[0]}{i}.png is damaged." for i in range(min(skipped, 50))),
        same_across=2,
    )
    made = diagnose(dataset, splits, methods, results, "finetune-lora", facts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in results))
    chosen = {"method": "finetune-lora", "why": "Recommended: finetune-lora.", "criterion": "cross-validation"}
    (folder / "recommendation.json").write_text(json.dumps(chosen))
    (folder / "environment.json").write_text(json.dumps({"keepsight": "1.2.3"}))
    (folder / "config.yaml").write_text("data: leaves\n")
    (folder / "command.txt").write_text("keepsight tune leaves\n")
    write_diagnosis(folder, made)
    write_notes(folder, RunNotes(without_result=("fixmatch collapsed.",)))
    curve = LossCurve(figure="loss", points=((1, 2.0), (2, 1.0)))
    write_losses(folder, [FitCurves(method="finetune-lora", fit="seed-0", curves=(curve,))])
    return made
