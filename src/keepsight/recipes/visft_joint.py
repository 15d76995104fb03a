"""Stage 2 of ViSFT: LoRA through frozen heads, a ladder of rungs that are measured on validation images, and the choice of one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from keepsight.core import Backbone, Config, Readout, Task, TaskHead, Trainable, UserError, processes
from keepsight.core.files import atomic_directory, is_sound, write_text
from keepsight.core.progress import log
from keepsight.data.streams import Stream
from keepsight.evaluate.cost import measured
from keepsight.export.adapter import FusedAdapter, fused_adapter
from keepsight.methods.encoder import TunedBackbone
from keepsight.methods.penalties_feature import RiftCovConfig
from keepsight.methods.penalty_parts import About
from keepsight.methods.visft import JointTuning, check_probabilities, task_of_step
from keepsight.methods.weight_rules import TpgmConfig
from keepsight.recipes.retain import retained
from keepsight.recipes.visft_data import Scenes
from keepsight.recipes.visft_measure import MAIN, from_map, measure_all
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.train import SceneBatches, load_trained_state, train, trained_state

RUNG, WEIGHTS = "rung.json", "adapter.safetensors"

Probed = Callable[[Callable[[Tensor], Tensor], torch.device], float]
"""What reads features [B, F] from images -> points of mean probe accuracy gained on other data (on the half that chooses)."""


class Rung(Config):
    """rung.json: the backbone after so many steps, looked at on validation images alone.

    Attributes:
        step: 0 is the untouched backbone.
        tasks: The main figure of each task on validation images (`visft_measure.MAIN`).
        probes: Points of mean linear-probe accuracy gained on other data; None where there is none.
    """

    step: int
    tasks: dict[Task, float]
    probes: float | None = None


class Choice(Config):
    """choice.json: which rung was taken, by which rule, and what all of them were.

    Attributes:
        step: Of the rung that was taken.
        rule: What chose it: "probes", "tasks" or "last".
        rungs: All, in order.
        heads: Sha256 of each frozen head's weights, the same before and after the training.
        trainable_parameters: Of LoRA.
        seconds: Wall time, with the measuring of rungs.
        step_seconds: Median wall time of a training step.
    """

    step: int
    rule: str
    rungs: tuple[Rung, ...]
    heads: dict[Task, str]
    trainable_parameters: int
    seconds: float
    step_seconds: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What stage 2 leaves: the merged backbone, what LoRA added to it, and how it was chosen."""

    backbone: Backbone
    adapter: FusedAdapter | None
    choice: Choice


def choose_rung(rungs: tuple[Rung, ...], rule: str) -> int:
    """The place of the chosen rung.

    "tasks" takes the greatest mean of the tasks' figures. "probes" takes the greatest gain on other data among the rungs whose mean
    of the tasks' figures is at least that of the untouched backbone (the first rung, which is always among them). Of equals the
    earlier one is taken.

    Example:
        >>> ladder = (Rung(step=0, tasks={"detection": 0.4}, probes=0), Rung(step=9, tasks={"detection": 0.5}, probes=-1))
        >>> choose_rung(ladder, "tasks"), choose_rung(ladder, "probes")
        (1, 0)
    """
    means = [float(np.mean(list(rung.tasks.values()))) for rung in rungs]
    if rule == "last":
        return len(rungs) - 1
    if rule == "tasks" or any(rung.probes is None for rung in rungs):
        return int(np.argmax(means))
    probes = [rung.probes if mean >= means[0] else -np.inf for rung, mean in zip(rungs, means, strict=True)]
    return int(np.argmax(np.array(probes, dtype=float)))


class Ladder:
    """Looks at the method at each rung, and keeps its weights and figures in a folder; what is there is not measured again."""

    def __init__(
        self,
        folder: Path,
        method: JointTuning,
        backbone: Backbone,
        scenes: Scenes,
        heads: Mapping[Task, TaskHead],
        probed: Probed | None,
    ) -> None:
        self._folder, self._method, self._backbone = folder, method, backbone
        self._scenes, self._heads, self._probed = scenes, heads, probed

    def look(self, step: int) -> Rung:
        """The rung of the weights as they are now; of one that a killed training had passed, as it was kept."""
        self._method.eval()
        folder = self._folder / f"step-{step:06d}"
        weights = trained_state(self._method.encoder)
        rung = processes.from_main(lambda: self._looked(folder, step, weights))
        log.info(
            "after %d steps: %s%s",
            step,
            ", ".join(f"{MAIN[task]} {100 * value:.1f}" for task, value in rung.tasks.items()),
            "" if rung.probes is None else f", probes on other data {rung.probes:+.1f} points",
        )
        return rung

    def _looked(self, folder: Path, step: int, weights: dict[str, Tensor]) -> Rung:
        if is_sound(folder) and _same(folder / WEIGHTS, weights):
            return Rung.model_validate_json((folder / RUNG).read_text(encoding="utf-8"))
        encoder, dataset = self._method.encoder, self._scenes.dataset
        read = from_map(self._method.map, self._backbone, dataset)
        found = measure_all(self._heads, lambda _: read, self._backbone, self._scenes, ("validation",))
        device = next(encoder.parameters()).device
        rung = Rung(
            step=step,
            tasks={task: one.figures[MAIN[task]].value for (task, _), one in found.items()},
            probes=None if self._probed is None else self._probed(encoder.read, device),
        )
        with atomic_directory(folder, sealed=True) as temporary:
            save_file(weights, temporary / WEIGHTS)
            (temporary / RUNG).write_text(rung.model_dump_json(indent=2), encoding="utf-8")
        return rung

    def weights(self, step: int) -> dict[str, Tensor]:
        """Of a rung."""
        weights: dict[str, Tensor] = load_file(self._folder / f"step-{step:06d}" / WEIGHTS)
        return weights


def _same(file: Path, weights: dict[str, Tensor]) -> bool:
    stored = load_file(file)
    return stored.keys() == weights.keys() and all(torch.equal(stored[name], weights[name]) for name in stored)


def joint_method(
    config: VisftConfig, backbone: Backbone, blocks: tuple[int, ...], heads: Mapping[Task, TaskHead]
) -> JointTuning:
    """Stage 2 before its first step: LoRA in a copy of the backbone, and the frozen heads."""
    torch.manual_seed(config.seed)
    readout = Readout(blocks=blocks, pools=("mean",))
    encoder = TunedBackbone(copy.deepcopy(backbone), readout, "lora", config.joint.adapter)
    return JointTuning(encoder, heads, config.joint.dropout_in_heads)


WITH_CLASSES = ("lwf", "r3f", "r4f", "pdr")
"""Penalties on class probabilities, which stage 2 has none of."""


def check_retention(config: VisftConfig) -> None:
    """Raise UserError where stage 2 cannot have what `joint.retain` names."""
    retain = config.joint.retain
    odd: list[str] = [p.name for p in retain.penalties if p.name in WITH_CLASSES]
    odd += [p.name for p in retain.penalties if isinstance(p, RiftCovConfig) and p.source == "cached"]
    odd += [rule.name for rule in retain.rules if isinstance(rule, TpgmConfig)]
    odd += ["wise-ft"] * (retain.wise_ft != 1) + ["soup"] * (retain.soup > 1)
    odd += ["reference_images"] * (retain.reference_images is not None)
    if odd:
        raise UserError(
            f"Stage 2 of ViSFT cannot have the retention {odd[0]}: it has no class probabilities, and chooses a rung by itself; "
            "use penalties on features or weights, such as procrustes, distill or l2-sp, or the rules ftp and spd."
        )


def with_retention(config: VisftConfig, method: JointTuning) -> Trainable:
    """Stage 2 with the penalties and rules of `joint.retain`, or itself where there are none."""
    retain, encoder = config.joint.retain, method.encoder
    if not retain:
        return method
    size = encoder.backbone.preprocessing.size
    with torch.no_grad():
        width = encoder.read(torch.zeros(1, 3, size, size)).shape[1]
    about = About(features=width, depth=max(encoder.readout.blocks), classes=0, seed=config.seed)

    def no_classes(x_BF: Tensor) -> Tensor:
        raise ValueError(f"stage 2 has no class probabilities of {len(x_BF)} images")

    return retained(
        retain, method, encoder, no_classes, about, retain.kept_mib if config.joint.augmentation is None else 0
    )


def tune_jointly(
    config: VisftConfig,
    backbone: Backbone,
    blocks: tuple[int, ...],
    heads: Mapping[Task, TaskHead],
    scenes: Scenes,
    folder: Path,
    probed: Probed | None,
) -> Tuned:
    """Train, look at every rung, and take one of them; a killed training goes on from its last checkpoint.

    Args:
        config: The run's.
        backbone: Not changed.
        blocks: Of the map.
        heads: Of stage 1, by task.
        scenes: The data.
        folder: joint/ of the run.
        probed: Linear probes on other data; None for none.
    """
    stage = config.joint
    method = joint_method(config, backbone, blocks, heads)
    probabilities = check_probabilities(stage.probabilities.of(tuple(heads)), tuple(heads))
    streams = {
        task: Stream(scenes.of_task(scenes.train, task), stage.batch_size, config.seed + number)
        for number, task in enumerate(heads)
    }
    tasks = {step: task_of_step(probabilities, config.seed, step) for step in range(stage.steps)}
    words = None if scenes.words is None else scenes.words.encode
    batches = SceneBatches(
        scenes.dataset,
        streams,
        tasks,
        backbone.preprocessing,
        stage.augmentation,
        words,
        config.seed,
        stage.shuffled,
    )
    ladder = Ladder(folder / "ladder", method, backbone, scenes, heads, probed)
    rungs = {0: ladder.look(0)}
    times: list[float] = []

    def look(step: int) -> None:
        rungs[step] = ladder.look(step)

    def report(step: int, figures: Mapping[str, float]) -> None:
        del step, figures
        times.append(time.monotonic())

    trained = with_retention(config, method)
    torch.manual_seed(config.seed)
    training = stage.training.model_copy(update={"validate_every": stage.ladder, "patience": 0})
    with measured() as cost:
        train(trained, batches, stage.steps, training, folder / "checkpoints", None, report, "joint tuning", look)
    rungs |= {step: ladder.look(step) for step in range(stage.ladder, stage.steps, stage.ladder) if step not in rungs}
    climbed = tuple(rungs[step] for step in sorted(rungs))
    chosen = climbed[choose_rung(climbed, stage.select)]
    choice = Choice(
        step=chosen.step,
        rule=stage.select,
        rungs=climbed,
        heads={task: method.check_heads()[task] for task in heads},
        trainable_parameters=sum(p.numel() for p in method.parameters() if p.requires_grad),
        seconds=cost.seconds,
        step_seconds=float(np.median(np.diff(times))) if len(times) > 1 else 0.0,
    )
    load_trained_state(method.encoder, ladder.weights(chosen.step))
    with processes.main_writes():
        if processes.is_main():
            write_text(folder / "choice.json", choice.model_dump_json(indent=2) + "\n")
    encoder = method.encoder.eval()
    assert encoder.peft_model is not None
    adapter = fused_adapter(encoder.peft_model)
    encoder.merge()
    return Tuned(encoder.backbone.eval(), adapter, choice)
