"""Networks between the two ends of a finished training (WiSE-FT), without training again. Knows no comparison."""

from __future__ import annotations

import copy

import torch

from keepsight.core import Backbone, Head, UserError
from keepsight.export.model import TunedModel
from keepsight.methods.frozen import Probe
from keepsight.objectives.weight_space import between
from keepsight.recipes.context import Cell, Context
from keepsight.recipes.fit_frozen import fit_head


def start_head(context: Context, cell: Cell) -> Head:
    """The head at alpha 0: the probe on the untouched features of the cell's labelled images."""
    return fit_head(context, cell, Probe(context.config.probe), cell.unlabelled[:0])


def mixed_network(context: Context, start: Head, end: TunedModel, alpha: float, what: str) -> tuple[Backbone, Head]:
    """(1 - alpha) start + alpha end of backbone and head (Wortsman et al. 2022, arXiv 2109.01903).

    Args:
        context: Its backbone is the untouched one.
        start: From `start_head`.
        end: The trained network, adapters merged into its weights.
        alpha: 0 is the start, 1 the end.
        what: Names the training in an error.

    Raises:
        UserError: The training added parts that have no start.
    """
    backbone, head = copy.deepcopy(context.backbone), copy.deepcopy(start)
    both = torch.nn.ModuleList([backbone.network, head])
    before = both.state_dict()
    after = torch.nn.ModuleList([end.backbone.network, end.head]).state_dict()
    if before.keys() != after.keys():
        raise UserError(f"wise-ft mixes weights with their start, and {what} adds some that have none.")
    both.load_state_dict(between(before, after, alpha))
    return backbone.eval(), head.eval()
