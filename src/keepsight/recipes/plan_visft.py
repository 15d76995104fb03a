"""What stage 2 of ViSFT would take on given GPUs, before any weight is loaded: for `keepsight plan visft`.

The backbone's step is counted by `evaluate.memory_model`, the heads' by running them, small as they are, on made-up targets.
"""

from __future__ import annotations

import re
import shlex
from typing import Literal

import torch
from pydantic import Field

from keepsight.adapters.lora import LoraConfig
from keepsight.core import TASKS, Config, Target, Task, TaskHead, UserError
from keepsight.evaluate.memory_model import LiveBytes, LoraModel, StepMemory
from keepsight.methods.captioning import CaptionHead
from keepsight.methods.detection import DetrHead
from keepsight.methods.segmentation import MaskHead

GIB = 2**30
RESERVE = 2 * GIB
"""Of every GPU, for what is not modelled: the CUDA context, cuBLAS and NCCL buffers, fragmentation. An assumption, not measured."""

CLASSES, WORDS, OBJECTS, CAPTION = 80, 10_000, 10, 20
"""COCO: classes, and about how many different words (seen five times), objects an image and words a caption there are."""

ALPHA = 1.0
PER_GPU = 4

Precision = Literal["no", "bf16", "fp16"]
Sharding = Literal["none", "fsdp"]


class Way(Config):
    """One way to run the step, in bytes a GPU.

    Attributes:
        sharding: "none" is DDP (or one process).
        checkpointing: Of the backbone's blocks.
        weights: Backbone, LoRA and heads; a share of them with FSDP2.
        gathered: FSDP2: two blocks whole (one computes, one is fetched), and what is beside the blocks.
        gradients: Of LoRA; with DDP, its buckets as well.
        optimizer: Both moments of AdamW.
        activations: The backbone's, at the peak.
        heads: What the largest head adds to that peak.
        fits: Whether the sum is within a GPU's memory less `RESERVE`.
    """

    sharding: Sharding
    checkpointing: bool
    weights: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    heads: int
    fits: bool

    @property
    def total(self) -> int:
        """Bytes a GPU."""
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations + self.heads


class VisftPlan(Config):
    """Answer of `plan_visft`.

    Attributes:
        backbone: As asked for.
        size: Side of the input, px.
        depth: Blocks.
        parameters: Of the backbone.
        trainable: Of LoRA.
        head_parameters: By task; frozen in stage 2.
        gpus: How many.
        memory: Of each, bytes.
        batch: Images a step on all GPUs together.
        precision: As asked for.
        ways: Every way that was allowed, the fastest first.
        host: Bytes of the machine's own memory that loading takes at least, every process holding a whole copy.
        launch: The command of the first way that fits; None if none does.
    """

    backbone: str
    size: int
    depth: int
    parameters: int
    trainable: int
    head_parameters: dict[Task, int] = Field(default_factory=dict)
    gpus: int
    memory: int
    batch: int
    precision: Precision
    ways: tuple[Way, ...]
    host: int
    launch: str | None

    @property
    def chosen(self) -> Way | None:
        """The first way that fits."""
        return next((way for way in self.ways if way.fits), None)


def parse_gpus(text: str) -> tuple[int, int]:
    """Number and bytes each of "8x32GB"; a GB counts 2^30 bytes, as makers of GPUs count.

    Raises:
        UserError: It is something else.

    Example:
        >>> parse_gpus("8x32GB")
        (8, 34359738368)
    """
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+(?:\.\d+)?)\s*G(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None or not int(match[1]) or not float(match[2]):
        raise UserError(f"GPUs {text!r} are not understood: write how many and how large, such as 8x32GB or 1x24GB.")
    return int(match[1]), int(float(match[2]) * GIB)


def parse_tasks(text: str) -> tuple[Task, ...]:
    """Tasks of a comma-separated list, each once, in the usual order.

    Raises:
        UserError: It names none, or an unknown one.
    """
    named = {word.strip() for word in text.split(",") if word.strip()}
    if not named or not named <= set(TASKS):
        raise UserError(
            f"Tasks {text!r} are not understood: name some of {', '.join(TASKS)}, with commas between them."
        )
    return tuple(task for task in TASKS if task in named)


def plan_visft(
    backbone: str,
    gpus: str,
    *,
    rank: int = 64,
    batch: int | None = None,
    size: int | None = None,
    tasks: str = ",".join(TASKS),
    precision: Precision = "bf16",
    checkpointing: bool | None = None,
) -> VisftPlan:
    """Count parameters and bytes, and choose how to launch.

    Args:
        backbone: As for `load_backbone`; its weights are not loaded.
        gpus: See `parse_gpus`.
        rank: Of LoRA on q and v of every block.
        batch: Images a step on all GPUs together; four on each by default.
        size: Side of the input, px; the backbone's own by default.
        tasks: See `parse_tasks`.
        precision: Of the forward pass.
        checkpointing: Gradient checkpointing; None allows both, and without is chosen where it fits.

    Raises:
        UserError: An argument is not understood, or the backbone does not take it.
    """
    count, memory = parse_gpus(gpus)
    batch = PER_GPU * count if batch is None else batch
    if batch % count:
        raise UserError(f"A batch of {batch} images cannot be shared out equally to {count} GPUs: make it a multiple.")
    share = batch // count
    wanted = parse_tasks(tasks)
    model = LoraModel(backbone, LoraConfig(rank=rank, alpha=ALPHA), size)
    side, channels = model.backbone.preprocessing.size, model.channels
    heads = {task: _head(task, channels, side) for task in wanted}
    numbers = {task: sum(p.numel() for p in head.parameters()) for task, head in heads.items()}
    peak = max(head_memory(head, channels, model.grid, side, share) for head in heads.values())
    ways = tuple(
        _way(model, sharding, checkpoint, count, memory, share, precision != "no", sum(numbers.values()), peak)
        for sharding in (("none", "fsdp") if count > 1 else ("none",))
        for checkpoint in ((False, True) if checkpointing is None else (checkpointing,))
    )
    fitting = next((way for way in ways if way.fits), None)
    return VisftPlan(
        backbone=backbone,
        size=side,
        depth=model.sizes.depth,
        parameters=model.sizes.backbone,
        trainable=model.sizes.lora,
        head_parameters=numbers,
        gpus=count,
        memory=memory,
        batch=batch,
        precision=precision,
        ways=ways,
        host=count * 4 * model.sizes.backbone,
        launch=None if fitting is None else _launch(backbone, count, fitting, rank, batch, side, wanted, precision),
    )


def _way(
    model: LoraModel,
    sharding: Sharding,
    checkpointing: bool,
    count: int,
    memory: int,
    share: int,
    mixed: bool,
    head_parameters: int,
    head_peak: int,
) -> Way:
    sizes = model.sizes
    step: StepMemory = model.step(
        share, checkpointing=checkpointing, mixed=mixed, layout="whole" if sharding == "none" else "gathered"
    )
    parts = count if sharding == "fsdp" else 1
    weights = 4 * -(-(sizes.backbone + sizes.lora + head_parameters) // parts)
    trained = 4 * -(-sizes.lora // parts)
    gathered = 0
    if sharding == "fsdp":
        gathered = (2 if mixed else 4) * (2 * sizes.largest_block + sizes.beside_blocks + head_parameters)
    buckets = trained if sharding == "none" and count > 1 else 0
    way = Way(
        sharding=sharding,
        checkpointing=checkpointing,
        weights=weights,
        gathered=gathered,
        gradients=trained + buckets,
        optimizer=2 * trained,
        activations=step.peak,
        heads=max(0, step.kept + head_peak - step.peak),
        fits=False,
    )
    return way.model_copy(update={"fits": way.total <= memory - RESERVE})


def _head(task: Task, channels: int, size: int) -> TaskHead:
    """A head with its default settings, for COCO, as stage 2 runs it: frozen, in evaluation mode."""
    head: TaskHead
    if task == "detection":
        head = DetrHead(channels, CLASSES)
    elif task == "segmentation":
        head = MaskHead(channels, CLASSES, size)
    else:
        head = CaptionHead(channels, WORDS)
    return head.requires_grad_(False).eval()


def head_memory(head: TaskHead, channels: int, grid: tuple[int, int], size: int, batch: int) -> int:
    """Bytes at the peak of a frozen head's losses and of their gradient with respect to the map, in float32.

    Run on one and two images with `OBJECTS` objects (or one caption) each; more images take as much more as the second one does.
    """
    peaks: list[int] = []
    for images in range(1, min(batch, 2) + 1):
        map_BChw = torch.randn(images, channels, *grid, generator=torch.Generator().manual_seed(0)).requires_grad_()
        targets = tuple(_target(head.task, size) for _ in range(images))
        with LiveBytes([*head.parameters(), *head.buffers(), map_BChw]) as live:
            losses = head.losses(map_BChw, targets)
            torch.stack([loss.sum() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
            del losses
        peaks.append(live.peak)
    return peaks[-1] + (batch - len(peaks)) * (peaks[-1] - peaks[0])


def _target(task: Task, size: int) -> Target:
    generator = torch.Generator().manual_seed(0)
    if task == "captioning":
        return Target(words=torch.randint(4, WORDS, (1, CAPTION), generator=generator))
    corners = 0.2 + 0.6 * torch.rand(OBJECTS, 2, generator=generator)
    boxes = torch.cat([corners, torch.full((OBJECTS, 2), 0.2)], dim=1)
    classes = torch.randint(0, CLASSES, (OBJECTS,), generator=generator)
    if task == "detection":
        return Target(boxes=boxes, classes=classes)
    masks = torch.zeros(OBJECTS, size, size, dtype=torch.bool)
    masks[:, : size // 2, : size // 2] = True
    return Target(boxes=boxes, classes=classes, masks=masks)


def _launch(
    backbone: str,
    count: int,
    way: Way,
    rank: int,
    batch: int,
    size: int,
    tasks: tuple[Task, ...],
    precision: Precision,
) -> str:
    """The command; DATA and FOLDER are the user's."""
    start = ["torchrun", "--standalone", "--nproc-per-node", str(count), "-m", "keepsight"]
    words = [*(start if count > 1 else ["keepsight"]), "visft", "DATA", "--out", "FOLDER", "--backbone", backbone]
    words += ["--size", str(size), "--tasks", ",".join(tasks)]
    words += [f"joint.adapter.lora.rank={rank}", f"joint.adapter.lora.alpha={ALPHA:g}", f"joint.batch_size={batch}"]
    words += [f"joint.adapter.checkpoint_blocks={str(way.checkpointing).lower()}"]
    words += [f"joint.training.precision={precision}"]
    if way.sharding == "fsdp":
        words.append("joint.training.sharding=fsdp")
    return shlex.join(words)
