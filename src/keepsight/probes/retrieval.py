"""The probe of image-text retrieval: Recall@1, 5 and 10, both ways. Knows no backbone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import gammaln
from torch import Tensor

from keepsight.core import Config, Example, Findings, Fit, ImageList, Probe, Score, UserError, View
from keepsight.data.joined import JoinedImages
from keepsight.data.pairs import STAMPS, Pairs, load_pairs
from keepsight.data.subset import SubsetImages
from keepsight.probes.alignment import AlignmentConfig, Examples, FrozenTexts, embed

DEPTHS = (1, 5, 10)
SIMILARITIES_AT_ONCE = 10_000_000
EXAMPLES = 12


class RetrievalConfig(Config):
    """Settings of `RetrievalProbe`.

    Attributes:
        data: What is searched: "stamps", a file such as dataset_flickr30k.json, or a folder of CLIP-benchmark's.
        images: For a .json file: the folder of its images.
        part: What is measured on.
        pairs: What a backbone without a text tower is aligned by, where the data have no train part of their own.
        pairs_at_most: Images that it is aligned by.
        alignment: How.
        size: Side of the backbone's input, px; None for its own.
        split: Which stamps are held out (`data.pairs.stamp_pairs`).
        seed: Of the draws and the heads.
    """

    data: str = STAMPS
    images: Path | None = None
    part: str = "test"
    pairs: str = STAMPS
    pairs_at_most: int = Field(default=5000, ge=2)
    alignment: AlignmentConfig = AlignmentConfig()
    size: int | None = 112
    split: int = 0
    seed: int = 0


@final
class RetrievalProbe(Probe):
    """Finds the caption of an image among all captions, and the image of a caption among all images.

    Captions that read the same are one; it belongs to all their images. A query is a hit at K if anything that belongs to it is
    among the K most similar (as CLIP's papers count); of things that are equally similar it is a draw which come first, and the
    expectation over the draw is what counts. Chance is that of a random order.

    Raises:
        UserError: Data or packages are missing.
    """

    name = "retrieval"

    def __init__(self, config: RetrievalConfig | None = None) -> None:
        self.config = config = config or RetrievalConfig()
        self.size = config.size
        self.images, self.learn, test, self._pairs = gather(
            config.data, config.images, config.part, config.pairs, config.pairs_at_most, config.split, config.seed
        )
        self.stamps = self._pairs.stamps
        self.rows = test
        captions = [self._pairs.captions[row] for row in self._pairs.rows(config.part)]
        self.groups = self._pairs.groups[self._pairs.rows(config.part)]
        self.texts = tuple(dict.fromkeys(caption for own in captions for caption in own))
        place = {text: number for number, text in enumerate(self.texts)}
        self.owned = tuple(np.array(sorted({place[caption] for caption in own})) for own in captions)
        self._embed_texts = FrozenTexts(config.alignment.tower)

    def key(self) -> str:
        """See `Probe.key`."""
        return probe_key(
            self.name, self.config, self.images, self.learn, (self.rows, self.groups, self.texts, self.owned)
        )

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`."""
        config = self.config
        images_SNE, texts_STE = embed(
            view,
            fit,
            config.alignment,
            self._embed_texts,
            self.learn,
            self.rows,
            self.texts,
            seed=config.seed,
            shuffled=shuffled,
        )
        owned = self.owned
        if shuffled and view.text is not None:
            order = np.random.default_rng((config.seed, 2)).permutation(len(owned))
            owned = tuple(owned[other] for other in order.tolist())
        owners = inverted(owned, len(self.texts))
        first_T = np.array([self.groups[each[0]] for each in owners])
        scores = [
            *_scores("image to text", config.data, images_SNE, texts_STE, owned, self.groups),
            *_scores("text to image", config.data, texts_STE, images_SNE, owners, first_T),
        ]
        return Findings(tuple(scores), self._examples(images_SNE[0], texts_STE[0], owned))

    def _examples(
        self, images_NE: Tensor, texts_TE: Tensor, owned: tuple[NDArray[np.int64], ...]
    ) -> tuple[Example, ...]:
        """Images, drawn by the seed, with the caption that is most similar."""
        chosen = np.random.default_rng((self.config.seed, 3)).permutation(len(owned))[:EXAMPLES]
        best = (images_NE[torch.from_numpy(chosen)] @ texts_TE.T).nan_to_num(-torch.inf).argmax(dim=1).tolist()
        return tuple(
            Example(int(self.rows[i]), self.texts[owned[i][0]], self.texts[found], found in owned[i])
            for i, found in zip(chosen.tolist(), best, strict=True)
        )


def gather(
    data: str, images: Path | None, part: str, pairs: str, at_most: int, split: int, seed: int
) -> tuple[ImageList, Examples, NDArray[np.int64], Pairs]:
    """All images of a probe, the pairs to align by, the rows that are measured on, and the data themselves."""
    if part == "train" and data == pairs:
        raise UserError(
            f"The part train of {data} cannot both be learnt from and measured on: choose another part or other pairs."
        )
    found = load_pairs(data, images, part, split)
    own = len(found.rows("train")) and part != "train"
    other = found if own else load_pairs(pairs, None, "train", split)
    train, learn = to_learn(other, at_most, seed)
    test = found.rows(part)
    joined = JoinedImages({"learn": SubsetImages(other.images, train), "test": SubsetImages(found.images, test)})
    return joined, learn, np.arange(len(train), len(train) + len(test)), found


def to_learn(pairs: Pairs, at_most: int, seed: int) -> tuple[NDArray[np.int64], Examples]:
    """Rows of the train part, drawn by the seed if there are more than `at_most`, and their captions, numbered from 0."""
    train = pairs.rows("train")
    if len(train) > at_most:
        train = np.sort(np.random.default_rng((seed, 4)).permutation(train)[:at_most])
    return train, Examples(np.arange(len(train)), tuple(pairs.captions[row] for row in train.tolist()))


def probe_key(name: str, config: Config, images: ImageList, learn: Examples, rest: object) -> str:
    """Sha256 (hex) of a probe's settings, of its images and of all that is known of them."""
    digest = hashlib.sha256(f"{name} 1 {config.model_dump_json(exclude={'images'})}".encode())
    for row in range(len(images)):
        digest.update(images.content_hash(row))
    digest.update(repr((learn.rows.tolist(), learn.captions)).encode())
    with np.printoptions(threshold=2**62):
        digest.update(repr(rest).encode())
    return digest.hexdigest()


def inverted(owned: tuple[NDArray[np.int64], ...], count: int) -> tuple[NDArray[np.int64], ...]:
    """Of each of `count` texts the images that own it.

    Example:
        >>> [each.tolist() for each in inverted((np.array([0, 1]), np.array([1])), 2)]
        [[0], [0, 1]]
    """
    found: list[list[int]] = [[] for _ in range(count)]
    for image, texts in enumerate(owned):
        for text in texts.tolist():
            found[text].append(image)
    return tuple(np.array(each, dtype=np.int64) for each in found)


def _scores(
    way: str,
    dataset: str,
    queries_SQE: Tensor,
    gallery_SGE: Tensor,
    right: tuple[NDArray[np.int64], ...],
    units: NDArray[np.int64],
) -> list[Score]:
    """Recall at every depth for one way."""
    hits_SKQ = np.stack([recalls(q, g, right) for q, g in zip(queries_SQE, gallery_SGE, strict=True)])
    counts_Q = np.array([len(each) for each in right])
    name = Path(dataset).name
    return [
        Score(
            f"recall{depth} ({way})",
            name,
            hits_SKQ[:, number],
            units=units,
            chance=float(
                hit_chance(
                    np.zeros_like(counts_Q), counts_Q, np.full_like(counts_Q, gallery_SGE.shape[1]), depth
                ).mean()
            ),
            shown=depth == max(DEPTHS),
        )
        for number, depth in enumerate(DEPTHS)
    ]


def recalls(queries_QE: Tensor, gallery_GE: Tensor, right: tuple[NDArray[np.int64], ...]) -> NDArray[np.float64]:
    """[K, Q]: for each of `DEPTHS` whether something right is among the most similar; between 0 and 1 where similarities tie.

    What has no similarity (NaN) comes last, and all of it ties.

    Args:
        queries_QE: Unit vectors.
        gallery_GE: Unit vectors.
        right: Places in the gallery that are right for each query, at least one.

    Example:
        >>> one = torch.ones(1, 1)
        >>> recalls(one, one.expand(20, 1), (np.array([3]),)).ravel().round(3).tolist()
        [0.05, 0.25, 0.5]
    """
    found = np.empty((len(DEPTHS), len(queries_QE)))
    step = max(1, SIMILARITIES_AT_ONCE // len(gallery_GE))
    for start in range(0, len(queries_QE), step):
        block = slice(start, min(start + step, len(queries_QE)))
        similar_BG = (queries_QE[block] @ gallery_GE.T).double().nan_to_num(nan=-torch.inf).numpy()
        own = right[block]
        best_B1 = np.array([[row[each].max()] for row, each in zip(similar_BG, own, strict=True)])
        above_B, level_BG = (similar_BG > best_B1).sum(axis=1), similar_BG == best_B1
        right_B = np.array([row[each].sum() for row, each in zip(level_BG, own, strict=True)])
        for number, depth in enumerate(DEPTHS):
            found[number, block] = hit_chance(above_B, right_B, level_BG.sum(axis=1), depth)
    return found


def hit_chance(
    above_Q: NDArray[np.int64], right_Q: NDArray[np.int64], level_Q: NDArray[np.int64], depth: int
) -> NDArray[np.float64]:
    """P(hit at `depth`) of queries for which `above` wrong things come first, then `level` things in random order, `right` of them.

    1 - C(level - right, m) / C(level, m) with m = depth - above places left.

    Example:
        >>> hit_chance(np.array([0, 9, 10]), np.array([2, 1, 1]), np.array([4, 1, 1]), 1).round(3).tolist()
        [0.5, 0.0, 0.0]
    """
    places_Q = np.clip(depth - above_Q, 0, level_Q)
    wrong_Q = level_Q - right_Q
    sure_Q = places_Q > wrong_Q
    left_Q = np.where(sure_Q, 0, wrong_Q - places_Q)
    log_Q = gammaln(wrong_Q + 1) - gammaln(left_Q + 1) + gammaln(level_Q - places_Q + 1) - gammaln(level_Q + 1)
    chance_Q: NDArray[np.float64] = np.where(sure_Q, 1.0, np.where(places_Q == 0, 0.0, 1.0 - np.exp(log_Q)))
    return chance_Q
