"""ViSFT as a run: data, heads, joint tuning, figures before and after, and the backbone as a user takes it away."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import keepsight
from keepsight.core import Backbone, Readout, Result, Task, TaskHead, UserError, processes
from keepsight.core.files import is_sound, said_if_full, seal, sweep, write_text
from keepsight.core.progress import log
from keepsight.core.result import read_results
from keepsight.evaluate.coco import ApMetric, ap_difference, coco_results
from keepsight.evaluate.intervals import Interval
from keepsight.export.backbone import save_tuned_backbone
from keepsight.features.device import start_processes
from keepsight.recipes.folder import SEAL, check_own_folder, environment, log_file, owned
from keepsight.recipes.suite import check_suite, load_suite
from keepsight.recipes.visft_data import Scenes, kept_maps, made_of, open_backbone, open_scenes
from keepsight.recipes.visft_heads import TrainedHead, trained_head
from keepsight.recipes.visft_joint import Choice, Probed, Tuned, check_retention, tune_jointly
from keepsight.recipes.visft_measure import Measured, ReadMaps, from_backbone, from_maps, measure_all
from keepsight.recipes.visft_precision import precision_record
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.recipes.within import Watched
from keepsight.report.galleries import write_galleries
from keepsight.report.scene_examples import write_scene_examples
from keepsight.report.scene_records import write_precision
from keepsight.report.visft import FACTS, RESULTS, VisftFacts, read_visft_facts, write_visft_table
from keepsight.report.visft_page import visft_page
from keepsight.report.write import write_page

Both = dict[tuple[Task, str], Measured]


@dataclass(frozen=True, slots=True)
class VisftRun:
    """A finished run: its folder, all records, and the rung of stage 2 that was taken (None without stage 2)."""

    path: Path
    results: list[Result]
    choice: Choice | None


def visft(
    config: VisftConfig,
    out: str | Path,
    *,
    heads: Mapping[Task, TaskHead] | None = None,
    reuse: str | Path | None = None,
    command: str = "",
) -> VisftRun:
    """Train the heads, tune the backbone through them, measure both before and after, and save what a user needs.

    Under several processes (torchrun) all call it alike.

    Args:
        config: See `VisftConfig`.
        out: The folder; a run of the same config goes on there.
        heads: Heads of your own by task, which stage 1 trains in place of ours.
        reuse: Another run's folder: its heads are taken where they are the same.
        command: What started it, for the page.

    Raises:
        UserError: Bad data, settings or folder, before anything is computed.
    """
    start_processes()
    path = Path(out)
    own = dict(heads or {})
    _check(config, path, own)
    if is_sound(path, SEAL):
        log.info("%s is finished already: these are its results", path)
        return _finished(path)
    scenes = open_scenes(config)
    check_suite(config.forgetting)
    backbone, blocks = open_backbone(config)
    with contextlib.ExitStack() as held:
        if processes.is_main():
            held.enter_context(owned(path))
            sweep(path)
            facts = VisftFacts(
                version=keepsight.__version__,
                command=command,
                config=config.model_dump(mode="json"),
                data=scenes.dataset.name,
                classes=scenes.dataset.classes,
                images={"train": len(scenes.train), **{part: len(i) for part, i in scenes.measured().items()}},
                weights=backbone.weights_hash(),
            )
            write_text(path / FACTS, facts.model_dump_json(indent=2) + "\n")
            held.enter_context(log_file(path / "log.txt"))
            held.enter_context(said_if_full(path))
            write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        processes.wait()
        return _run(config, path, scenes, backbone, blocks, own, None if reuse is None else Path(reuse) / "heads")


def _check(config: VisftConfig, path: Path, own: Mapping[Task, TaskHead]) -> None:
    check_retention(config)
    odd = [task for task in own if task not in config.tasks]
    if odd:
        raise UserError(f"A head was given for {odd[0]}, which is not among the tasks ({', '.join(config.tasks)}).")
    with processes.main_writes():
        if processes.is_main():
            check_own_folder(
                path,
                [config.data],
                FACTS,
                "run of ViSFT",
                lambda p: VisftConfig.model_validate(read_visft_facts(p).config) == config,
            )


def _finished(path: Path) -> VisftRun:
    file = path / "joint" / "choice.json"
    choice = Choice.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    return VisftRun(path, read_results(path / RESULTS), choice)


def _run(
    config: VisftConfig,
    path: Path,
    scenes: Scenes,
    backbone: Backbone,
    blocks: tuple[int, ...],
    own: Mapping[Task, TaskHead],
    elsewhere: Path | None,
) -> VisftRun:
    # Only a head that must be trained, or measured without stage 2, needs them.
    maps = functools.cache(lambda: kept_maps(path / "maps", backbone, blocks, scenes, config))
    made = {
        task: trained_head(config, task, backbone, blocks, scenes, maps, path / "heads", elsewhere, own.get(task))
        for task in config.tasks
    }
    heads: dict[Task, TaskHead] = {task: one.head for task, one in made.items()}
    parts = tuple(scenes.measured())
    # Kept maps are in half precision: what is compared with stage 2 passes the backbone as stage 2 does.
    exact = from_backbone(backbone, blocks, scenes.dataset)
    before = _measured(
        heads, lambda part: exact if config.joint.steps else from_maps(maps()[part]), backbone, scenes, parts
    )
    tuned, after = None, None
    if config.joint.steps:
        probed = _probes(config, backbone, blocks)
        tuned = tune_jointly(config, backbone, blocks, heads, scenes, path / "joint", probed)
        read = from_backbone(tuned.backbone, blocks, scenes.dataset)
        after = _measured(heads, lambda _: read, tuned.backbone, scenes, parts)
    with processes.main_writes():
        if processes.is_main():
            _write(config, path, scenes, tuned or backbone, made, before, after, blocks)
            # 0.3 MiB an image and view, which a finished run needs no more.
            shutil.rmtree(path / "maps", ignore_errors=True)
    return _finished(path)


def _measured(
    heads: Mapping[Task, TaskHead],
    read_of: Callable[[str], ReadMaps],
    backbone: Backbone,
    scenes: Scenes,
    parts: Sequence[str],
) -> Both:
    """On the main process; empty on the others, which wait."""
    found: list[Both] = []
    with processes.main_writes():
        if processes.is_main():
            found.append(measure_all(heads, read_of, backbone, scenes, parts))
    return found[0] if found else {}


def _probes(config: VisftConfig, backbone: Backbone, blocks: tuple[int, ...]) -> Probed | None:
    """Linear probes on the half of the suite that choices are made on; None where there is no set."""
    if not config.forgetting.measure:
        return None
    loaded = load_suite(config.forgetting.model_copy(update={"part": "choice"}), ()).sets
    sets = [each for each in loaded if each.name != made_of(config.data)]
    if not sets:
        return None
    watched: list[Watched] = []
    readout = Readout(blocks=blocks, pools=("mean",))
    processes.from_main(lambda: watched.append(Watched(backbone, readout, sets, config.forgetting)))

    def probed(read: Callable[[Tensor], Tensor], device: torch.device) -> float:
        return watched[0].change(read, device)

    return probed


def _write(
    config: VisftConfig,
    path: Path,
    scenes: Scenes,
    backbone: Tuned | Backbone,
    made: Mapping[Task, TrainedHead],
    before: Both,
    after: Both | None,
    blocks: tuple[int, ...],
) -> None:
    """Records, COCO results, the backbone, and the reports; on the main process."""
    network = backbone.backbone if isinstance(backbone, Tuned) else backbone
    results = [
        _record(config, scenes, one, part, metric, found, network.name, "stage 1", blocks, made)
        for (_, part), one in before.items()
        for metric, found in one.figures.items()
    ]
    for key, one in (after or {}).items():
        part = key[1]
        for metric, found in one.figures.items():
            results.append(_record(config, scenes, one, part, metric, found, network.name, "visft", blocks, made))
        for metric, change in _changes(before[key], one).items():
            start = before[key].figures[metric.removesuffix("_change")].value
            record = _record(config, scenes, one, part, metric, change, network.name, "visft", blocks, made)
            results.append(record.model_copy(update={"before": start, "against": "stage 1"}))
    write_text(path / RESULTS, "".join(r.model_dump_json() + "\n" for r in results))
    last = after or before
    for (task, part), one in last.items():
        if one.found:
            indices = scenes.measured()[part]
            listed = coco_results(one.found, scenes.dataset, indices)
            write_text(path / "predictions" / f"{task}-{part}.json", json.dumps(listed) + "\n")
        elif one.said:
            rows = scenes.of_task(scenes.measured()[part], task).tolist()
            said = [
                {"image_id": scenes.dataset.image_ids[i], "caption": text}
                for i, text in zip(rows, one.said, strict=True)
            ]
            write_text(path / "predictions" / f"{task}-{part}.json", json.dumps(said, ensure_ascii=False) + "\n")
    if isinstance(backbone, Tuned):
        save_tuned_backbone(path / "backbone", backbone.backbone, backbone.adapter, keepsight.__version__)
    write_precision(path, precision_record(scenes.dataset.classes, before, after))
    write_galleries(path, write_scene_examples(path, scenes.dataset, scenes.measured()))
    write_visft_table(path)
    write_page(path, visft_page(path))
    seal(path, [FACTS, RESULTS], SEAL)


def _changes(before: Measured, after: Measured) -> dict[str, Interval]:
    """The change of each AP with its paired interval over images; captions have none."""
    found = {}
    for first, second, suffix in zip(after.aps, before.aps, ("", "_agnostic")[: len(after.aps)], strict=True):
        name = "mask" if first.kind == "segm" else "box"
        metrics: tuple[ApMetric, ...] = ("ap", "ap50", "ap75")
        for metric in metrics:
            found[f"{name}_{metric}{suffix}_change"] = ap_difference(first, second, metric)
    return found


def _record(
    config: VisftConfig,
    scenes: Scenes,
    one: Measured,
    part: str,
    metric: str,
    found: Interval,
    backbone: str,
    method: str,
    blocks: tuple[int, ...],
    made: Mapping[Task, TrainedHead],
) -> Result:
    head = made[one.task]
    extra: dict[str, Any] = {"size": config.backbone.size} if config.backbone.size else {}
    return Result(
        task=one.task,
        dataset=scenes.dataset.name,
        split=part,
        method=f"{head.record.kind} {method}",
        backbone=backbone,
        readout=str(Readout(blocks=blocks, pools=("mean",))).partition(":")[0] + ":map",
        metric=metric,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.kind,
        n=one.n,
        labels=len(scenes.train),
        seed=config.seed,
        seeds=1,
        seconds=head.record.seconds,
        trainable_parameters=sum(p.numel() for p in head.head.parameters()),
        **extra,
    )
