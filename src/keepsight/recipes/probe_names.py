"""The names of the probes, and of those that choices can be made on. Knows no probe's settings."""

from __future__ import annotations

from typing import Literal, get_args

from keepsight.core import UserError

ProbeName = Literal["ocr", "goi", "zero-shot", "few-shot", "retrieval", "vqa", "knn", "linear", "attention"]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)

WatchedName = Literal["ocr", "goi", "zero-shot", "retrieval", "vqa", "attention"]
"""Those with data of their own: the others ask the data sets whose half `--max-forgetting` looks at anyway."""


def in_order(probes: tuple[ProbeName, ...]) -> tuple[ProbeName, ...]:
    """In the order of `PROBES`; ValueError for one that is named twice."""
    if len(set(probes)) != len(probes):
        raise ValueError("name each probe once")
    return tuple(sorted(probes, key=PROBES.index))


def parse_probes(text: str) -> tuple[str, ...]:
    """Names with commas between them; raises UserError for anything else."""
    names = tuple(name.strip() for name in text.split(","))
    odd = [name for name in names if name not in PROBES]
    if odd:
        raise UserError(f"There is no probe {odd[0]!r}: there are {', '.join(PROBES)}.")
    if len(set(names)) != len(names):
        raise UserError(f"--probes {text!r} names a probe twice: name each once.")
    return names
