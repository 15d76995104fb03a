"""Beam search against exhaustive and greedy search, over a network that is a table of the words so far."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from keepsight.heads.beam import State, Step, beam_search

FILL, BEGIN, END, UNKNOWN, A, B = range(6)
BANNED = (FILL, BEGIN, UNKNOWN)


def network(seed: int, sharpness: float = 1.5) -> Step:
    """Logits that depend on the whole past: the state is the image's number and all words so far as one number."""

    def step(words: Tensor, state: State) -> tuple[Tensor, State]:
        image, past = state
        past = past * 7 + words + 1
        logits = torch.empty(*words.shape, 6)
        for where in itertools.product(*map(range, words.shape)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + int(image[where]) * 10_007 + int(past[where]))
            logits[where] = sharpness * torch.randn(6, generator=generator)
        return logits, (image, past)

    return step


def start(images: list[int], width: int) -> State:
    image = torch.tensor(images)[:, None].repeat(1, width)
    return image, torch.zeros_like(image)


def score(step: Step, image: int, words: tuple[int, ...], penalty: float) -> float:
    state, total = start([image], 1), 0.0
    for said, following in itertools.pairwise((BEGIN, *words, END)):
        logits, state = step(torch.tensor([[said]]), state)
        allowed = logits[0, 0, [END, A, B]].log_softmax(0)
        total += allowed[[END, A, B].index(following)].item()
    return total / (len(words) + 1) ** penalty


def search(
    step: Step, images: list[int], width: int, longest: int, penalty: float
) -> list[tuple[tuple[int, ...], float]]:
    words, scores = beam_search(
        step, start(images, width), begin=BEGIN, end=END, banned=BANNED, max_length=longest, length_penalty=penalty
    )
    assert words.shape == (len(images), longest)
    return [(tuple(w for w in row if w), s) for row, s in zip(words.tolist(), scores.tolist(), strict=True)]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("longest", [1, 3])
def test_a_wide_beam_is_exhaustive_search(penalty: float, longest: int) -> None:
    images = list(range(4))
    every = [words for n in range(longest + 1) for words in itertools.product((A, B), repeat=n)]
    for seed in range(2):
        step = network(seed)
        found = search(step, images, len(every), longest, penalty)
        for image, (words, value) in zip(images, found, strict=True):
            scores = {each: score(step, image, each, penalty) for each in every}
            assert words == max(scores, key=scores.__getitem__)
            assert value == pytest.approx(scores[words], abs=1e-5)


def test_width_one_is_greedy() -> None:
    images = list(range(12))
    step = network(3)
    found = search(step, images, 1, 4, 1.0)
    for image, (words, value) in zip(images, found, strict=True):
        state, said = start([image], 1), [BEGIN]
        while len(said) <= 4:
            logits, state = step(torch.tensor([[said[-1]]]), state)
            said.append((END, A, B)[int(logits[0, 0, [END, A, B]].argmax())])
            if said[-1] == END:
                break
        greedy = tuple(w for w in said[1:] if w != END)
        assert words == greedy
        assert value == pytest.approx(score(step, image, greedy, 1.0), abs=1e-5)
    assert len({words for words, _ in found}) > 3
    assert max(len(words) for words, _ in found) == 4  # the limit is reached, and holds


def test_a_beam_finds_what_greedy_misses() -> None:
    images = list(range(12))
    step = network(4)
    greedy, beam = (search(step, images, width, 4, 0.0) for width in (1, 6))
    assert any(b[1] > g[1] + 1e-3 for b, g in zip(beam, greedy, strict=True))
    for image, (words, value) in zip(images, beam, strict=True):
        assert value == pytest.approx(score(step, image, words, 0.0), abs=1e-5)


def test_no_image_sees_another_and_nothing_is_drawn() -> None:
    step = network(5)
    together = search(step, [0, 1, 2, 3, 4], 3, 5, 0.7)
    assert together == search(step, [0, 1, 2, 3, 4], 3, 5, 0.7)
    assert together == [search(step, [image], 3, 5, 0.7)[0] for image in range(5)]


def test_a_longer_penalty_gives_longer_captions() -> None:
    step = network(6)
    lengths = [sum(len(words) for words, _ in search(step, list(range(12)), 8, 4, p)) for p in (0.0, 3.0)]
    assert lengths[1] > lengths[0]
