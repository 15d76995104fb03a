"""Doubted labels against a loop over the definition, and planted wrong labels."""

from __future__ import annotations

import numpy as np

from keepsight.evaluate.mistakes import confident_mistakes, label_doubts


def planted(n: int = 300, k: int = 5, flipped: int = 15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k)) + 5.0 * np.eye(k)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = rng.choice(n, flipped, replace=False)
    labels = truth.copy()
    labels[rows] = (labels[rows] + 1 + rng.integers(0, k - 1, flipped)) % k
    return probabilities, labels, rows


def test_doubts_follow_the_definition() -> None:
    probabilities, labels, _ = planted()
    n, k = probabilities.shape
    threshold = [np.mean([probabilities[i, j] for i in range(n) if labels[i] == j]) for j in range(k)]
    wanted = {}
    for i in range(n):
        passing = [j for j in range(k) if probabilities[i, j] >= threshold[j]]
        if passing:
            best = max(passing, key=lambda j: probabilities[i, j])
            if best != labels[i]:
                wanted[i] = best
    found = label_doubts(probabilities, labels)
    assert {doubt.row: doubt.suggested for doubt in found} == wanted
    margins = [doubt.given_probability - doubt.suggested_probability for doubt in found]
    assert margins == sorted(margins)


def test_planted_wrong_labels_come_first() -> None:
    probabilities, labels, rows = planted()
    doubted = [doubt.row for doubt in label_doubts(probabilities, labels)]
    assert set(doubted[:10]) <= set(rows.tolist())
    assert len(set(doubted) & set(rows.tolist())) >= 10


def test_a_class_that_nobody_has_is_never_suggested() -> None:
    probabilities = np.array([[0.1, 0.1, 0.8], [0.2, 0.7, 0.1]])
    assert all(doubt.suggested != 2 for doubt in label_doubts(probabilities, np.array([0, 1])))


def test_mistakes_are_the_wrong_ones_by_confidence() -> None:
    probabilities, labels, _ = planted()
    rows = confident_mistakes(probabilities, labels, 10)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    assert set(rows) <= set(wrong)
    assert probabilities[rows].max(axis=1).min() >= np.sort(probabilities[wrong].max(axis=1))[-10]
    assert len(confident_mistakes(np.eye(3), np.arange(3), 10)) == 0
