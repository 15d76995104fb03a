"""The setting `retain`: which penalties and weight rules, as text or in full."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import Field, model_validator

from keepsight.core import Config, UserError
from keepsight.methods.penalties import NAMES, PenaltyConfig, parse_penalty
from keepsight.methods.weight_rules import RuleConfig

RULES = ("ftp", "spd", "tpgm")
AFTERWARDS = ("wise-ft", "soup")
ALL_NAMES = (*NAMES, *RULES, *AFTERWARDS)
"""Everything that `retain` may hold."""


class RetainConfig(Config):
    """What keeps a tuned backbone near the one it came from; empty by default.

    As text: names joined by commas, a weight behind a colon, settings behind more: ``procrustes:2,l2-sp``, ``wise-ft:0.5``,
    ``rift-cov:1:q=free:margin=0.1``.

    Attributes:
        penalties: See `methods.penalties`.
        rules: During the training (ftp, spd) or after it, on validation images (tpgm).
        wise_ft: alpha of (1 - alpha) start + alpha end, of backbone and head, after the training; 1 changes nothing.
        soup: Trainings, differing in the order and augmentation of images, whose weights are averaged.
        reference_images: Data of other content, whose images the penalties look at in place of the task's; labels are not looked
            at. It costs a forward and a backward pass more a step.
        reference_batch: So many of them a step.
        kept_mib: Memory for features of the untouched network, where images come again in the same view.
    """

    penalties: tuple[PenaltyConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()
    wise_ft: float = Field(default=1.0, ge=0, le=1)
    soup: int = Field(default=1, ge=1)
    reference_images: str | None = None
    reference_batch: int = Field(default=32, ge=1)
    kept_mib: int = Field(default=512, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        return parsed(given) if isinstance(given, str) else given

    def __bool__(self) -> bool:
        return bool(self.penalties or self.rules or self.wise_ft != 1 or self.soup > 1)


def parsed(text: str) -> dict[str, Any]:
    """Settings of `RetainConfig` from ``NAME[:WEIGHT][:SETTING=VALUE]`` joined by commas; "none" is nothing.

    Raises:
        UserError: An unknown name or setting.

    Example:
        >>> parsed("procrustes:2, wise-ft:0.7, spd")["wise_ft"]
        0.7
    """
    penalties, rules, found = [], [], dict[str, Any]()
    for word in (w.strip() for w in text.split(",")):
        name, _, value = word.partition(":")
        if not word or word == "none":
            continue
        if name in NAMES:
            penalties.append(parse_penalty(word))
        elif name in RULES:
            rules.append({"name": name, **_assignments(value, word)})
        elif name == "wise-ft":
            found["wise_ft"] = _number(value, 0.5, word)
        elif name == "soup":
            found["soup"] = int(_number(value, 3, word))
        else:
            close = difflib.get_close_matches(name.lower(), ALL_NAMES, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALL_NAMES)}."
            raise UserError(f"There is no retention {name!r}: {hint}")
    return {"penalties": tuple(penalties), "rules": tuple(rules), **found}


def _assignments(text: str, word: str) -> dict[str, str]:
    settings = {}
    for part in text.split(":") if text else []:
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"The retention {word!r} is not understood at {part!r}: write SETTING=VALUE.")
        settings[key.strip()] = value.strip()
    return settings


def _number(text: str, default: float, word: str) -> float:
    try:
        return float(text) if text else default
    except ValueError:
        raise UserError(f"The retention {word!r} needs a number behind its colon.") from None
