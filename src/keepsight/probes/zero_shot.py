"""The probe of zero-shot classification: images are compared with prompts of the classes. Knows no backbone."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional as F

from keepsight.core import UNLABELLED, Config, Dataset, Example, Findings, Fit, Probe, Score, UserError, View
from keepsight.core.images import Part
from keepsight.data.joined import JoinedImages
from keepsight.data.load import load_dataset
from keepsight.data.pairs import (
    STAMPS,
    Pairs,
    is_clip_benchmark,
    load_pairs,
    read_clip_benchmark,
    read_lines,
    stamp_pairs,
)
from keepsight.data.subset import SubsetImages
from keepsight.probes.alignment import AlignmentConfig, FrozenTexts, embed
from keepsight.probes.retrieval import hit_chance, probe_key, to_learn

DEPTHS = (1, 5)
EXAMPLES = 12

TEMPLATES = ("{c}.", "a {c}.", "a picture of {c}.", "a picture of a {c}.", "a drawing of a {c}.", "a photo of a {c}.")
"""Of class prompts, where none are given; {c} is the class, as in CLIP-benchmark's files."""

STAMP_NAMES = {
    "animals": "animal",
    "clothes": "piece of clothing",
    "food": "food",
    "hobbies": "toy, sport or musical instrument",
    "household": "household object",
    "plants": "plant",
    "seasonal": "holiday decoration",
    "space": "planet or spacecraft",
    "symbols": "symbol, letter or number",
    "town": "building or road sign",
    "vehicles": "vehicle",
}
"""What prompts call the categories of stamps (`data.scene_stamps.CATEGORIES`)."""


class ZeroShotConfig(Config):
    """Settings of `ZeroShotProbe`.

    Attributes:
        data: "stamps" (the held-out ones, by category), anything that `load_dataset` reads, or a folder of CLIP-benchmark's.
        part: What is measured on, where the data say; else all images.
        at_most: Images that are measured on, drawn by the seed.
        classnames: File with what prompts call the classes, one a line, in the order of the classes.
        templates: File with templates, one a line, {c} being the class.
        pairs: What a backbone without a text tower is aligned by.
        pairs_at_most: Images that it is aligned by.
        alignment: How.
        size: Side of the backbone's input, px; None for its own.
        split: Which stamps are held out (`data.pairs.stamp_pairs`).
        seed: Of the draws and the heads.
    """

    data: str = STAMPS
    part: str = "test"
    at_most: int = Field(default=2000, ge=1)
    classnames: Path | None = None
    templates: Path | None = None
    pairs: str = STAMPS
    pairs_at_most: int = Field(default=5000, ge=2)
    alignment: AlignmentConfig = AlignmentConfig()
    size: int | None = 112
    split: int = 0
    seed: int = 0

    @field_validator("part")
    @classmethod
    def _part(cls, part: str) -> str:
        if part not in ("train", "val", "test"):
            raise ValueError("the part is train, val or test")
        return part


@final
class ZeroShotProbe(Probe):
    """Each image gets the class whose prompts it is most similar to, with no labelled image.

    A class is the mean, at unit length, of the embeddings of all its prompts (Radford et al. 2021, section 3.1.4). In "top1" and
    "top5" every class counts alike however many images it has, so that guessing gives K / classes whatever is guessed;
    "accuracy" counts every image alike. Of equally similar classes it is a draw which comes first.

    Raises:
        UserError: Data or packages are missing, or there are not as many names as classes.
    """

    name = "zero-shot"

    def __init__(self, config: ZeroShotConfig | None = None) -> None:
        self.config = config = config or ZeroShotConfig()
        self.size = config.size
        pairs = load_pairs(config.pairs, None, "train", config.split)
        train, self.learn = to_learn(pairs, config.pairs_at_most, config.seed)
        data, names, templates = _classes(config, pairs)
        rows = _tested(data, config)
        learnt, tested = SubsetImages(pairs.images, train), SubsetImages(data.images, rows)
        self.images = JoinedImages({"learn": learnt, "test": tested})
        self.rows = np.arange(len(train), len(train) + len(rows))
        self.labels, self.classes = data.labels[rows], data.classes
        self.stamps = pairs.stamps if config.data == STAMPS else {}
        self.prompts = prompts_of(names, templates)
        self._embed_texts = FrozenTexts(config.alignment.tower)

    def key(self) -> str:
        """See `Probe.key`."""
        rest = (self.rows, self.labels, self.classes, self.prompts)
        return probe_key(self.name, self.config, self.images, self.learn, rest)

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`."""
        config = self.config
        each = [prompt for prompts in self.prompts for prompt in prompts]
        images_SNE, prompts_SPE = embed(
            view,
            fit,
            config.alignment,
            self._embed_texts,
            self.learn,
            self.rows,
            each,
            seed=config.seed,
            shuffled=shuffled,
        )
        seeds, _, e = prompts_SPE.shape
        means_SKE = prompts_SPE.view(seeds, len(self.prompts), -1, e).mean(dim=2)
        labels_N = self.labels
        if shuffled and view.text is not None:
            labels_N = np.random.default_rng((config.seed, 2)).permutation(labels_N)
        similar_SNK = images_SNE @ F.normalize(means_SKE, dim=2).transpose(1, 2)
        return Findings(
            _scores(Path(config.data).name, similar_SNK, labels_N), self._examples(similar_SNK[0], labels_N)
        )

    def _examples(self, similar_NK: Tensor, labels_N: NDArray[np.int64]) -> tuple[Example, ...]:
        """Images, drawn by the seed, with the class that is most similar."""
        chosen = np.random.default_rng((self.config.seed, 3)).permutation(len(labels_N))[:EXAMPLES].tolist()
        best = similar_NK.nan_to_num(nan=-torch.inf).argmax(dim=1).tolist()
        return tuple(
            Example(int(self.rows[i]), self.classes[labels_N[i]], self.classes[best[i]], bool(best[i] == labels_N[i]))
            for i in chosen
        )


def prompts_of(names: tuple[str, ...], templates: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The prompts of each class.

    Example:
        >>> prompts_of(("cat", "dog"), ("a {c}.", "{c}"))
        (('a cat.', 'cat'), ('a dog.', 'dog'))
    """
    return tuple(tuple(template.replace("{c}", name) for template in templates) for name in names)


def _classes(config: ZeroShotConfig, pairs: Pairs) -> tuple[Dataset, tuple[str, ...], tuple[str, ...]]:
    """The data, what prompts call its classes, and the templates."""
    templates: tuple[str, ...] = ()
    if config.data == STAMPS:
        found = pairs if config.pairs == STAMPS else stamp_pairs(config.split)
        parts: tuple[Part, ...] = tuple("test" if part == config.part else "train" for part in found.parts)
        data = Dataset(STAMPS, found.images, found.labels, found.classes, parts)
        names = tuple(STAMP_NAMES[name] for name in found.classes)
    else:
        folder = Path(config.data).expanduser()
        if is_clip_benchmark(folder):
            data, templates = read_clip_benchmark(folder, config.part)
        else:
            data = load_dataset(config.data, check=False)
        names = tuple(name.replace("_", " ") for name in data.classes)
    if data.targets is not None or len(data.classes) < 2:
        raise UserError(
            f"Zero-shot classification needs images of one class each and at least two classes: {config.data} has not."
        )
    if config.classnames is not None:
        names = read_lines(config.classnames)
        if len(names) != len(data.classes):
            raise UserError(
                f"{config.classnames} names {len(names)} classes, but {config.data} has {len(data.classes)}: expected one a line."
            )
    if config.templates is not None:
        templates = read_lines(config.templates)
    templates = templates or TEMPLATES
    if bad := [template for template in templates if "{c}" not in template]:
        raise UserError(
            f"The template {bad[0]!r} has no {{c}}: that is where the class goes, as in 'a photo of a {{c}}.'."
        )
    return data, names, templates


def _tested(data: Dataset, config: ZeroShotConfig) -> NDArray[np.int64]:
    """Labelled rows that are measured on."""
    part = config.part if config.part in data.parts else ""
    rows = np.flatnonzero((np.array(data.parts) == part) & (data.labels != UNLABELLED))
    if len(rows) == 0:
        raise UserError(f"{config.data} has no labelled image in the part {config.part!r}: choose another part.")
    if len(rows) > config.at_most:
        rows = np.sort(np.random.default_rng((config.seed, 4)).permutation(rows)[: config.at_most])
    return rows


def _scores(dataset: str, similar_SNK: Tensor, labels_N: NDArray[np.int64]) -> tuple[Score, ...]:
    """Top-1 and top-5 with classes counting alike, and top-1 with images counting alike."""
    classes = similar_SNK.shape[2]
    hits_DSN = np.stack([[hits(similar_NK, labels_N, depth) for similar_NK in similar_SNK] for depth in DEPTHS])
    _, place_N, counts = np.unique(labels_N, return_inverse=True, return_counts=True)
    weights_N = len(labels_N) / (len(counts) * counts[place_N])
    scores = [
        Score(
            f"top{depth}",
            dataset,
            hits_DSN[number] * weights_N,
            weights=weights_N,
            chance=depth / classes,
            shown=number == 0,
        )
        for number, depth in enumerate(DEPTHS)
        if depth < classes
    ]
    return (*scores, Score("accuracy", dataset, hits_DSN[0], shown=False))


def hits(similar_NK: Tensor, labels_N: NDArray[np.int64], depth: int) -> NDArray[np.float64]:
    """[N]: whether the right class is among the `depth` most similar; between 0 and 1 where it ties.

    Example:
        >>> hits(torch.tensor([[0.1, 0.9, 0.2], [0.5, 0.5, 0.1]]), np.array([1, 0]), 1).tolist()
        [1.0, 0.5]
    """
    values_NK = similar_NK.double().nan_to_num(nan=-torch.inf).numpy()
    own_N1 = np.take_along_axis(values_NK, labels_N[:, None], axis=1)
    above_N, level_N = (values_NK > own_N1).sum(axis=1), (values_NK == own_N1).sum(axis=1)
    return hit_chance(above_N, np.ones_like(above_N), level_N, depth)
