"""Every retention penalty by name: their settings, how they are written on the command line, and how they are made."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from keepsight.core import Penalty, UserError
from keepsight.methods.penalties_blocks import Delta, DeltaConfig, Ldifs, LdifsConfig
from keepsight.methods.penalties_feature import (
    Bss,
    BssConfig,
    Cka,
    CkaConfig,
    Distill,
    DistillConfig,
    Procrustes,
    ProcrustesConfig,
    RiftCov,
    RiftCovConfig,
)
from keepsight.methods.penalties_output import (
    Lwf,
    LwfConfig,
    MaskedCounterfactual,
    MaskedCounterfactualConfig,
    Pdr,
    PdrConfig,
    R3f,
    R3fConfig,
    R4f,
    R4fConfig,
)
from keepsight.methods.penalties_weight import L2Sp, L2SpConfig
from keepsight.methods.penalty_parts import About, RetentionConfig

__all__ = ["NAMES", "About", "PenaltyConfig", "RetentionConfig", "make_penalty", "parse_penalty"]

PenaltyConfig = Annotated[
    RiftCovConfig
    | CkaConfig
    | ProcrustesConfig
    | L2SpConfig
    | DistillConfig
    | LdifsConfig
    | LwfConfig
    | DeltaConfig
    | BssConfig
    | R3fConfig
    | R4fConfig
    | PdrConfig
    | MaskedCounterfactualConfig,
    Field(discriminator="name"),
]
"""The settings of any one penalty, told apart by `name`."""

_CONFIGS: Mapping[str, type[RetentionConfig]] = {
    config.model_fields["name"].default: config for config in get_args(get_args(PenaltyConfig)[0])
}
NAMES: tuple[str, ...] = tuple(_CONFIGS)
"""Of all penalties."""

_CLASSES: Mapping[type[RetentionConfig], Callable[[Any, About], Penalty]] = {
    RiftCovConfig: RiftCov,
    CkaConfig: Cka,
    ProcrustesConfig: Procrustes,
    L2SpConfig: L2Sp,
    DistillConfig: Distill,
    LdifsConfig: Ldifs,
    LwfConfig: Lwf,
    DeltaConfig: Delta,
    BssConfig: Bss,
    R3fConfig: R3f,
    R4fConfig: R4f,
    PdrConfig: Pdr,
    MaskedCounterfactualConfig: MaskedCounterfactual,
}


def make_penalty(config: PenaltyConfig, about: About) -> Penalty:
    """The penalty of these settings; its forward gives the raw value, before weight and margin.

    Raises:
        UserError: `about` lacks what it needs.
    """
    return _CLASSES[type(config)](config, about)


def parse_penalty(text: str) -> PenaltyConfig:
    """Read ``NAME``, ``NAME:WEIGHT``, or either with ``:SETTING=VALUE`` behind it; several values are joined by +.

    Example:
        >>> parse_penalty("procrustes:2").weight
        2.0
        >>> parse_penalty("ldifs:blocks=4+8:margin=0.1").blocks
        (4, 8)

    Raises:
        UserError: Anything else.
    """
    name, *rest = (part.strip() for part in text.split(":"))
    if name not in _CONFIGS:
        close = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NAMES)}."
        raise UserError(f"There is no retention penalty {name!r}: {hint}")
    fields = _CONFIGS[name].model_fields
    settings: dict[str, Any] = {"name": name}
    for position, part in enumerate(rest):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and position == 0:
            key, value = "weight", key
        elif not equals or key not in fields or key == "name":
            known = [field for field in fields if field != "name"]
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}=?" if close else f"its settings are {', '.join(known)}."
            raise UserError(f"The retention penalty {text!r} is not understood at {part!r}: {hint}")
        if key in settings:
            raise UserError(f"The retention penalty {text!r} sets {key} twice.")
        settings[key] = value.split("+") if fields[key].annotation == tuple[int, ...] else value
    try:
        found: PenaltyConfig = TypeAdapter[PenaltyConfig](PenaltyConfig).validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"The retention penalty {text!r} has a wrong value for {first['loc'][1]}: {first['msg'][:1].lower()}{first['msg'][1:]}."
        ) from error
    return found
