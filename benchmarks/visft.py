"""A stage-2 step of ViSFT against the same step written plainly: python benchmarks/visft.py [--steps 10] [--lines 0,2]

The packaged ViT-S/14 at 168 px, real scenes (32 that `keepsight demo-data scenes` writes, or --data FOLDER), batches of 8, LoRA of
rank 16 through a frozen head on the patches of blocks 8, 9 and 10, AdamW, clipping, float32; blocks 11 and 12 run on neither side.
Heads have random weights, which costs the same.

Ours is `keepsight visft`'s own loop: `train` with its checks, schedule and checkpoints, and LoRA on q and v. The peer runs timm's
model with PEFT's LoRA, and transformers' `DetrForObjectDetection` on the map with its matching and losses at every layer. Both load
and decode the same images by the same code, and a check says that both heads get the same map. The peer's LoRA is on timm's fused
qkv, the usual way and the faster one (k is adapted, too, and the three share one A); "q, v apart" cuts that layer into three, so
that PEFT adapts just what ours does. Steps are taken in turn in one process, and a product of matrices between them.

- "detr, small": a plain DETR of the size of our default head (width 128, 1 + 2 layers, 10 learned queries) on both sides.
- "detr": width 256, 6 + 6 layers, 100 queries, hidden layers of 1,024: ViSFT's, but that its encoder has a width of 128.
- "default head": ours as `keepsight visft` builds it, against the peer's small DETR.
- "segmentation", "captioning": ours alone.

`ours` and `peer` are medians, `ratio` the median of the pairs' own ratios (above 1 ours is faster) and `spread` its standard error.
`*_gflop` is what torch counts in one step, matrix products and convolutions of forward and backward pass. `ceiling` is the median
float32 product of 2,048 x 2,048 in GFLOP/s, and `*_reached` the share of it, pair by pair, that a whole step reaches, decoding
included. `*_head` are parameters. JSON lines go to stdout, a table to stderr.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from extract import plain_model
from peft import LoraConfig, get_peft_model
from side_by_side import say, table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

from keepsight.core import Backbone, Batch, Target, Task, TaskHead
from keepsight.data.scenes import ScenesConfig, write_scenes
from keepsight.data.streams import Stream
from keepsight.heads.attention import LayerConfig
from keepsight.heads.detection import DetrNetConfig
from keepsight.methods.detection import DetrConfig as OurConfig
from keepsight.methods.visft import JointTuning
from keepsight.recipes.visft_data import Scenes, open_backbone, open_scenes
from keepsight.recipes.visft_heads import fresh_head
from keepsight.recipes.visft_joint import joint_method
from keepsight.recipes.visft_settings import VisftConfig
from keepsight.train import SceneBatches, train

WARM, SIDE = 2, 2048
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def plain_detr(width: int, encoder: int, decoder: int, queries: int, feedforward: int) -> OurConfig:
    """Our head as DETR was: learned queries, every layer's boxes anew, a softmax with "no object", norms after the sum."""
    net = DetrNetConfig(
        width=width, encoder_layers=encoder, decoder_width=width, decoder_layers=decoder, queries=queries,
        proposed=False, drawn=False, glimpse=0, background=True, layer=LayerConfig(feedforward=feedforward, norm_first=False),
    )  # fmt: skip
    return OurConfig(net=net, denoising=0)


SMALL, PAPER = plain_detr(128, 1, 2, 10, 256), plain_detr(256, 6, 6, 100, 1024)


class Apart(nn.Module):
    """timm's fused layer as three, which PEFT can adapt one by one."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(fused.in_features, fused.out_features // 3) for _ in range(3))
        for part, weight, bias in zip(
            (self.q, self.k, self.v), fused.weight.chunk(3), fused.bias.chunk(3), strict=True
        ):
            part.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


class Plain(nn.Module):
    """The peer: timm's ViT with PEFT's LoRA, and transformers' DETR on its map."""

    def __init__(
        self,
        backbone: Backbone,
        blocks: tuple[int, ...],
        classes: int,
        head: OurConfig,
        config: VisftConfig,
        apart: bool,
    ) -> None:
        super().__init__()
        lora, net, optim = config.joint.adapter.lora, head.net, config.joint.training.optim
        vit: Any = plain_model(backbone)
        if apart:
            for block in vit.blocks:
                block.attn.qkv = Apart(block.attn.qkv)
        reached = "|".join(str(number) for number in range(max(blocks)))
        adapted = rf"blocks\.({reached})\.attn\.qkv" + (r"\.[qv]" if apart else "")
        settings = LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=adapted)
        self.vit = get_peft_model(vit, settings).base_model.model
        self.blocks = blocks
        unused = ResNetConfig(
            embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", out_features=["stage1"]
        )
        detr = DetrForObjectDetection(
            DetrConfig(
                backbone_config=unused, d_model=net.width, num_queries=net.queries, num_labels=classes,
                encoder_layers=net.encoder_layers, decoder_layers=net.decoder_layers,
                encoder_ffn_dim=net.layer.feedforward, decoder_ffn_dim=net.layer.feedforward,
                encoder_attention_heads=net.layer.heads, decoder_attention_heads=net.layer.heads,
                dropout=0.0, auxiliary_loss=True,
            )
        )  # fmt: skip
        detr.model.backbone = nn.Identity()
        detr.model.input_projection = nn.Conv2d(len(blocks) * vit.embed_dim, net.width, 1)
        self.detr = detr.requires_grad_(False).eval()
        self.trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=optim.lr, weight_decay=optim.weight_decay)
        self.clip = math.inf if optim.clip is None else optim.clip

    def map(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, C, h, w]."""
        maps = self.vit.forward_intermediates(
            images, indices=[b - 1 for b in self.blocks], output_fmt="NLC", stop_early=True, intermediates_only=True
        )
        x = torch.cat([layer_norm(each, each.shape[-1:]) for each in maps], dim=2)
        side = math.isqrt(x.shape[1])
        return x.transpose(1, 2).reshape(len(x), -1, side, side)

    def loss(self, images: Tensor, targets: tuple[Target, ...]) -> Tensor:
        """Of a batch."""
        embedded = self.detr.model.input_projection(self.map(images)).flatten(2).transpose(1, 2)
        labels = [{"class_labels": target.classes, "boxes": target.boxes} for target in targets]
        loss: Tensor = self.detr(pixel_values=None, inputs_embeds=embedded, labels=labels).loss
        return loss

    def step(self, batch: Batch) -> None:
        """As a tutorial writes it."""
        self.loss(batch.inputs, batch.targets).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def gflop(loss: Callable[[], Tensor]) -> float:
    """Of a forward and a backward pass; with attention as plain products, since torch does not count a CPU's fused one."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss().backward()
    return float(counter.get_total_flops()) / 1e9


def our_loss(method: JointTuning, batch: Batch) -> Tensor:
    return torch.stack(list(method(batch, "model", 0).values())).sum()


def size_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Turns:
    """Steps of ours, as the trainer reports them; after each the ceiling and a step of the peer, which take turns, too."""

    def __init__(self, batches: SceneBatches, peer: Plain | None, clock: Callable[[], float]) -> None:
        self.batches, self.peer, self.clock = batches, peer, clock
        self.factors = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.ceilings: list[float] = []
        self.since = self.clock()

    def report(self, step: int, figures: Mapping[str, float]) -> None:
        """Called when a step of ours is over."""
        del figures
        self.ours.append(self.clock() - self.since)
        for work in (self.limit, self.other)[:: 1 if step % 2 else -1]:
            work(step)
        self.since = self.clock()

    def limit(self, step: int) -> None:
        del step
        start = self.clock()
        torch.mm(*self.factors)
        self.ceilings.append(2 * SIDE**3 / (self.clock() - start) / 1e9)

    def other(self, step: int) -> None:
        if self.peer is None:
            return
        start = self.clock()
        self.peer.step(self.batches(step - 1, 0, 1))
        self.theirs.append(self.clock() - start)


class Bench:
    """What all lines share."""

    def __init__(self, data: Path, steps: int, clock: str) -> None:
        self.config, self.steps, self.clock = VisftConfig(data=str(data)), steps, clock
        self.scenes: Scenes = open_scenes(self.config)
        self.backbone, self.blocks = open_backbone(self.config)
        network: Any = self.backbone.network
        self.channels = len(self.blocks) * network.embed_dim

    def line(
        self, name: str, task: Task, ours: OurConfig | None, theirs: OurConfig | None, apart: bool
    ) -> dict[str, Any]:
        """Measure and print one line."""
        config = self.config if ours is None else self.config.model_copy(update={"detr": ours})
        size, stage = self.backbone.preprocessing.size, config.joint
        _, head = fresh_head(config, task, self.channels, self.scenes, size)
        method = joint_method(config, self.backbone, self.blocks, {task: head.eval()})
        rows = self.scenes.of_task(self.scenes.train, task)
        batches = SceneBatches(
            self.scenes.dataset, {task: Stream(rows, stage.batch_size, config.seed)},
            dict.fromkeys(range(WARM + self.steps), task), self.backbone.preprocessing, stage.augmentation,
            None if self.scenes.words is None else self.scenes.words.encode, config.seed,
        )  # fmt: skip
        classes = len(self.scenes.dataset.classes)
        peer = None if theirs is None else Plain(self.backbone, self.blocks, classes, theirs, config, apart)
        more = self.counted(method, head, peer, batches(0, 0, 1))
        turns = Turns(batches, peer, CLOCKS[self.clock])
        with tempfile.TemporaryDirectory() as folder:
            turns.since = turns.clock()
            train(method, batches, WARM + self.steps, stage.training, Path(folder), None, turns.report, name)
        return self.said(name, f"{size} px, batch {stage.batch_size}", turns, more)

    def counted(self, method: JointTuning, head: TaskHead, peer: Plain | None, batch: Batch) -> dict[str, float]:
        """What does not depend on time; also makes sure that both heads get the same map."""
        found = {"ours_gflop": gflop(lambda: our_loss(method, batch)), "ours_head": size_of(head)}
        method.zero_grad(set_to_none=True)
        if peer is not None:
            with torch.no_grad():
                torch.testing.assert_close(method.map(batch.inputs), peer.map(batch.inputs), atol=1e-3, rtol=1e-3)
            found |= {
                "peer_gflop": gflop(lambda: peer.loss(batch.inputs, batch.targets)),
                "peer_head": size_of(peer.detr),
            }
            peer.zero_grad(set_to_none=True)
        return found

    def said(self, name: str, size: str, turns: Turns, more: dict[str, float]) -> dict[str, Any]:
        """The line, without the steps that warm up."""
        ours, theirs, ceilings = turns.ours[WARM:], turns.theirs[WARM:], turns.ceilings[WARM:]
        images = self.config.joint.batch_size
        line: dict[str, Any] = {"name": name, "size": size, "ours": images / statistics.median(ours)}
        if theirs:
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            line |= {
                "peer": images / statistics.median(theirs),
                "ratio": statistics.median(ratios),
                "spread": statistics.stdev(ratios) / math.sqrt(len(ratios)),
            }
        line |= {"unit": "images/s", **more, "ceiling": statistics.median(ceilings)}
        for side, seconds in (("ours", ours), ("peer", theirs)):
            if seconds:
                shares = [more[f"{side}_gflop"] / s / c for s, c in zip(seconds, ceilings, strict=True)]
                line[f"{side}_reached"] = statistics.median(shares)
        return say(**line, clock=self.clock, steps=self.steps, threads=torch.get_num_threads())


LINES: tuple[tuple[str, Task, OurConfig | None, OurConfig | None, bool], ...] = (
    ("detr, small", "detection", SMALL, SMALL, False),
    ("detr, small; peer: q, v apart", "detection", SMALL, SMALL, True),
    ("detr", "detection", PAPER, PAPER, False),
    ("default head", "detection", None, SMALL, False),
    ("segmentation", "segmentation", None, None, False),
    ("captioning", "captioning", None, None, False),
)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="pairs of steps a line, at least 2")
    parser.add_argument("--data", type=Path, help="a folder that keepsight demo-data scenes has written")
    parser.add_argument("--lines", default=",".join(str(i) for i in range(len(LINES))), help="which lines, from 0")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: time on all cores, for a busy machine"
    )
    arguments = parser.parse_args()
    if arguments.steps < 2:
        parser.error("--steps must be at least 2")
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data
        if data is None:
            data = Path(folder) / "scenes"
            write_scenes(data, ScenesConfig(images=32))
        bench = Bench(data, arguments.steps, arguments.clock)
        lines = [bench.line(*LINES[int(number)]) for number in arguments.lines.split(",")]
    for line in lines:
        for extra in ("ours_head", "peer_head", "size", "clock", "steps", "threads"):
            line.pop(extra, None)
    table(
        f"stage 2 of ViSFT at 168 px, batch {bench.config.joint.batch_size}: ours against timm, PEFT and transformers' DETR; "
        f"{arguments.steps} pairs of steps, {torch.get_num_threads()} threads, {arguments.clock} time",
        lines,
    )


if __name__ == "__main__":
    main()
