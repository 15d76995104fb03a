"""The facts of a run's card: licences of published weights, and the input in words."""

from __future__ import annotations

from keepsight.core import Preprocessing
from keepsight.recipes.card import _in_words, _licence


def test_licences_are_those_of_the_published_weights() -> None:
    assert _licence("vit_s14_imgfocus", "pretrained") == "MIT"
    assert _licence("test_vit", "pretrained") == "apache-2.0"
    assert _licence("test_vit.r160_in1k", "pretrained") == "apache-2.0"
    assert _licence("test_vit", "random") is None
    assert _licence("weights/mine.safetensors", "pretrained") is None


def test_the_input_in_words() -> None:
    words = _in_words(Preprocessing(size=56, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), fit="squash"))
    assert words == (
        "RGB, 56 x 56 px (all of it, squashed; bicubic), normalised with mean 0.500, 0.500, 0.500 and "
        "standard deviation 0.250, 0.250, 0.250"
    )
