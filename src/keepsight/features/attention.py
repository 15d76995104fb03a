"""What the blocks of a transformer attend to, computed of the network's own queries and keys. Knows no probe and no picture.

While a block runs, its call of `scaled_dot_product_attention` is watched: by then q and k are what the network made of them (norms
of q and k, rotary positions, adapters, a bias as mask), whatever layers it has, so that no family of networks needs its own code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from keepsight.core import Backbone, UserError


def attention(backbone: Backbone, images_BCHW: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """Attention [B, blocks, heads, N, N] of all N tokens, the class token first and the patches last; each row sums to 1.

    Args:
        backbone: In eval mode.
        images_BCHW: Normalised as its preprocessing says, on its device.
        blocks: From 1 to its depth.

    Raises:
        UserError: It is no transformer with a class token and, in each of these blocks, one attention among all tokens.
    """
    modules = backbone.block_modules()
    if len(modules) != backbone.depth:
        raise _unknown(backbone, "it is not a sequence of transformer blocks")
    watch = _Watch()
    with contextlib.ExitStack() as stack:
        for block in set(blocks):
            for hook in watch.hooks(modules[block - 1], block):
                stack.callback(hook)
        stack.enter_context(_fused(backbone.network))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(watch)
        (features,) = backbone(images_BCHW, (max(blocks),))
    patches = features.grid[0] * features.grid[1]
    for block in blocks:
        seen = watch.seen.get(block, [])
        if len(seen) != 1:
            raise _unknown(backbone, f"block {block} attends {len(seen)} times")
        shape = seen[0].shape
        if len(shape) != 4 or shape[0] != len(images_BCHW) or shape[2] != shape[3] or shape[2] < patches:
            raise _unknown(backbone, f"block {block} does not attend among all tokens")
        # Networks of timm without a class token may still begin with registers.
        if shape[2] == patches or getattr(backbone.network, "cls_token", images_BCHW) is None:
            raise _unknown(backbone, "it has no class token")
    return torch.stack([watch.seen[block][0] for block in blocks], dim=1)


def class_attention(attention_BHNN: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attention [B, H, h, w] of the class token (the first) to the patches (the last h * w), as shares of what all patches get.

    Example:
        >>> rows = torch.tensor([0.2, 0.4, 0.4]).expand(1, 1, 3, 3)
        >>> class_attention(rows, (1, 2))
        tensor([[[[0.5000, 0.5000]]]])
    """
    h, w = grid
    x_BHN = attention_BHNN[:, :, 0, -h * w :]
    shares = x_BHN / x_BHN.sum(dim=2, keepdim=True).clamp(min=1e-12)
    return shares.view(*shares.shape[:2], h, w)


def rollout(attention_BLHNN: Tensor) -> Tensor:
    """Attention [B, N, N] rolled out over L blocks, first block first; each row sums to 1.

    The product of (A + 1) / 2 over the blocks, A being the mean over heads, the latest block on the left (Abnar and Zuidema 2020,
    arXiv 2005.00928, section 3): how much of each input token reaches each output token, if skip connections carry half.

    Example:
        >>> rollout(torch.full((1, 2, 1, 2, 2), 0.5))
        tensor([[[0.6250, 0.3750],
                 [0.3750, 0.6250]]])
    """
    one = torch.eye(attention_BLHNN.shape[-1], dtype=attention_BLHNN.dtype, device=attention_BLHNN.device)
    out = one.expand(len(attention_BLHNN), -1, -1)
    for block in range(attention_BLHNN.shape[1]):
        out = (attention_BLHNN[:, block].mean(dim=1) + one) / 2 @ out
    return out


def probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights [..., heads, N, M], float32, by which `scaled_dot_product_attention` of the same arguments mixes the values.

    Example:
        >>> q = torch.zeros(1, 1, 2, 4)
        >>> probabilities(q, q, q)[0, 0].tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    del value, dropout_p  # the weights before any dropout
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = factor * query.float() @ key.float().transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -torch.inf) if masked else logits + attn_mask
    return logits.softmax(dim=-1)


class _Watch(TorchFunctionMode):
    """Keeps the attention of those blocks that `hooks` were put on: of each a list, one entry a call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[Tensor]] = {}
        self._running: int | None = None

    def hooks(self, module: nn.Module, block: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """Watch a block; returns what removes the hooks."""
        begin = module.register_forward_pre_hook(partial(self._begin, block))
        end = module.register_forward_hook(self._end)
        return begin.remove, end.remove

    def _begin(self, block: int, *_: Any) -> None:
        self._running, self.seen[block] = block, []

    def _end(self, *_: Any) -> None:
        self._running = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if self._running is not None and func is F.scaled_dot_product_attention:
            self.seen[self._running].append(probabilities(*args, **named))
        return func(*args, **named)


@contextlib.contextmanager
def _fused(network: nn.Module) -> Iterator[None]:
    """Within the block timm's attention calls `scaled_dot_product_attention`, even where it was told to write the product out."""
    written_out: list[Any] = [module for module in network.modules() if vars(module).get("fused_attn") is False]
    for module in written_out:
        module.fused_attn = True
    try:
        yield
    finally:
        for module in written_out:
            module.fused_attn = False


def _unknown(backbone: Backbone, why: str) -> UserError:
    return UserError(
        f"What {backbone.name} attends to is not known, because {why}: the attention of the class token is read of ViT, DINOv2, "
        "DINOv3, EVA, BEiT and CLIP."
    )
