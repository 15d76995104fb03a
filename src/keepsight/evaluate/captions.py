"""Scores of generated captions against several references an image, with 95 % intervals over images. Knows no model.

All scores are of words by `data.words.tokens` (lower-cased, without punctuation; not the Penn Treebank tokeniser of COCO's server,
which differs in details such as hyphens), for generated and reference captions alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from keepsight.core import UserError
from keepsight.data.words import tokens
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.intervals import Interval, from_draws
from keepsight.evaluate.resampled import NUMBERS, resamples

ORDERS = 4
"""n-grams up to so many words."""

Sentence = Sequence[str]
Grams = Counter[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """What captions are worth.

    Attributes:
        n: Images measured: those with a reference that has a word.
        metrics: "bleu1" to "bleu4", "cider", "cer" and "exact"; fractions, but for "cider" (0 to 10) and "cer" (0 and above).
    """

    n: int
    metrics: dict[str, Interval]


def caption_scores(generated: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Corpus BLEU-1 to 4, CIDEr-D, character error rate and the share of exact matches.

    The intervals are percentile bootstraps over images; corpus BLEU and CER are computed anew from the resample's summed counts.
    CIDEr's word frequencies are those of all images in every resample. Exact match: the words are those of one of the references.

    Args:
        generated: One caption an image, as a model generated it (never teacher-forced).
        references: Those of each image; images without any are left out.

    Raises:
        UserError: If no image has a reference.

    Example:
        >>> found = caption_scores(["a red ball", "a cat"], [["A red ball."], ["A dog", "A blue cat"]])
        >>> found.n, found.metrics["exact"].value, round(found.metrics["bleu1"].value, 3)
        (2, 0.5, 1.0)
    """
    if len(generated) != len(references):
        raise ValueError(
            f"{len(generated)} captions cannot be scored against the references of {len(references)} images"
        )
    pairs = [
        (tokens(caption), words)
        for caption, texts in zip(generated, references, strict=True)
        if (words := [found for text in texts if (found := tokens(text))])
    ]
    if not pairs:
        raise UserError("No image has a reference caption with a word in it: captions cannot be scored without any.")
    captions, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    counts_NK = np.stack([_bleu_counts(caption, truth) for caption, truth in pairs])
    edits_N2 = np.array([_closest(caption, truth) for caption, truth in pairs], dtype=np.float64)
    exact_N = np.array([caption in truth for caption, truth in pairs], dtype=np.float64)
    cider_N = cider_d(captions, truths)
    n, width = len(pairs), counts_NK.shape[1]
    sums_NK = np.column_stack([counts_NK, edits_N2, exact_N, cider_N])
    whole = sums_NK.sum(axis=0)[None]
    draws_DK = np.concatenate([w_DN @ sums_NK for w_DN in resamples(n, max(1, NUMBERS // n))])
    metrics: dict[str, Interval] = {}
    for order in range(1, ORDERS + 1):
        metrics[f"bleu{order}"] = from_draws(bleu(whole[:, :width], order), bleu(draws_DK[:, :width], order), n)
    metrics["cider"] = _percentiles(whole[:, -1] / n, draws_DK[:, -1] / n)
    metrics["cer"] = _percentiles(whole[:, width] / whole[:, width + 1], draws_DK[:, width] / draws_DK[:, width + 1])
    metrics["exact"] = from_draws(whole[:, -2] / n, draws_DK[:, -2] / n, n)
    return CaptionScores(n, metrics)


def _percentiles(value_1: Floats, draws_D: Floats) -> Interval:
    low, high = np.quantile(draws_D, [0.025, 0.975])
    return Interval(float(value_1[0]), float(low), float(high), "bootstrap")


def _grams(words: Sentence, order: int) -> Grams:
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def _bleu_counts(caption: Sentence, references: Sequence[Sentence]) -> Floats:
    """Of one image: clipped matches of 1 to 4 words, n-grams of 1 to 4 words, the caption's length, the closest reference's length.

    Of two references equally close the shorter one counts.
    """
    matches, totals = [], []
    for order in range(1, ORDERS + 1):
        most: Grams = Counter()
        for reference in references:
            most |= _grams(reference, order)
        said = _grams(caption, order)
        matches.append((said & most).total())
        totals.append(said.total())
    closest = min((abs(len(reference) - len(caption)), len(reference)) for reference in references)[1]
    return np.array([*matches, *totals, len(caption), closest], dtype=np.float64)


def bleu(sums_DK: Floats, order: int) -> Floats:
    """Corpus BLEU [D] from summed counts [D, 10] (matches, n-grams, lengths said and wanted); Papineni et al. 2002, not smoothed.

    exp(min(0, 1 - wanted / said)) (prod_n matches_n / grams_n)^(1 / order), 0 where an order has no match.
    """
    matches_DO, grams_DO = sums_DK[:, :order], sums_DK[:, ORDERS : ORDERS + order]
    said_D, wanted_D = sums_DK[:, -2], sums_DK[:, -1]
    some_D: NDArray[np.bool_] = np.all(matches_DO > 0, axis=1)
    precision_DO = np.divide(matches_DO, grams_DO, out=np.ones_like(matches_DO), where=some_D[:, None])
    short_D = np.minimum(0.0, 1.0 - wanted_D / np.maximum(said_D, 1.0))
    return np.where(some_D, np.exp(short_D + np.log(precision_DO).mean(axis=1)), 0.0)


def cider_d(captions: Sequence[Sentence], references: Sequence[Sequence[Sentence]], sigma: float = 6.0) -> Floats:
    """CIDEr-D [N] of each caption in [0, 10] (Vedantam et al. 2015, section 5, and the authors' code).

    10 times the mean over references and over n = 1 to 4 of
    exp(-(l - l')^2 / (2 sigma^2)) sum_g min(v_g, v'_g) v'_g / (|v| |v'|), where v_g is the n-gram's count times its
    log(N / images in whose references it occurs), and l counts pairs of words. With a single image all of it is 0.

    Args:
        captions: Words of each caption.
        references: Words of each reference of each image; at least one an image.
        sigma: Of the penalty on length.

    Example:
        >>> cider_d([["a", "red", "ball", "there"], ["x"]], [[["a", "red", "ball", "there"]], [["no", "ball"]]]).tolist()
        [10.0, 0.0]
    """
    grams = [[[_grams(text, n) for n in range(1, ORDERS + 1)] for text in texts] for texts in references]
    images = Counter(gram for texts in grams for gram in {gram for orders in texts for each in orders for gram in each})
    everywhere = np.log(len(captions))

    def weighed(counts: Grams) -> dict[tuple[str, ...], float]:
        return {gram: count * float(everywhere - np.log(max(images[gram], 1))) for gram, count in counts.items()}

    found = np.zeros(len(captions))
    for i, (caption, texts) in enumerate(zip(captions, grams, strict=True)):
        said = [weighed(_grams(caption, n)) for n in range(1, ORDERS + 1)]
        for orders in texts:
            alike = np.mean([_clipped_cosine(v, weighed(each)) for v, each in zip(said, orders, strict=True)])
            gap = max(len(caption) - 1, 0) - orders[1].total()
            found[i] += 10.0 * alike * np.exp(-(gap**2) / (2 * sigma**2)) / len(texts)
    return found


def _clipped_cosine(said: dict[tuple[str, ...], float], truth: dict[tuple[str, ...], float]) -> float:
    above = sum(min(value, truth[gram]) * truth[gram] for gram, value in said.items() if gram in truth)
    below = (sum(v * v for v in said.values()) * sum(v * v for v in truth.values())) ** 0.5
    return above / below if below > 0 else 0.0


def _closest(caption: Sentence, references: Sequence[Sentence]) -> tuple[int, int]:
    """Edits to the reference that needs fewest a character, and its characters; words stand with one space between."""
    said = " ".join(caption)
    found = [(edits(said, text), len(text)) for text in {" ".join(reference): None for reference in references}]
    return min(found, key=lambda each: (each[0] / each[1], each[1]))


def edits(first: str, second: str) -> int:
    """Levenshtein's distance: characters to insert, drop or replace.

    Example:
        >>> edits("kitten", "sitting")
        3
    """
    if len(first) > len(second):
        first, second = second, first
    row = list(range(len(first) + 1))
    for i, wanted in enumerate(second, start=1):
        last, row = row, [i]
        for (replaced, dropped), said in zip(pairwise(last), first, strict=True):
            row.append(min(dropped + 1, row[-1] + 1, replaced + (said != wanted)))
    return row[-1]
