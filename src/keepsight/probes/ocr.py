"""Reading: a light CTC recogniser on the frozen map of patches, on words and in fonts that it was not trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from keepsight.core import Batch, Config, Example, Findings, Fit, Probe, Schedule, Score, Trainable, UserError, View
from keepsight.core.probe import Rows
from keepsight.data.ocr_files import read_words
from keepsight.data.subset import SubsetImages
from keepsight.data.word_images import WordImages, WordImagesConfig, render_words
from keepsight.data.word_set import WordPart, WordSet
from keepsight.heads.ctc import CtcNet, CtcNetConfig, decode_greedily
from keepsight.objectives.reading import ctc, evenly

SHOWN = 12
"""Test items that are shown in words and pictures."""

_BATCH = 100
_SMALLEST_DEVIATION = 1e-3


class OcrConfig(Config):
    """Settings of `OcrProbe`.

    Attributes:
        folder: A published set (`data.ocr_files`) in place of rendered words.
        train: Training images.
        test: Test images.
        seed: Of the words that are rendered or drawn from the published set.
        seeds: How many recognisers are trained, with seeds 0, 1, ...
        size: Side of the backbone's input, px.
        depths: Blocks that are read, as shares of the backbone's depth.
        net: The recogniser.
        columns: Columns by each letter of the longest word, at least; 2 leave room for a blank between any two letters.
        head_start: Share of the steps in which letters spread evenly over the columns are taught too, at a weight that falls from
            1 to 0: CTC alone says nothing but blanks for most of so short a training.
        schedule: Of its training.
    """

    folder: Path | None = None
    train: int = Field(default=2000, ge=1)
    test: int = Field(default=400, ge=1)
    seed: int = Field(default=0, ge=0)
    seeds: int = Field(default=2, ge=1)
    size: int = Field(default=112, ge=14)
    depths: tuple[float, ...] = (1 / 3, 2 / 3)
    net: CtcNetConfig = CtcNetConfig(dropout=0.3)
    columns: float = Field(default=2.5, ge=2)
    head_start: float = Field(default=0.3, ge=0, le=1)
    schedule: Schedule = Schedule(steps=500, batch_size=48, lr=3e-3, weight_decay=0.05)


@final
class OcrProbe(Probe):
    """Which word an image shows.

    Images are squashed into the backbone's square input, so that a word spans its width. Texts are compared in lower case, by
    letters and digits alone; words without any are left out. The figures are word accuracy (the whole word is right) and the
    character error rate: insertions, deletions and substitutions, by the number of true characters.

    Raises:
        UserError: if fonts are missing, or the folder is not a published set with training and test images.
    """

    name = "ocr"
    squash = True

    def __init__(self, config: OcrConfig | None = None) -> None:
        self.config = config = OcrConfig() if config is None else config
        self.size = config.size
        words = _words(config)
        kept = {
            "train": _drawn(words, "train", config.train, config),
            "test": _drawn(words, "test", config.test, config),
        }
        rows = np.concatenate([kept["train"], kept["test"]])
        self.images = SubsetImages(words.images, rows)
        self._dataset = words.name
        self._texts = tuple(plain(words.texts[row]) for row in rows.tolist())
        self._train: Rows = np.arange(len(kept["train"]), dtype=np.int64)
        self._test: Rows = np.arange(len(kept["train"]), len(rows), dtype=np.int64)
        self._letters = "".join(sorted(set("".join(self._texts[row] for row in self._train.tolist()))))
        source = words.images
        self._grounds = (
            np.array([source.on_photograph(row) for row in kept["test"].tolist()])
            if isinstance(source, WordImages)
            else None
        )

    def key(self) -> str:
        """See `Probe.key`."""
        found = hashlib.sha256(self.config.model_dump_json(exclude={"folder"}).encode())
        found.update(json.dumps([self._dataset, len(self._train), self._texts]).encode())
        for row in range(len(self.images)):
            found.update(self.images.content_hash(row))
        return found.hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`."""
        config = self.config
        blocks = tuple(dict.fromkeys(max(1, round(share * view.depth)) for share in config.depths))
        taught = [self._texts[row] for row in self._train.tolist()]
        if shuffled:
            taught = [
                taught[place] for place in np.random.default_rng((config.seed, 3)).permutation(len(taught)).tolist()
            ]
        maps_train, maps_test = view.maps(self._train, blocks), view.maps(self._test, blocks)
        said: list[list[str]] = []
        for seed in range(config.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                reader = Reader(maps_train, taught, self._letters, config)
            fit(reader, len(taught), config.schedule, seed, f"reading, seed {seed}")
            said.append(reader.read(maps_test))
        return self._findings(said)

    def _findings(self, said: Sequence[Sequence[str]]) -> Findings:
        """Scores and examples of what was read [S, N]."""
        truth = [self._texts[row] for row in self._test.tolist()]
        right = np.array([[a == b for a, b in zip(row, truth, strict=True)] for row in said], dtype=np.float64)
        edits = np.array(
            [[edit_distance(a, b) for a, b in zip(row, truth, strict=True)] for row in said], dtype=np.float64
        )
        lengths = np.array([len(text) for text in truth], dtype=np.float64)
        chance = _commonest(truth, [self._texts[row] for row in self._train.tolist()])
        scores = [
            Score("word_accuracy", self._dataset, right, chance=chance),
            Score("cer", self._dataset, edits, lengths, better="lower"),
        ]
        if self._grounds is not None:
            for ground, chosen in (("plain", ~self._grounds), ("photograph", self._grounds)):
                if chosen.any():
                    scores.append(
                        Score(f"word_accuracy ({ground})", self._dataset, right[:, chosen], chance=chance, shown=False)
                    )
        examples = tuple(
            Example(int(row), truth[place], said[0][place], bool(right[0, place]))
            for place, row in enumerate(self._test[:SHOWN].tolist())
        )
        return Findings(tuple(scores), examples)


@final
class Reader(Trainable):
    """The recogniser and the maps that it learns from; rows of a batch are theirs.

    Args:
        maps_NChw: Maps of the training images.
        texts: What they say.
        letters: The A characters that there are.
        config: The probe's settings.
    """

    def __init__(self, maps_NChw: Tensor, texts: Sequence[str], letters: str, config: OcrConfig) -> None:
        super().__init__()
        self._letters, self._maps = letters, maps_NChw
        columns = maps_NChw.shape[3]
        longest = max(map(len, texts))
        finer = max(1, math.ceil(config.columns * longest / columns))
        self.net = CtcNet(maps_NChw.shape[1], len(letters), finer, config.net)
        self._mean = maps_NChw.mean(dim=(0, 2, 3))[:, None, None]
        self._scale = 1 / maps_NChw.std(dim=(0, 2, 3))[:, None, None].clamp_min(_SMALLEST_DEVIATION)
        self._texts = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            self._texts[row, : len(text)] = torch.tensor([1 + letters.index(letter) for letter in text])
        self._lengths = torch.tensor([len(text) for text in texts])
        self._taught_evenly = config.head_start * config.schedule.steps

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """CTC, and the head start while it lasts."""
        del phase
        device, rows = batch.inputs.device, batch.inputs.cpu()
        texts, lengths = self._texts[rows].to(device), self._lengths[rows].to(device)
        logits = self.net(self._input(self._maps[rows]))
        found = {"ctc": ctc(logits, texts, lengths)}
        if step < self._taught_evenly:
            found["evenly"] = (1 - step / self._taught_evenly) * evenly(logits, texts, lengths)
        return found

    def _input(self, maps_BChw: Tensor) -> Tensor:
        """Standardised channel by channel, on the network's device."""
        standard = (maps_BChw - self._mean) * self._scale
        return standard.to(next(self.net.parameters()).device)

    @torch.inference_mode()
    def read(self, maps_NChw: Tensor) -> list[str]:
        """The texts of N maps."""
        self.net.eval()
        found: list[str] = []
        for maps_BChw in torch.split(maps_NChw, _BATCH):
            decoded = decode_greedily(self.net(self._input(maps_BChw)).cpu())
            found += ["".join(self._letters[letter - 1] for letter in row) for row in decoded]
        return found


def plain(text: str) -> str:
    """Lower case, letters and digits alone, as words in scenes are usually compared.

    Example:
        >>> plain("Joe's Bar-2")
        'joesbar2'
    """
    return "".join(letter for letter in text.lower() if letter.isalnum())


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and substitutions that make one text the other (Levenshtein 1966).

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


def _words(config: OcrConfig) -> WordSet:
    if config.folder is not None:
        return read_words(config.folder)
    return render_words(WordImagesConfig(train=config.train, test=config.test, seed=config.seed))


def _drawn(words: WordSet, part: WordPart, count: int, config: OcrConfig) -> NDArray[np.int64]:
    """As many images of a part as are wanted and there, in their order; which depends on the seed."""
    there = np.array([row for row in words.of(part).tolist() if plain(words.texts[row])], dtype=np.int64)
    if not len(there):
        raise UserError(
            f"{config.folder or words.name} has no {part} image with letters or digits: the OCR probe needs both parts."
        )
    drawn = np.random.default_rng((config.seed, 2)).permutation(there)[:count]
    return np.sort(drawn)


def _commonest(truth: Sequence[str], taught: Sequence[str]) -> float:
    """Word accuracy of always saying the most frequent training word."""
    words, counts = np.unique(np.array(taught), return_counts=True)
    guess = str(words[counts.argmax()])
    return float(np.mean([text == guess for text in truth]))
