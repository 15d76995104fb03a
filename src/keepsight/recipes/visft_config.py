"""The config of ViSFT from a command's words, and the paper's recipe. Knows nothing of how it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keepsight.core import UserError
from keepsight.data.words import PAPER_MIN_COUNT
from keepsight.methods import captioning, segmentation
from keepsight.methods.detection import PAPER_DETR
from keepsight.recipes.plan_visft import parse_tasks
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.recipes.words import merged, nested, validated


def paper() -> dict[str, Any]:
    """Heads and stages as published (150,000, 150,000 and 100,000 steps): for GPUs.

    One level of features, the last block's; LoRA of rank 64, scaled by 1/64, on query and value; batches of 8, 8 and 256 in
    stage 1. The
    batch of stage 2 is not public to us: ours is 32.
    """
    heads = {"lr": 5e-5, "weight_decay": 1e-4, "warmup": 2000 / 150_000, "clip": 0.1}
    captions = {"lr": 4e-4, "weight_decay": 1e-4, "warmup": 2000 / 100_000, "clip": 0.1}
    loop = {"validate_every": 5000, "patience": 0}
    return {
        "blocks": (-1,),
        "detr": PAPER_DETR.model_dump(),
        "segmentation": segmentation.PAPER.model_dump(),
        "captioning": captioning.PAPER.model_dump(),
        "detection_stage": {"steps": 150_000, "batch_size": 8, "training": {"optim": heads, **loop}},
        "segmentation_stage": {"steps": 150_000, "batch_size": 8, "training": {"optim": heads, **loop}},
        "captioning_stage": {"steps": 100_000, "batch_size": 256, "training": {"optim": captions, **loop}},
        "joint": {
            "steps": 50_000,
            "batch_size": 32,
            "ladder": 5000,
            "adapter": {"lora": {"rank": 64, "alpha": 1.0}},
            "training": {"optim": {"lr": 1e-5, "weight_decay": 1e-4, "warmup": 0.02, "clip": 0.1}},
        },
        "least_count": PAPER_MIN_COUNT,
    }


def visft_config(
    data: str,
    *,
    backbone: str | None = None,
    size: int | None = None,
    blocks: str | None = None,
    tasks: str | None = None,
    detector: str | None = None,
    steps: int | None = None,
    retain: str | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    assignments: Sequence[str] = (),
) -> VisftConfig:
    """One complete config; see the command for the words.

    Raises:
        UserError: What is wrong with them, as far as it can be told without reading images.
    """
    found = VisftConfig(data=data).model_dump()
    if backbone is not None and blocks is None and recipe is None:
        found["blocks"] = (-1,)  # the default's three are the packaged backbone's
    if recipe not in (None, "paper"):
        raise UserError(f"There is no recipe {recipe!r}: there is paper, and the default without --recipe.")
    if recipe == "paper":
        found = merged(found, paper())
    given: dict[str, Any] = {
        "backbone": {k: v for k, v in (("name", backbone), ("size", size)) if v is not None},
        "joint": {k: v for k, v in (("steps", steps), ("retain", retain)) if v is not None},
    }
    if blocks is not None:
        given["blocks"] = _blocks(blocks)
    if tasks is not None:
        given["tasks"] = parse_tasks(tasks)
    given |= {k: v for k, v in (("detector", detector), ("seed", seed)) if v is not None}
    found = merged(found, given)
    for assignment in assignments:
        found = merged(found, nested(assignment))
    return validated(VisftConfig, found)


def _blocks(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"--blocks {text!r} is not understood: write numbers and commas, such as 8,9,10 or -1."
        ) from None
