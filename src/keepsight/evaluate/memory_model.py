"""How much memory a training step of LoRA takes on a device that is not there. Knows no task head and no method.

The step itself is run, on tensors without storage (`FakeTensorMode`: shapes, dtypes and the CPU's dispatch, no bytes), and the
bytes that would be alive are counted operation by operation. So what autograd keeps needs no formula: a frozen Linear keeps no
input, fused attention no N x N map, and a mixed-precision copy of a frozen weight counts where one is made.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from keepsight.adapters.freeze import checkpoint_blocks, plain_blocks
from keepsight.adapters.lora import LoraConfig, Projection, SplitQKV, add_lora
from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Readout
from keepsight.core.features import feature_map

Layout = Literal["whole", "gathered"]
"""How the weights lie while a block computes: "whole", float32 copies on every device (one process, DDP); "gathered", a block at a
time in the precision of the computation, every tensor by itself (FSDP2)."""

FEW = 4
"""Blocks up to which a network is run as it is. Of a deeper one with equal blocks two and three are run."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that operations make, until they are freed; views and in-place results cost nothing.

    Args:
        known: Tensors that are there already and do not count.

    Attributes:
        now: Bytes alive.
        peak: The most that were alive at once.

    Example:
        >>> with LiveBytes() as live:
        ...     x = torch.zeros(100)
        ...     del x
        >>> live.now, live.peak
        (0, 400)
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.now, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it gave."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of one step beside weights, gradients and optimizer.

    Attributes:
        kept: Alive between the forward and the backward pass, the images included.
        peak: The most at any time.
    """

    kept: int
    peak: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers in a backbone with LoRA.

    Attributes:
        backbone: Parameters of the backbone itself.
        lora: Parameters of LoRA.
        largest_block: Parameters of the largest block, LoRA included.
        beside_blocks: Parameters outside the blocks: the embedding, the final norm.
        depth: Blocks.
    """

    backbone: int
    lora: int
    largest_block: int
    beside_blocks: int
    depth: int


class LoraModel:
    """A backbone with LoRA on q and v of every block, without weights: what is asked of it needs no memory worth naming.

    Args:
        name: As for `load_backbone`; the weights are not looked at.
        size: Side of the input, px; the backbone's own by default.
        lora: Rank (of the other fields the memory does not depend, but for dropout).
        timm_args: As for `load_backbone`.

    Attributes:
        backbone: On torch's device "meta".
        sizes: Numbers of parameters.
        channels, grid: Of the map that task heads get from one block.

    Raises:
        UserError: See `load_backbone` and `add_lora`.
    """

    def __init__(
        self, name: str, lora: LoraConfig, size: int | None = None, timm_args: dict[str, Any] | None = None
    ) -> None:
        with torch.device("meta"):
            backbone = load_backbone(name, weights="random", size=size, timm_args=timm_args or {})
        counted = sum(p.numel() for p in backbone.parameters())
        blocks = [_shapes(block) for block in backbone.block_modules()]
        # What follows is the same for every block, so a few of many equal ones are enough.
        self._few = len(blocks) > FEW and all(shapes == blocks[0] for shapes in blocks)
        self._read = 3 if self._few else backbone.depth
        with torch.device("meta"):
            add_lora(backbone, Readout(blocks=(self._read,)), lora)
        trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        modules = backbone.block_modules()[: self._read]
        in_blocks = sum(p.numel() for block in backbone.block_modules() for p in block.parameters())
        total = sum(p.numel() for p in backbone.parameters())
        self.sizes = Sizes(
            backbone=counted,
            lora=trained * backbone.depth // self._read,
            largest_block=max((sum(p.numel() for p in block.parameters()) for block in modules), default=total),
            beside_blocks=total - in_blocks,
            depth=backbone.depth,
        )
        size = backbone.preprocessing.size
        with torch.device("meta"), torch.no_grad():
            (features,) = backbone(torch.zeros(1, 3, size, size), (self._read,))
        self.channels, self.grid = features.patches.shape[-1], features.grid
        self.backbone = backbone.train()

    def step(
        self, batch: int, *, checkpointing: bool, mixed: bool = False, layout: Layout = "whole", as_on_gpu: bool = True
    ) -> StepMemory:
        """Memory of a forward and a backward pass from images [B, 3, S, S] to the map of the last block.

        Args:
            batch: B, images on one device.
            checkpointing: Keep the states between blocks alone, and compute each block again.
            mixed: bf16 (or fp16, which takes as much), as autocast does it.
            layout: See `Layout`.
            as_on_gpu: With `mixed`, norms as CUDA's autocast computes them.
        """
        with contextlib.ExitStack() as undo:
            if checkpointing:
                checkpoint_blocks(self.backbone)
                undo.callback(plain_blocks, self.backbone)
            if mixed and as_on_gpu:
                for module in self.backbone.modules():
                    if isinstance(module, nn.LayerNorm):
                        undo.callback(module.register_forward_pre_hook(_in_float32).remove)
            dtype = torch.bfloat16 if mixed and layout == "gathered" else torch.float32
            with FakeTensorMode(allow_non_fake_inputs=True), _storageless(self.backbone, dtype, layout):
                run = _steps(self.backbone, batch, mixed)
                last = run(self._read)
                if not self._few:
                    return last
                before = run(self._read - 1)
        more = self.sizes.depth - self._read
        return StepMemory(
            kept=last.kept + more * (last.kept - before.kept), peak=last.peak + more * (last.peak - before.peak)
        )


def _steps(backbone: Backbone, batch: int, mixed: bool) -> Callable[[int], StepMemory]:
    """A function of the block that is read: forward, then backward from the sum of squares of the map."""
    size = backbone.preprocessing.size
    # Gradients are there beforehand, as in every micro-batch after the first: they are counted by themselves.
    for p in backbone.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None

    def run(block: int) -> StepMemory:
        gradients = [p.grad for p in backbone.parameters() if p.grad is not None]
        with LiveBytes([*backbone.parameters(), *backbone.buffers(), *gradients]) as live:
            images = torch.zeros(batch, 3, size, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = feature_map(backbone(images, (block,))).square().mean()
            kept = live.now
            loss.backward()  # type: ignore[no-untyped-call]
        return StepMemory(kept, live.peak)

    return run


@contextlib.contextmanager
def _storageless(backbone: Backbone, dtype: torch.dtype, layout: Layout) -> Iterator[None]:
    """Within a `FakeTensorMode`: the parameters on "meta" behave like ones on the CPU; undone afterwards."""
    tensors = [(module, name, p) for module in backbone.modules() for name, p in _own(module)]
    made: dict[int, Tensor] = {}  # a parameter that two modules share stays shared
    try:
        for module, name, old in tensors:
            narrow = old.is_floating_point() and old.ndim > 1 and not old.requires_grad
            kind = dtype if narrow else old.dtype
            new = made.setdefault(id(old), torch.empty(old.shape, dtype=kind, device="cpu"))
            if isinstance(old, nn.Parameter):
                module._parameters[name] = nn.Parameter(new, old.requires_grad)
            else:
                module._buffers[name] = new
        if layout == "whole":
            for module in backbone.modules():
                if isinstance(module, SplitQKV):
                    _tie(module)
        yield
    finally:
        for module, name, old in tensors:
            if isinstance(old, nn.Parameter):
                module._parameters[name] = old
            else:
                module._buffers[name] = old


def _in_float32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """CUDA's autocast normalises in float32, the CPU's does not; a norm keeps its input, so that it matters."""
    return (inputs[0].float(), *inputs[1:])


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _tie(split: SplitQKV) -> None:
    """q, k and v as parts of one tensor again, as `SplitQKV` makes them."""
    parts = (split.q, split.k, split.v)
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, Projection)]
    whole = torch.empty(sum(layer.out_features for layer in layers), layers[0].in_features)
    for layer, weight in zip(layers, whole.chunk(len(layers)), strict=True):
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)


def _shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, p.shape) for name, p in module.named_parameters()]
