"""Visual question answering: a light fusion head on frozen maps, and the same head without the image beside it.

Knows no backbone and no trainer. What an image adds is what the accuracy exceeds the image-blind one by.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import Batch, Config, Example, Findings, Fit, Probe, Schedule, Score, Trainable, UserError, View
from keepsight.data.easy_vqa import NAME as EASY_VQA
from keepsight.data.easy_vqa import read_easy_vqa
from keepsight.data.questions import Questions
from keepsight.data.vqav2 import is_vqav2, read_vqav2
from keepsight.data.words import Words
from keepsight.heads.fusion import FusionConfig, FusionNet

IMAGES_AT_ONCE = 128
"""Images whose maps are read, or asked, at a time."""

EXAMPLES = 24
"""Test images that the page shows a question of."""


class VqaConfig(Config):
    """Settings of `VqaProbe`.

    Attributes:
        data: "easy-vqa", or a folder with VQAv2 as published (see `data.vqav2`).
        train_images: Images whose questions are learnt from, at most.
        test_images: Images whose questions are measured on, at most.
        answers: Size of VQAv2's vocabulary, at most.
        encoder: What reads the question: "words" (an embedding of words and a GRU, learnt with the head), "sentence" (MiniLM,
            frozen) or both.
        depths: Blocks that are read, as shares of the backbone's depth.
        side: Maps are pooled to so many cells a side, where they are larger.
        size: Side of the backbone's input, px; None for its own.
        net: The fusion.
        schedule: Of each head; a batch is of images.
        questions: Of each image of a batch, drawn anew in every step, an image's own as often as they come.
        seeds: One head each, and one without the image.
        seed: Of the draw of images.
    """

    data: str = EASY_VQA
    train_images: int = Field(default=1500, ge=1)
    test_images: int = Field(default=400, ge=1)
    answers: int = Field(default=1000, ge=2)
    encoder: Literal["words", "sentence", "both"] = "words"
    depths: tuple[float, ...] = Field(default=(2 / 3,), min_length=1)
    side: int = Field(default=14, ge=1)
    size: int | None = Field(default=56, ge=14)
    net: FusionConfig = FusionConfig()
    schedule: Schedule = Schedule(steps=500, batch_size=48, lr=4e-3)
    questions: int = Field(default=8, ge=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("each seed at most once")
        return seeds


@final
class VqaProbe(Probe):
    """See the module.

    Raises:
        UserError: The data cannot be had, or are not of a known format.
    """

    name = "vqa"
    squash = True

    def __init__(self, config: VqaConfig | None = None) -> None:
        self.config = config or VqaConfig()
        self.size = self.config.size
        self.questions = _read(self.config)
        self.images = self.questions.images
        self._asked = _encoded(self.questions, self.config.encoder)
        test_Q = self.questions.test_Q
        answerable_Q = self.questions.scores_QK.any(axis=1)
        self._train = _Sheet.of(self.questions, np.flatnonzero(~test_Q & answerable_Q))
        self._test = _Sheet.of(self.questions, np.flatnonzero(test_Q))
        self._blind: dict[int, NDArray[np.int64]] = {}

    def key(self) -> str:
        """See `Probe.key`."""
        q = self.questions
        found = hashlib.sha256(self.config.model_dump_json(exclude={"data"}).encode())
        for i in range(len(q.images)):
            found.update(q.images.content_hash(i))
        found.update(json.dumps([q.name, q.image_Q.tolist(), q.texts, q.kinds, q.truths, q.answers]).encode())
        found.update(q.scores_QK.tobytes() + q.test_Q.tobytes())
        return found.hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`; shuffled, every training image's questions are learnt with the map of another image."""
        learnt = self._maps(view, self._train.image_I)
        asked = self._maps(view, self._test.image_I)
        order = np.random.default_rng((self.config.seed, 8)).permutation(len(learnt)) if shuffled else None
        said = [self._said(learnt, asked, order, seed, fit, f"vqa, seed {seed}") for seed in self.config.seeds]
        blind = self._blind_answers(learnt.shape[1], fit)
        return Findings(self._scores(np.stack(said), blind), self._examples(said[0]))

    def _blind_answers(self, width: int, fit: Fit) -> NDArray[np.int64]:
        """[S, T] what the same heads answer to the questions alone; the same for every network with maps of this width."""
        if width not in self._blind:
            nothing = torch.zeros(1, width, 1, 1)
            blank, unseen = (nothing.expand(len(s.image_I), -1, -1, -1) for s in (self._train, self._test))
            self._blind[width] = np.stack(
                [self._said(blank, unseen, None, s, fit, f"vqa, image-blind, seed {s}") for s in self.config.seeds]
            )
        return self._blind[width]

    def _maps(self, view: View, image_I: NDArray[np.int64]) -> Tensor:
        """[I, C, h, w], pooled to at most `side` cells a side."""
        blocks = tuple(dict.fromkeys(max(1, round(share * view.depth)) for share in self.config.depths))
        parts = []
        for start in range(0, len(image_I), IMAGES_AT_ONCE):
            maps = view.maps(image_I[start : start + IMAGES_AT_ONCE], blocks)
            h, w = (min(side, self.config.side) for side in maps.shape[-2:])
            parts.append(maps if (h, w) == maps.shape[-2:] else F.adaptive_avg_pool2d(maps, (h, w)))
        return torch.cat(parts)

    def _said(
        self, learnt_IChw: Tensor, asked_IChw: Tensor, order: NDArray[np.int64] | None, seed: int, fit: Fit, what: str
    ) -> NDArray[np.int64]:
        """[T] the answers to the test questions, after one training."""
        q, config = self.questions, self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = FusionNet(learnt_IChw.shape[1], len(q.answers), *self._asked.widths, config.net)
        maps = learnt_IChw if order is None else learnt_IChw[torch.from_numpy(order)]
        model = _Answering(net, maps, self._train, self._asked, torch.from_numpy(q.scores_QK), config.questions)
        fit(model, len(maps), config.schedule, seed, what)
        answer_Q = np.zeros(len(q.texts), dtype=np.int64)
        net.cpu().eval()
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(asked_IChw)), IMAGES_AT_ONCE):
                number_IQ = self._test.number_IQ[rows]
                logits_IQK = net(asked_IChw[rows], *self._asked.of(number_IQ))
                there_IQ = number_IQ >= 0
                answer_Q[number_IQ[there_IQ].numpy()] = logits_IQK.argmax(dim=2)[there_IQ].numpy()
        return answer_Q[q.test_Q]

    def _scores(self, said_ST: NDArray[np.int64], blind_ST: NDArray[np.int64]) -> tuple[Score, ...]:
        q = self.questions
        test = np.flatnonzero(q.test_Q)
        right_ST, blind_right_ST = (q.scores_QK[test, said].astype(np.float64) for said in (said_ST, blind_ST))
        image_T, guess_T = q.image_Q[test], q.guesses()
        kind_T = np.array(q.kinds)[test]
        every = np.ones(len(test), dtype=bool)
        wanted = [("accuracy", right_ST, every, True)]
        wanted += [(f"accuracy ({kind})", right_ST, kind_T == kind, False) for kind in sorted(set(kind_T.tolist()))]
        wanted += [("accuracy (image-blind)", blind_right_ST, every, False)]
        return tuple(
            Score(
                metric,
                q.name,
                values_ST[:, kept_T],
                units=image_T[kept_T],
                chance=float(guess_T[kept_T].mean()),
                shown=shown,
            )
            for metric, values_ST, kept_T, shown in wanted
        )

    def _examples(self, said_T: NDArray[np.int64]) -> tuple[Example, ...]:
        """One question of each of some test images, of all kinds in turn."""
        q = self.questions
        test = np.flatnonzero(q.test_Q)
        found: list[Example] = []
        kinds = sorted({q.kinds[i] for i in test.tolist()})
        for image in self._test.image_I[:EXAMPLES].tolist():
            here = np.flatnonzero(q.image_Q[test] == image).tolist()
            kind = kinds[len(found) % len(kinds)]
            t = next((t for t in here if q.kinds[test[t]] == kind), here[0])
            i, answer = int(test[t]), int(said_T[t])
            truth, said = (f"{q.texts[i]} {word}" for word in (q.truths[i], q.answers[answer]))
            found.append(Example(image, truth, said, bool(q.scores_QK[i, answer] > 0.5)))
        return tuple(found)


class _Encoded:
    """The U different questions, as words [U, L] and as sentence vectors [U, E], and which of them each question is [Q]."""

    def __init__(self, words_UL: Tensor, sentence_UE: Tensor, text_Q: Tensor, words: int) -> None:
        self.words_UL, self.sentence_UE, self.text_Q = words_UL, sentence_UE, text_Q
        self.widths = (words, sentence_UE.shape[1])

    def of(self, number_IQ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The different questions among some, words and vectors, and which of them each is; the first, where there is none (-1)."""
        text_U, asked_IQ = torch.unique(self.text_Q[number_IQ.clamp(min=0)], return_inverse=True)
        return self.words_UL[text_U], self.sentence_UE[text_U], asked_IQ


class _Sheet:
    """Images, and the numbers of the questions about each: number_IQ [I, most of one image], filled up with -1."""

    def __init__(self, image_I: NDArray[np.int64], number_IQ: Tensor) -> None:
        self.image_I, self.number_IQ = image_I, number_IQ

    @classmethod
    def of(cls, questions: Questions, chosen: NDArray[np.int64]) -> _Sheet:
        if not len(chosen):
            raise UserError(f"{questions.name} has no question that can be learnt from or measured on: add images.")
        image_I, row_Q, count_I = np.unique(questions.image_Q[chosen], return_inverse=True, return_counts=True)
        number_IQ = np.full((len(image_I), int(count_I.max())), -1, dtype=np.int64)
        place_I = np.zeros(len(image_I), dtype=np.int64)
        for number, row in zip(chosen.tolist(), row_Q.tolist(), strict=True):
            number_IQ[row, place_I[row]] = number
            place_I[row] += 1
        return cls(image_I, torch.from_numpy(number_IQ))


@final
class _Answering(Trainable):
    """Learns the answers to some questions about each image of a batch: soft cross-entropy against how right each answer is."""

    def __init__(
        self, net: FusionNet, maps_IChw: Tensor, sheet: _Sheet, asked: _Encoded, scores_QK: Tensor, questions: int
    ) -> None:
        super().__init__()
        self.net = net
        # In a tuple, so that they are neither moved to a device nor kept in a checkpoint.
        self._data = (maps_IChw, sheet.number_IQ, scores_QK)
        self._asked, self._questions = asked, questions

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """ "answer": nats a question."""
        del phase, step
        maps_IChw, number_IQ, scores_QK = self._data
        device, rows = batch.inputs.device, batch.inputs.cpu()
        all_BQ = number_IQ[rows]
        count_B = (all_BQ >= 0).sum(dim=1, keepdim=True)  # the first so many of a row are there
        number_BQ = all_BQ.gather(1, (torch.rand(len(rows), self._questions) * count_B).long())
        words_UL, sentence_UE, asked_BQ = (part.to(device) for part in self._asked.of(number_BQ))
        logits_BQK = self.net(maps_IChw[rows].to(device), words_UL, sentence_UE, asked_BQ)
        right_BQK = scores_QK[number_BQ]
        target_BQK = (right_BQK / right_BQK.sum(dim=2, keepdim=True)).to(device)
        return {"answer": F.cross_entropy(logits_BQK.flatten(0, 1), target_BQK.flatten(0, 1))}


def _read(config: VqaConfig) -> Questions:
    if config.data == EASY_VQA:
        return read_easy_vqa(config.train_images, config.test_images, config.seed)
    folder = Path(config.data)
    if not is_vqav2(folder):
        raise UserError(
            f"The VQA data {config.data!r} are neither {EASY_VQA} nor a folder with VQAv2's published files, such as "
            f"v2_OpenEnded_mscoco_val2014_questions.json and v2_mscoco_val2014_annotations.json."
        )
    return read_vqav2(folder, config.train_images, config.test_images, config.answers, config.seed)


def _encoded(questions: Questions, encoder: str) -> _Encoded:
    texts, text_Q = np.unique(np.array(questions.texts, dtype=object), return_inverse=True)
    words_UL, count = torch.empty(len(texts), 0, dtype=torch.int64), 0
    sentence_UE = torch.empty(len(texts), 0)
    if encoder != "sentence":
        training = [text for text, test in zip(questions.texts, questions.test_Q, strict=True) if not test]
        words = Words.fit(training)
        words_UL, count = _filled(words, texts.tolist()), len(words)
    if encoder != "words":
        from keepsight.backbones.text import MINILM, load_text_tower

        tower = load_text_tower(MINILM)
        with torch.inference_mode():
            parts = [tower.encode(texts[i : i + 256].tolist()) for i in range(0, len(texts), 256)]
        sentence_UE = torch.cat(parts).clone()
    return _Encoded(words_UL, sentence_UE, torch.from_numpy(text_Q.astype(np.int64)), count)


def _filled(words: Words, texts: list[str]) -> Tensor:
    """[U, L]; a text without a word, which a vocabulary leaves out, is a single unknown one."""
    rows = [words.encode((text,)) for text in texts]
    longest = max((row.shape[1] for row in rows), default=1)
    out_UL = torch.zeros(len(rows), max(longest, 1), dtype=torch.int64)
    for out_L, row in zip(out_UL, rows, strict=True):
        if row.numel():
            out_L[: row.shape[1]] = row[0]
        else:
            out_L[0] = words.encode(("?unknown?",))[0, 1]
    return out_UL
