"""The reports of a run of ViSFT, made from the records and predictions in its folder: tables, pictures, one page of HTML."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from keepsight.core import Config, Result, Rle, SceneDataset, UserError
from keepsight.core.files import atomic_file, write_text
from keepsight.core.result import read_results
from keepsight.data.masks import decode_mask
from keepsight.report.forgetting import Panel, write_page
from keepsight.report.scene_pictures import Shown, drawn, sheet

FACTS, RESULTS = "visft.json", "results.jsonl"
SHOWN = 8
"""Pictures of each part."""

LEAST_SCORE = 0.3

SAID: dict[str, str] = {
    "box_ap50": "boxes, AP50",
    "box_ap50_agnostic": "boxes without classes, AP50",
    "box_ap": "boxes, AP",
    "mask_ap50": "masks, AP50",
    "mask_ap50_agnostic": "masks without classes, AP50",
    "mask_ap": "masks, AP",
    "bleu4": "captions, BLEU-4",
    "cider": "captions, CIDEr-D",
    "cer": "captions, character error rate",
    "exact": "captions, exact",
}
"""The figures of the tables, in their order; results.jsonl has all."""


class VisftFacts(Config):
    """visft.json: what the folder holds.

    Attributes:
        version: keepsight's.
        command: What started it; empty if it was started in Python.
        config: The run's config.
        data: Name of the data set.
        classes: Names of its categories.
        images: Of each part.
        weights: Hash of the untouched backbone's weights; None in runs of older versions.
    """

    version: str
    command: str
    config: dict[str, Any]
    data: str
    classes: tuple[str, ...]
    images: dict[str, int]
    weights: str | None = None


def read_visft_facts(path: Path) -> VisftFacts:
    """The facts of the run in a folder; UserError if there is none."""
    if not (path / FACTS).is_file():
        raise UserError(f"There is no run of ViSFT in {path}: start one with keepsight visft --out {path}.")
    return VisftFacts.model_validate_json((path / FACTS).read_text(encoding="utf-8"))


def write_visft_reports(path: Path, dataset: SceneDataset, parts: Mapping[str, NDArray[np.int64]]) -> None:
    """Write table.txt, pictures/PART.png and visft.html.

    Args:
        path: The run's folder, with its records and predictions.
        dataset: For the pictures.
        parts: Images of each part that was measured.
    """
    facts, results = read_visft_facts(path), read_results(path / RESULTS)
    text = io.StringIO()
    print_visft(facts, results, read_choice(path), Console(file=text, width=160, highlight=False))
    write_text(path / "table.txt", text.getvalue())
    pictures = {part: _pictures(path, dataset, part, indices) for part, indices in parts.items()}
    for part, picture in pictures.items():
        with atomic_file(path / "pictures" / f"{_safe(part)}.png") as temporary:
            picture.save(temporary, format="PNG")
    choice = read_choice(path)
    tables = _panels(results) + ([_ladder(choice)] if choice else [])
    notes = [("Configuration", yaml.safe_dump(facts.config, sort_keys=False, allow_unicode=True))]
    if facts.command:
        notes.insert(0, ("Command", facts.command))
    write_page(path / "visft.html", f"ViSFT on {facts.data}", _lead(facts, choice), tables, notes)
    page = (path / "visft.html").read_text(encoding="utf-8")
    shown = "".join(_figure(part, picture) for part, picture in pictures.items())
    write_text(path / "visft.html", page.replace("<h2>Configuration</h2>", f"{shown}<h2>Configuration</h2>", 1))


def _safe(part: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in part)


def _figure(part: str, picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    said = f"What the heads answer on the first images of {part}: answers scored {LEAST_SCORE} or more, and the generated caption."
    return (
        f"<h2>{escape(part)}</h2><figure><img alt='{escape(said, quote=True)}' style='max-width:100%' "
        f"src='data:image/jpeg;base64,{data}'><figcaption>{escape(said)}</figcaption></figure>"
    )


def read_choice(path: Path) -> dict[str, Any] | None:
    """joint/choice.json of a run; None without stage 2."""
    file = path / "joint" / "choice.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _lead(facts: VisftFacts, choice: Mapping[str, Any] | None) -> list[str]:
    counts = ", ".join(f"{part} {count:,}" for part, count in facts.images.items())
    said = [
        f"Images: {counts}; {len(facts.classes)} categories. Figures in per cent, with 95 % intervals over images; one seed."
    ]
    if choice is None:
        said.append("Stage 1 alone: heads on the frozen backbone.")
    elif choice["step"] == 0:
        said.append(
            "Stage 2 was trained, and on validation no rung was better than the untouched backbone: that is what was kept."
        )
    else:
        said.append(
            f"Stage 2: the backbone after {choice['step']} steps was chosen by {choice['rule']} on validation images and other "
            "data; the heads are bit for bit those of stage 1."
        )
    return said


def print_visft(facts: VisftFacts, results: Sequence[Result], choice: Mapping[str, Any] | None, out: Console) -> None:
    """Print the tables."""
    for line in _lead(facts, choice):
        out.print(escape_markup(line), soft_wrap=True)
    for panel in _panels(results) + ([_ladder(choice)] if choice else []):
        table = Table(title=escape_markup(panel.heading), title_justify="left", title_style="bold", header_style="bold")
        for place, heading in enumerate(panel.header):
            table.add_column(escape_markup(heading), justify="left" if not place else "right")
        for row in panel.rows:
            table.add_row(*(escape_markup(cell) for cell in row))
        out.print(table)


def _panels(results: Sequence[Result]) -> list[Panel]:
    """One table a part: each figure in stage 1, after stage 2, and its change."""
    parts = list(dict.fromkeys(r.split for r in results))
    tuned = any(r.method.endswith(" visft") for r in results)
    by = {(r.split, r.metric, r.method.rpartition(" ")[2]): r for r in results}
    panels = []
    for part in parts:
        rows = []
        for metric, title in SAID.items():
            before, after = by.get((part, metric, "1")), by.get((part, metric, "visft"))
            if before is None:
                continue
            row = [title, _cell(before)]
            if tuned:
                change = by.get((part, f"{metric}_change", "visft"))
                row += ["" if after is None else _cell(after), "" if change is None else _cell(change, signed=True)]
            rows.append(row)
        header = ["figure", "frozen backbone", *(["tuned", "change"] if tuned else [])]
        n = max((r.n for r in results if r.split == part), default=0)
        panels.append(Panel(part, f"n = {n:,} images.", header, rows))
    return panels


def _cell(r: Result, signed: bool = False) -> str:
    scale = 1 if r.metric.startswith("cider") else 100
    if np.isnan(r.value):
        return "-"
    sign = "+" if signed else ""
    digits = 2 if scale == 1 else 1
    value, low, high = (f"{scale * v:{sign}.{digits}f}" for v in (r.value, r.ci_low, r.ci_high))
    return f"{value} [{low}, {high}]"


def _ladder(choice: Mapping[str, Any]) -> Panel:
    """The rungs, with what they were chosen by."""
    tasks = list(choice["rungs"][0]["tasks"])
    rows = [
        [
            f"{rung['step']}{' (chosen)' if rung['step'] == choice['step'] else ''}",
            *(f"{100 * rung['tasks'][task]:.1f}" for task in tasks),
            "-" if rung["probes"] is None else f"{rung['probes']:+.1f}",
        ]
        for rung in choice["rungs"]
    ]
    text = (
        "Every rung on validation images: AP50 of boxes and masks, BLEU-4 of captions, in per cent; points of linear-probe "
        f"accuracy on other data. {choice['trainable_parameters']:,} parameters were trained, {choice['seconds']:.0f} s in all, "
        f"{choice['step_seconds']:.2f} s a step."
    )
    return Panel("Rungs of stage 2", text, ["steps", *tasks, "probes, points"], rows)


def _pictures(path: Path, dataset: SceneDataset, part: str, indices: NDArray[np.int64]) -> Image.Image:
    """The first images of a part with what was found in them and said of them."""
    found = {task: _predictions(path, task, part) for task in ("detection", "segmentation", "captioning")}
    places = {category: k for k, category in enumerate(dataset.category_ids)}
    pictures = []
    for index in indices[:SHOWN].tolist():
        number = dataset.image_ids[index]
        objects = []
        # Masks and boxes of different heads are shown together: masks with their own outline, boxes with class and score.
        for task in ("segmentation", "detection"):
            for one in found[task].get(number, []):
                if one["score"] >= LEAST_SCORE:
                    objects.append(_shown(one, dataset, places))
        caption = next((one["caption"] for one in found["captioning"].get(number, [])), "")
        pictures.append(drawn(dataset.images.load(index), objects, caption))
    return sheet(pictures) if pictures else Image.new("RGB", (1, 1))


def _shown(one: Mapping[str, Any], dataset: SceneDataset, places: Mapping[int, int]) -> Shown:
    left, top, width, height = one["bbox"]
    place = places[one["category_id"]]
    mask = None
    if "segmentation" in one:
        size, counts = one["segmentation"]["size"], one["segmentation"]["counts"]
        mask = decode_mask(Rle((size[0], size[1]), counts.encode()))
    label = f"{dataset.classes[place]} {one['score']:.2f}"
    return Shown((left, top, left + width, top + height), label, place, mask)


def _predictions(path: Path, task: str, part: str) -> dict[int, list[dict[str, Any]]]:
    file = path / "predictions" / f"{task}-{part}.json"
    by: dict[int, list[dict[str, Any]]] = {}
    if file.is_file():
        for one in json.loads(file.read_text(encoding="utf-8")):
            by.setdefault(one["image_id"], []).append(one)
    return by
