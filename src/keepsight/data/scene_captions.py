"""Captions of composed scenes: what is there, and where. Knows no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placed:
    """One visible object: how its category and it itself are called, and the centre of its box in shares of the image."""

    phrase: str
    text: str
    x: float
    y: float


def captions_of(placed: Sequence[Placed]) -> tuple[str, ...]:
    """Five captions (four of a single object); the first is the template of category and arrangement.

    Example:
        >>> frog, boat = Placed("an animal", "a frog", 0.2, 0.5), Placed("a vehicle", "a boat", 0.7, 0.6)
        >>> captions_of((boat, frog))[:3]
        ('an animal left of a vehicle', 'a frog left of a boat', 'a vehicle right of an animal')
        >>> captions_of((frog,))[:2]
        ('an animal on the left', 'a frog on the left')
    """
    by_phrase, by_text = [each.phrase for each in placed], [each.text for each in placed]
    if len(placed) == 1:
        where = _place(placed[0])
        return (
            f"{by_phrase[0]} {where}",
            f"{by_text[0]} {where}",
            f"a picture of {by_phrase[0]}",
            f"a picture of {by_text[0]}",
        )
    beside = _spread([each.x for each in placed]) >= _spread([each.y for each in placed])
    order = sorted(range(len(placed)), key=lambda place: placed[place].x if beside else placed[place].y)
    phrases, texts = [by_phrase[place] for place in order], [by_text[place] for place in order]
    back = phrases[::-1]
    forward, backward = ("left of", "right of") if beside else ("above", "below")
    if len(placed) == 2:
        arranged = (
            f"{phrases[0]} {forward} {phrases[1]}",
            f"{texts[0]} {forward} {texts[1]}",
            f"{back[0]} {backward} {back[1]}",
        )
    else:
        path = ("from left to right", "from right to left") if beside else ("from top to bottom", "from bottom to top")
        arranged = (
            f"{_listed(phrases)} {path[0]}",
            f"{_listed(texts)} {path[0]}",
            f"{_listed(back)} {path[1]}",
        )
    return (*arranged, f"a picture of {_listed(sorted(by_phrase))}", f"a picture of {_listed(sorted(by_text))}")


def _place(one: Placed) -> str:
    """Where a single object is: in the middle, or towards the side it is nearest to."""
    x, y = one.x - 0.5, one.y - 0.5
    if max(abs(x), abs(y)) < 0.1:
        return "in the middle"
    if abs(x) >= abs(y):
        return "on the left" if x < 0 else "on the right"
    return "at the top" if y < 0 else "at the bottom"


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
