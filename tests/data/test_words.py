"""The vocabulary: what a word is, what is kept, and captions nobody should write."""

from __future__ import annotations

import pytest
import torch

from keepsight.core import UserError
from keepsight.data.words import BEGIN, END, FILLING, UNKNOWN, Words, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, left of THE cat.", ["a", "dog", "left", "of", "the", "cat"]),
        ("the dog\u2019s 'big' ball's", ["the", "dog's", "big", "ball's"]),
        ("well-lit café_au lait", ["well", "lit", "café", "au", "lait"]),
        ("cafe\u0301", ["café"]),  # the same letter, composed or not
        ("हिन्दी", ["हिन्दी"]),  # combining marks stay with their letters
        ("\U0001f600 ☀\ufe0f \U0001f468\u200d\U0001f469", []),
        ("", []),
        ("\ud800 ' \x00\n\t", []),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_vocabulary_is_ordered_by_count_then_alphabet_whatever_the_order_of_captions() -> None:
    captions = ["b a", "b c", "a b c", "d"]
    words = Words.fit(captions)
    assert words.known == ("b", "a", "c", "d")
    assert Words.fit(captions[::-1]) == words
    assert len(words) == 8
    assert Words.fit(captions, min_count=2).known == ("b", "a", "c")
    assert Words.fit(captions, min_count=3).known == ("b",)


def test_encode_and_back() -> None:
    words = Words.fit(["a red ball", "a cat"])
    encoded = words.encode(("A red cat!", "a zebra"))
    assert encoded.dtype == torch.int64
    a, red, cat = (words.known.index(w) + 4 for w in ("a", "red", "cat"))
    assert encoded.tolist() == [[BEGIN, a, red, cat, END], [BEGIN, a, UNKNOWN, END, FILLING]]
    assert [words.decode(row) for row in encoded] == ["a red cat", "a <unknown>"]
    assert words.decode([a, cat, END, red]) == "a cat"  # nothing after the end
    assert words.decode(torch.empty(0, dtype=torch.int64)) == ""


def test_json_round_trip() -> None:
    words = Words.fit(["żółw czyta", "a \u2018dog\u2019s ball"], longest=7)
    assert Words.from_json(words.to_json()) == words


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"known": [1], "longest": 5}', '{"known": ["a", "a"], "longest": 5}', '{"known": ["a"], "longest": true}',
     '{"known": ["a"], "longest": 0}'],
)  # fmt: skip
def test_a_damaged_vocabulary_is_said(text: str) -> None:
    with pytest.raises(UserError, match="json is not a vocabulary"):
        Words.from_json(text, "words.json")


def test_captions_without_words_are_left_out() -> None:
    words = Words.fit(["a ball"])
    assert words.encode(()).shape == (0, 0)
    assert words.encode(("", "\U0001f600", "...")).shape == (0, 0)
    assert words.encode(("", "a ball", "!")).shape == (1, 4)


def test_long_captions_are_cut_and_ended() -> None:
    words = Words.fit(["a ball"], longest=5)
    encoded = words.encode(("ball " * 1_000_000,))
    assert encoded.tolist() == [[BEGIN, *[words.known.index("ball") + 4] * 5, END]]


def test_only_unknown_words() -> None:
    assert Words.fit(["a ball"]).encode(("Quo vadis",)).tolist() == [[BEGIN, UNKNOWN, UNKNOWN, END]]


def test_an_endless_word_does_not_enter_the_vocabulary() -> None:
    assert Words.fit(["a " + "x" * 100_000]).known == ("a",)


def test_no_words_is_said() -> None:
    with pytest.raises(UserError, match="no word that occurs 1 time"):
        Words.fit(["", "\U0001f600"])
    with pytest.raises(UserError, match="no word that occurs 5 time"):
        Words.fit(["a ball"], min_count=5)
