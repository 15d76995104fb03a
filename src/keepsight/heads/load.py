"""From a head to its kind and back: the one place that lists the heads a saved model may have."""

from __future__ import annotations

from keepsight.core import Head, UserError
from keepsight.heads.content_style import ContentStyleHead
from keepsight.heads.gaussian import GaussianHead
from keepsight.heads.linear import LinearHead
from keepsight.heads.mlp import MLPHead
from keepsight.heads.neighbours import NeighbourHead

KINDS: dict[
    str, type[LinearHead] | type[NeighbourHead] | type[ContentStyleHead] | type[GaussianHead] | type[MLPHead]
] = {
    "linear": LinearHead,
    "neighbours": NeighbourHead,
    "content-style": ContentStyleHead,
    "gaussian": GaussianHead,
    "mlp": MLPHead,
}


def head_kind(head: Head) -> str:
    """The name under which `build_head` knows this head's class.

    Example:
        >>> head_kind(LinearHead(features=2, classes=2))
        'linear'
    """
    for kind, cls in KINDS.items():
        if type(head) is cls:
            return kind
    raise ValueError(f"{type(head).__name__} is not one of the heads that can be saved: {', '.join(KINDS)}")


def build_head(kind: str, shape: dict[str, int]) -> Head:
    """The empty head of a kind and shape; its state dict fills it.

    Raises:
        UserError: The kind is unknown, or the shape is not one of this kind.

    Example:
        >>> build_head("linear", {"features": 3, "classes": 2}).shape()
        {'features': 3, 'classes': 2}
    """
    if kind not in KINDS:
        raise UserError(f"The saved head is of kind {kind!r}, but this version of keepsight knows {', '.join(KINDS)}.")
    try:
        return KINDS[kind](**shape)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The saved head of kind {kind!r} has a shape it cannot have: {shape} ({error}).") from error
