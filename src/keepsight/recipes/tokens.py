"""The tokens of a cell's images, made once for all seeds, label counts and methods that see the same images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from keepsight.core import Token, processes
from keepsight.heads.token import make_token
from keepsight.methods.tokens import TokenConfig
from keepsight.recipes.context import Cell, Context

KEPT = 2
"""Tokens that stay in memory: of 3,500 images with six views and 384 axes one takes 38 MB."""

_made: OrderedDict[str, Token] = OrderedDict()


def token_of(context: Context, cell: Cell, settings: TokenConfig, together: bool = False) -> Token:
    """Tokens of the cell's labelled and then of its unlabelled images.

    The map is fitted on all of them in the order of the data set, so that it is the same for every draw of labels.

    Args:
        together: All processes call this, and share the views that the cache lacks; otherwise this one computes them.
    """
    both = np.concatenate([cell.labelled, cell.unlabelled])
    pool, place = np.unique(both, return_inverse=True)
    text = f"{settings.views} {settings.augmentation.model_dump_json()} {settings.reduced} {settings.ridge} {context.readout}"
    about = (context.extractor.cache.folder, text, hashlib.sha256(b"".join(context.extractor.keys(pool))).hexdigest())
    key = " ".join(map(str, about))
    if together and processes.count() > 1:  # whatever this process remembers: all of them must take part
        for number in range(1, settings.views + 1):
            context.extractor.view(number, settings.augmentation).fill(pool, context.readout.parts)
    if key not in _made:

        def views() -> Iterator[Tensor]:
            for number in range(1, settings.views + 1):
                yield context.extractor.view(number, settings.augmentation).features(pool, context.readout)

        with torch.no_grad():
            x_NF = context.extractor.features(pool, context.readout)
            _made[key] = make_token(x_NF, views(), settings.reduced, settings.ridge)
    _made.move_to_end(key)
    while len(_made) > KEPT:
        _made.popitem(last=False)
    return _made[key].rows(torch.from_numpy(place))
