from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from keepsight.assets import load_tensors
from keepsight.assets.minilm import TOKENIZER
from keepsight.core import UserError
from keepsight.data import word_images
from keepsight.data.word_images import (
    RUDE,
    TYPEFACES,
    Drawing,
    WordImages,
    WordImagesConfig,
    draw_word,
    find_faces,
    render_words,
    vocabulary,
)

SMALL = WordImagesConfig(train=40, test=20, height=48)


def test_words_and_typefaces_of_the_parts_are_disjoint() -> None:
    words = render_words(SMALL)
    assert (len(words.of("train")), len(words.of("test"))) == (40, 20)
    assert len(set(words.texts)) == 60
    assert all(3 <= len(text) <= 6 and text.isascii() and text.isalpha() and text.islower() for text in words.texts)
    assert not set(TYPEFACES["train"]) & set(TYPEFACES["test"])
    families = [family for named in TYPEFACES.values() for group in named.values() for family in group]
    assert len(families) == len(set(families))
    faces = find_faces()
    assert not {face.name for face in faces["train"]} & {face.name for face in faces["test"]}
    shown = {
        part: {words.images.name(row).split("(")[1] for row in words.of(part).tolist()} for part in ("train", "test")
    }
    assert not shown["train"] & shown["test"]
    assert len(shown["test"]) > 5


def test_more_training_words_leave_the_test_words_as_they_are() -> None:
    few, many = render_words(SMALL), render_words(SMALL.model_copy(update={"train": 50}))
    assert [few.texts[row] for row in few.of("test")] == [many.texts[row] for row in many.of("test")]
    assert few.images.content_hash(int(few.of("test")[3])) == many.images.content_hash(int(many.of("test")[3]))


def test_the_seed_decides_everything() -> None:
    one, same, other = render_words(SMALL), render_words(SMALL), render_words(SMALL.model_copy(update={"seed": 1}))
    rows = range(0, 60, 7)
    with ThreadPoolExecutor(4) as pool:  # extraction draws in several threads
        hashes = list(pool.map(same.images.content_hash, rows))
    assert [one.images.content_hash(row) for row in rows] == hashes
    assert one.texts != other.texts
    assert len({one.images.content_hash(row) for row in range(60)}) == 60


def test_words_span_their_image_and_stand_out() -> None:
    words = render_words(SMALL.model_copy(update={"photographs": 0.0}))
    for row in range(0, 60, 4):
        pixels = np.asarray(words.images.load(row), dtype=np.float64)
        assert pixels.shape == (48, 96, 3)
        luma = pixels @ (0.299, 0.587, 0.114)
        differs = abs(luma - np.median(luma)) > 30
        columns, rows = np.flatnonzero(differs.any(axis=0)), np.flatnonzero(differs.any(axis=1))
        assert max((columns[-1] - columns[0]) / 96, (rows[-1] - rows[0]) / 48) > 0.7


def test_photographs_are_the_share_that_was_asked_for() -> None:
    images = render_words(WordImagesConfig(train=300, test=1)).images
    assert isinstance(images, WordImages)
    assert 120 < sum(images.on_photograph(row) for row in range(301)) < 180
    plain = next(row for row in range(301) if not images.on_photograph(row))
    photograph = next(row for row in range(301) if images.on_photograph(row))
    corner = [
        len(np.unique(np.asarray(images.load(row))[:6, :6].reshape(-1, 3), axis=0)) for row in (plain, photograph)
    ]
    assert corner[0] < corner[1]


def test_every_letter_of_every_font_has_a_shape_of_its_own() -> None:
    config = WordImagesConfig(height=32, aspect=1.0, rotation=0.0, photographs=0.0)
    for faces in find_faces().values():
        for face in faces:
            shapes = {
                draw_word(Drawing(letter, face, (0,)), (), config).tobytes() for letter in "abcdefghijklmnopqrstuvwxyz"
            }
            assert len(shapes) == 26, face.name


def test_the_vocabulary_is_of_words() -> None:
    words = vocabulary(3, 8)
    assert {"the", "house", "yellow"} <= set(words[:3000])
    assert len(words) > 10_000


def test_no_rude_word_is_shown() -> None:
    assert len(RUDE) > 50
    assert "damn" in RUDE
    assert not RUDE & set(vocabulary(1, 30))
    assert RUDE & set(json.loads(bytes(load_tensors("minilm_l6")[TOKENIZER].numpy()).decode())["model"]["vocab"])


def test_too_few_words_or_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"9 training and 2 test words were asked for, and there are 10"):
        render_words(WordImagesConfig(train=9, test=2, vocabulary=10))
    monkeypatch.setattr(word_images, "_font_files", list)
    with pytest.raises(UserError, match=r"keepsight\[figures\]"):
        find_faces()
