"""The captioning head: what it learns from, what it says, and that neither depends on the company."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from keepsight.core import Target
from keepsight.data.words import BEGIN, END, Words
from keepsight.methods.captioning import PAPER, CaptionConfig, CaptionHead
from launching import launch

CAPTIONS = (
    ("a red ball", "ball"),
    ("a dog left of a cat",),
    (),
    ("a cat", "the small cat there", "cat left of a red dog"),
)
WORDS = Words.fit(caption for captions in CAPTIONS for caption in captions)
KINDS = ["transformer", "lstm"]


def head(kind: str, **settings: object) -> CaptionHead:
    torch.manual_seed(0)
    return CaptionHead(
        6, len(WORDS), CaptionConfig(**{"kind": kind, "width": 16, "dropout": 0.0, "max_length": 6, **settings})
    )


def targets(captions: tuple[tuple[str, ...], ...] = CAPTIONS) -> tuple[Target, ...]:
    return tuple(Target(words=WORDS.encode(each)) for each in captions)


def maps(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 6, 3, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_all_captions_is_a_mean_over_words(kind: str) -> None:
    owner, x = head(kind).eval(), maps()
    nats = words = 0.0
    for i, each in enumerate(targets()):
        for row in each.words:
            row = row[row != 0]
            logits, _ = owner.net(x[i : i + 1], row[None, None, :-1])
            nats -= sum(logits[0, 0, t].log_softmax(0)[w].item() for t, w in enumerate(row[1:].tolist()))
            words += len(row) - 1
    found = owner(x, targets())
    assert found["caption"].item() == pytest.approx(nats / words, abs=1e-5)
    assert set(found) == ({"caption", "attention"} if kind == "lstm" else {"caption"})


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_batch_is_nothing_to_the_loss(kind: str) -> None:
    owner, x, order = head(kind).eval(), maps(), [2, 0, 3, 1]
    plain = owner(x, targets())
    permuted = owner(x[order], tuple(targets()[i] for i in order))
    wrong = owner(x[order], targets())
    for name, value in plain.items():
        torch.testing.assert_close(permuted[name], value)
    assert abs(wrong["caption"] - plain["caption"]) > 1e-4  # and every image's own captions are read


def test_images_without_captions_contribute_nothing() -> None:
    owner, x, kept = head("lstm").eval(), maps(), [0, 1, 3]
    fewer = owner(x[kept], tuple(targets()[i] for i in kept))
    for name, value in owner(x, targets()).items():
        torch.testing.assert_close(fewer[name], value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_captions_is_finite_with_gradients(kind: str, training: bool) -> None:
    owner = head(kind).train(training)
    sum(owner(maps(2), (Target(), Target())).values()).backward()
    for name, p in owner.named_parameters():
        assert p.grad is not None, name
        assert not p.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_while_training_one_caption_is_drawn_and_all_by_option(kind: str) -> None:
    x, three = maps(1), targets(CAPTIONS[3:])
    owner = head(kind).train()
    each = {round(owner(x, (Target(words=row[None]),))["caption"].item(), 4) for row in three[0].words}
    assert len(each) == 3
    torch.manual_seed(5)
    drawn = [round(owner(x, three)["caption"].item(), 4) for _ in range(30)]
    assert set(drawn) == each
    torch.manual_seed(5)
    assert round(owner(x, three)["caption"].item(), 4) == drawn[0]
    every = head(kind, all_captions=True).train()(x, three)["caption"]
    torch.testing.assert_close(every, owner.eval()(x, three)["caption"])
    assert round(every.item(), 4) not in each


def test_the_drawn_caption_depends_on_the_images_own_draw_alone() -> None:
    owner, x = head("transformer").train(), maps()
    drawn = [tuple(replace(t, draw=(number, place)) for place, t in enumerate(targets())) for number in range(20)]
    first = [owner(x, each)["caption"].item() for each in drawn]
    assert len({round(value, 5) for value in first}) > 3
    torch.manual_seed(9)
    order = [2, 0, 3, 1]
    again = [owner(x[order], tuple(each[i] for i in order))["caption"].item() for each in drawn]
    assert again == pytest.approx(first, abs=1e-5)


def test_answers_are_generated_and_need_no_company() -> None:
    for kind in KINDS:
        owner, x = head(kind, dropout=0.5).eval(), maps(5)
        with torch.no_grad():  # sharper than an untrained head, so that it says different things
            for p in owner.parameters():
                p.mul_(3.0)
        together = [answer.words for answer in owner.answers(x)]
        assert len({tuple(words.tolist()) for words in together}) > 1
        for i, words in enumerate(together):
            assert words.dtype == torch.int64
            assert words.ndim == 1
            assert len(words) <= 6
            assert not set(words.tolist()) & {0, 1, 2, 3}
            assert torch.equal(owner.answers(x[i : i + 1])[0].words, words)
        assert owner.answers(x[:0]) == []


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    for kind in KINDS:
        owner, one = head(kind, dropout=0.5), targets(CAPTIONS[1:2])
        assert owner.train()(maps(1), one)["caption"] != owner(maps(1), one)["caption"]
        assert owner.eval()(maps(1), one)["caption"] == owner(maps(1), one)["caption"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_shape_and_weights_rebuild_it(kind: str, tied: bool, tmp_path: Path) -> None:
    owner = head(kind, tied=tied, beam=2).eval()
    save_file(owner.state_dict(), tmp_path / "head.safetensors")
    again = CaptionHead(**json.loads(json.dumps(owner.shape())))
    again.load_state_dict(load_file(tmp_path / "head.safetensors"))
    again.eval()
    assert again.config == owner.config
    torch.testing.assert_close(again(maps(), targets())["caption"], owner(maps(), targets())["caption"], atol=0, rtol=0)


def test_the_papers_settings() -> None:
    owner = CaptionHead(8, len(WORDS), PAPER)
    assert owner.net.cell.hidden_size == 384
    assert owner.net.dropout.p == 0.5
    with pytest.raises(ValueError, match="multiple"):
        CaptionConfig(width=18, heads=4)
    with pytest.raises(ValueError, match="no word"):
        CaptionHead(8, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str) -> None:
    owner = head(kind).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = owner(maps(), targets())
        assert len(owner.answers(maps())) == 4
    sum(found.values()).backward()
    assert all(value.isfinite() and value.dtype == torch.float32 for value in found.values())


EIGHT = (
    "a red ball left of a dog",
    "a dog left of a red ball",
    "a cat",
    "a small cat above two dogs",
    "two balls",
    "a dog and a cat and a ball and a small red dog",
    "nothing",
    "the cat below the ball",
)


@pytest.mark.parametrize("kind", KINDS)
def test_eight_captions_are_learnt_by_heart(kind: str) -> None:
    torch.manual_seed(0)
    words = Words.fit(EIGHT)
    owner = CaptionHead(16, len(words), CaptionConfig(kind=kind, width=48, dropout=0.0))
    x = torch.randn(8, 16, 4, 4)
    wanted = tuple(Target(words=words.encode((caption,))) for caption in EIGHT)
    optimizer = torch.optim.Adam(owner.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(owner(x, wanted).values()).backward()
        optimizer.step()
    owner.eval()
    assert [words.decode(answer.words) for answer in owner.answers(x)] == list(EIGHT)
    greedy = CaptionHead(**{**owner.shape(), "config": owner.config.model_copy(update={"beam": 1})})
    greedy.load_state_dict(owner.state_dict())
    assert [words.decode(answer.words) for answer in greedy.eval().answers(x)] == list(EIGHT)


TWO = """
import sys, torch
from torch import distributed
from keepsight.core import Target, processes
from keepsight.data.words import Words
from keepsight.methods.captioning import CaptionConfig, CaptionHead
captions = {captions}
words = Words.fit(caption for each in captions for caption in each)
if processes.count() > 1:
    distributed.init_process_group("gloo")
first, every = processes.index(), processes.count()
x = torch.randn(4, 6, 3, 4, generator=torch.Generator().manual_seed(2))
found = {{}}
for kind in ("transformer", "lstm"):
    torch.manual_seed(0)
    head = CaptionHead(6, len(words), CaptionConfig(kind=kind, width=16, dropout=0.0, all_captions=True))
    targets = tuple(Target(words=words.encode(each)) for each in captions[first::every])
    sum(head(x[first::every], targets).values()).backward()
    for name, p in head.named_parameters():
        if every > 1:
            distributed.all_reduce(p.grad)
            p.grad /= every
        found[kind + "." + name] = p.grad
if first == 0:
    torch.save(found, sys.argv[1])
"""


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Images 1 and 3 have many words, 0 and 2 few: a mean of means would differ."""
    found = []
    for count in (1, 2):
        launch(TWO.format(captions=repr(CAPTIONS)), tmp_path / str(count), count, str(tmp_path / f"{count}.pt"))
        found.append(torch.load(tmp_path / f"{count}.pt", weights_only=True))
    assert len(found[0]) > 20
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, atol=1e-6, rtol=1e-4)


def test_begin_and_end_alone_teach_to_stop() -> None:
    owner = head("transformer").eval()
    found = owner(maps(1), (Target(words=torch.tensor([[BEGIN, END]])),))["caption"]
    logits, _ = owner.net(maps(1), torch.tensor([[[BEGIN]]]))
    assert found.item() == pytest.approx(-logits[0, 0, 0].log_softmax(0)[END].item(), abs=1e-6)
