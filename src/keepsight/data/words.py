"""Captions as word indices and back: the tokenisation, and a vocabulary fitted on training captions. Knows no image and no model.

Tokenisation (`tokens`), the same for training and for scoring: the text is NFKC-normalised and lower-cased; a word is a run of
letters, digits and combining marks, with apostrophes inside it; everything else (punctuation, hyphens, emoji) separates words and
is dropped. It serves languages that put spaces between words.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor

from keepsight.core import UserError

FILLING, BEGIN, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<filling>", "<begin>", "<end>", "<unknown>")
PAPER_MIN_COUNT = 5
"""How often the paper's words were seen at least (../methods: ViSFT, stage 1)."""

LONGEST_TEXT, LONGEST_WORD = 10_000, 64
"""Characters of a caption that are read, and of a word that may enter a vocabulary: beyond that a file is broken, not eloquent."""


def tokens(text: str) -> list[str]:
    """The words of a text, as the module says.

    Example:
        >>> tokens("The dog's RED ball, left-hand side (3.5 m)! \N{SOCCER BALL}")
        ['the', "dog's", 'red', 'ball', 'left', 'hand', 'side', '3', '5', 'm']
    """
    text = unicodedata.normalize("NFKC", text[:LONGEST_TEXT]).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    words = (word.strip("'") for word in kept.split())
    return [word for word in words if any(c.isalnum() for c in word)]  # a mark alone (a variation selector) is no word


@dataclass(frozen=True)
class Words:
    """A vocabulary of V = 4 + len(known) entries: 0 filling, 1 begin, 2 end, 3 unknown, then the known words.

    Attributes:
        known: The words, the most frequent first (equally frequent ones by the alphabet).
        longest: Words of a caption that are kept; what follows is cut off.

    Example:
        >>> words = Words.fit(["A red ball.", "A blue ball."])
        >>> words.encode(("a red ball", "A green ball on grass")).tolist()
        [[1, 4, 7, 5, 2, 0, 0], [1, 4, 3, 5, 3, 3, 2]]
        >>> words.decode([4, 7, 5])
        'a red ball'
    """

    known: tuple[str, ...]
    longest: int = 50

    @classmethod
    def fit(cls, captions: Iterable[str], min_count: int = 1, longest: int = 50) -> Words:
        """The vocabulary of the training captions (of no others).

        Args:
            captions: All captions of all training images.
            min_count: How often a word must occur; `PAPER_MIN_COUNT` in the paper, 1 for small sets.
            longest: See the class.

        Raises:
            UserError: If no word occurs that often.
        """
        seen = Counter(word for caption in captions for word in tokens(caption) if len(word) <= LONGEST_WORD)
        often = sorted(
            (word for word, count in seen.items() if count >= min_count), key=lambda word: (-seen[word], word)
        )
        if not often:
            raise UserError(
                f"The training captions have no word that occurs {min_count} time(s) or more, and captioning has nothing to "
                "learn: give captions, lower the least count, or leave captioning out."
            )
        return cls(tuple(often), longest)

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.known)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.known, start=len(SPECIAL))}

    def encode(self, captions: tuple[str, ...]) -> Tensor:
        """Captions as `core.Target.words`: [C, T] int64, each begun and ended, filled up with 0.

        A caption without any word (empty, or emoji alone) says nothing and is left out; without any caption: [0, 0].
        """
        split = [found[: self.longest] for caption in captions if (found := tokens(caption))]
        rows = [[BEGIN, *(self._index.get(word, UNKNOWN) for word in row), END] for row in split]
        length = max(map(len, rows), default=0)
        filled = [row + [FILLING] * (length - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.int64).reshape(len(rows), length)

    def decode(self, indices: Tensor | Sequence[int]) -> str:
        """The text of one caption [T], with or without begin, end and filling: words with a space between, up to the end."""
        numbers = indices.tolist() if isinstance(indices, Tensor) else indices
        until_end = takewhile(lambda index: index != END, numbers)
        return " ".join(self.word(index) for index in until_end if index not in (FILLING, BEGIN))

    def word(self, index: int) -> str:
        """The word of an index in [0, V)."""
        return SPECIAL[index] if index < len(SPECIAL) else self.known[index - len(SPECIAL)]

    def to_json(self) -> str:
        """Text from which `from_json` makes the same vocabulary."""
        return json.dumps({"known": list(self.known), "longest": self.longest}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, where: str = "The text") -> Words:
        """The vocabulary of `to_json`.

        Args:
            text: JSON.
            where: What holds it, for the error.

        Raises:
            UserError: If it is not a vocabulary.
        """
        try:
            read = json.loads(text)
        except ValueError:
            read = None
        known, longest = (read.get("known"), read.get("longest")) if isinstance(read, dict) else (None, None)
        if (
            not isinstance(known, list)
            or not all(isinstance(word, str) and word for word in known)
            or len(set(known)) != len(known)
            or not isinstance(longest, int)
            or isinstance(longest, bool)
            or longest < 1
        ):
            raise UserError(
                f"{where} is not a vocabulary: expected JSON with 'known' (a list of different words) and 'longest' (a whole "
                "number), as keepsight writes it beside a caption head."
            )
        return cls(tuple(known), longest)
