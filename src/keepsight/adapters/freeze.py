"""Which weights of a backbone are trained: all that a readout reaches, from some block on, or biases alone. Knows no method."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from keepsight.core import Backbone, Readout, UserError


def reached_parameters(backbone: Backbone, readout: Readout) -> set[str]:
    """Names (within `backbone.network`) of the parameters that get a gradient through this readout.

    Found in the graph of one forward pass on a blank image, so that it holds for every architecture; no gradient is computed,
    which for billions of weights would not fit beside them. A readout at block 8 of 12 does not reach blocks 9 to 12: they are
    neither run nor trained.
    """
    parameters = dict(backbone.network.named_parameters())
    frozen = {name: p.requires_grad for name, p in parameters.items()}
    was_training = backbone.training
    backbone.eval()
    size = backbone.preprocessing.size
    try:
        for p in parameters.values():
            p.requires_grad_(True)
        device = next(iter(parameters.values())).device
        with torch.enable_grad():
            out = readout.read(backbone(torch.zeros(2, 3, size, size, device=device), readout.blocks))
            leaves = _leaves(out)
    finally:
        for name, p in parameters.items():
            p.requires_grad_(frozen[name])
        backbone.train(was_training)
    return {name for name, p in parameters.items() if id(p) in leaves}


def _leaves(out: Tensor) -> set[int]:
    """The `id` of every leaf tensor that gets a gradient from this one."""
    found, seen, waiting = set[int](), set[object](), [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of the nodes that accumulate a gradient alone
        if leaf is not None:
            found.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return found


def freeze_all(backbone: Backbone) -> None:
    """No weight is trained."""
    backbone.requires_grad_(False)


def block_of_parameters(backbone: Backbone) -> dict[str, int]:
    """The block (1 to depth) of every parameter of `backbone.network`: 0 for what comes before the first block, depth + 1 for what
    comes after the last one (the final norm).

    Raises:
        UserError: The network is not a sequence of blocks.
    """
    modules = backbone.block_modules()
    if not modules:
        raise UserError(
            f"The backbone {backbone.name} is not one sequence of blocks, so blocks cannot be chosen or weighted: leave out "
            "first_block and layer_decay."
        )
    numbers = {id(p): number for number, module in enumerate(modules, 1) for p in module.parameters()}
    order = [(name, numbers.get(id(p))) for name, p in backbone.network.named_parameters()]
    first = next(i for i, (_, number) in enumerate(order) if number is not None)
    return {name: (0 if i < first else len(modules) + 1) if n is None else n for i, (name, n) in enumerate(order)}


def trainable_names(backbone: Backbone, readout: Readout, first_block: int = 1) -> set[str]:
    """Names of the parameters that the readout reaches, from block `first_block` on (1: all of them, the embedding too).

    Raises:
        UserError: The readout reads no block from `first_block` on.
    """
    reached = reached_parameters(backbone, readout)
    if first_block <= 1:
        return reached
    if any(block < first_block for block in readout.blocks):
        raise UserError(
            f"first_block={first_block} leaves nothing to train for the readout '{readout}', which reads a lower block: lower it, "
            "or read a higher block."
        )
    block_of = block_of_parameters(backbone)
    return {name for name in reached if block_of[name] >= first_block}


def train_reached(backbone: Backbone, readout: Readout, first_block: int = 1) -> None:
    """Full fine-tuning: every weight the readout reaches from `first_block` on is trained, the rest is frozen."""
    chosen = trainable_names(backbone, readout, first_block)
    for name, p in backbone.network.named_parameters():
        p.requires_grad_(name in chosen)


def train_biases(backbone: Backbone, readout: Readout, first_block: int = 1) -> None:
    """BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): only the biases that the readout reaches are trained, those of norms too.

    Raises:
        UserError: The network has no such biases.
    """
    chosen = {
        name for name in trainable_names(backbone, readout, first_block) if name.rsplit(".", 1)[-1].endswith("bias")
    }
    if not chosen:
        raise UserError(
            f"BitFit found no biases in {backbone.name} that the readout '{readout}' reaches: use another adapter."
        )
    for name, p in backbone.network.named_parameters():
        p.requires_grad_(name in chosen)


def checkpoint_blocks(backbone: Backbone) -> None:
    """Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174), in place: the inside of each block is computed again in the
    backward pass and not kept, so that memory grows with the states between blocks only, for about a third more time.

    Undone by `plain_blocks`. Raises UserError where the network is not a sequence of blocks.
    """
    modules = backbone.block_modules()
    if not modules:
        raise UserError(f"The backbone {backbone.name} is not one sequence of blocks: leave out checkpoint_blocks.")
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def plain_blocks(backbone: Backbone) -> None:
    """Undo `checkpoint_blocks`."""
    for module in backbone.block_modules():
        vars(module).pop("forward", None)
