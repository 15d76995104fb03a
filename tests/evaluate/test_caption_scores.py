"""Caption scores against torchmetrics, pycocoevalcap and figures worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from keepsight.core import UserError
from keepsight.data.words import tokens
from keepsight.evaluate import captions as module
from keepsight.evaluate.captions import bleu, caption_scores, cider_d, edits

VOCABULARY = ["a", "the", "red", "blue", "small", "ball", "dog", "cat", "left", "of", "above", "two", "on", "and"]


def corpus(seed: int, n: int = 30) -> tuple[list[str], list[tuple[str, ...]]]:
    """Captions that are their references with words changed, dropped or repeated; one to three references."""
    rng = np.random.default_rng(seed)
    generated, references = [], []
    for _ in range(n):
        truth = [list(rng.choice(VOCABULARY, rng.integers(4, 12))) for _ in range(rng.integers(1, 4))]
        said = [str(rng.choice(VOCABULARY)) if rng.random() < 0.2 else w for w in truth[0] if rng.random() > 0.1]
        generated.append(" ".join(said + said[: rng.integers(0, 3)]))
        references.append(tuple(" ".join(words) for words in truth))
    return generated, references


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_pycocoevalcaps_and_torchmetrics(seed: int) -> None:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that torchmetrics looks for
        from torchmetrics.functional.text import bleu_score

    generated, references = corpus(seed)
    found = caption_scores(generated, references).metrics
    scorer = BleuScorer(n=4)
    for said, truth in zip(generated, references, strict=True):
        scorer += (said, list(truth))
    coco, _ = scorer.compute_score(option="closest")
    for order in range(1, 5):
        assert found[f"bleu{order}"].value == pytest.approx(coco[order - 1], abs=1e-7)
        # Of references equally close, torchmetrics takes the first, COCO and we the shortest.
        by_length = [sorted(truth, key=lambda text: len(text.split())) for truth in references]
        theirs = bleu_score(generated, by_length, n_gram=order).item()
        assert found[f"bleu{order}"].value == pytest.approx(theirs, abs=1e-5)
    assert 0.2 < found["bleu4"].value < found["bleu1"].value < 1


@pytest.mark.parametrize("seed", range(3))
def test_cider_is_pycocoevalcaps(seed: int) -> None:
    from pycocoevalcap.cider.cider import Cider

    generated, references = corpus(seed)
    generated[0], generated[1] = "", "unheard words only"
    truth = {i: list(texts) for i, texts in enumerate(references)}
    mean, each = Cider().compute_score(truth, {i: [text] for i, text in enumerate(generated)})
    found = cider_d([tokens(text) for text in generated], [[tokens(text) for text in texts] for texts in references])
    np.testing.assert_allclose(found, each, atol=1e-9)
    assert caption_scores(generated, references).metrics["cider"].value == pytest.approx(mean)
    assert mean > 1


def test_character_error_rate_is_torchmetrics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchmetrics.functional.text import char_error_rate

    generated, references = corpus(5)
    first = [truth[:1] for truth in references]
    theirs = char_error_rate(generated, [truth[0] for truth in first]).item()
    assert caption_scores(generated, first).metrics["cer"].value == pytest.approx(theirs, abs=1e-6)
    closest = [
        min(truth, key=lambda text, said=said: (char_error_rate(said, text).item(), len(text)))
        for said, truth in zip(generated, references, strict=True)
    ]
    assert closest != [truth[0] for truth in first]
    theirs = char_error_rate(generated, closest).item()
    assert caption_scores(generated, references).metrics["cer"].value == pytest.approx(theirs, abs=1e-6)


def test_edits() -> None:
    assert [edits("", ""), edits("", "abc"), edits("abc", ""), edits("flaw", "lawn"), edits("same", "same")] == [
        0,
        3,
        3,
        2,
        0,
    ]
    assert edits("intention", "execution") == edits("execution", "intention") == 5


def test_by_hand() -> None:
    found = caption_scores(
        ["A dog, on the left!", "a cat"], [["a dog on the left"], ["a cat sleeps", "no cat"]]
    ).metrics
    assert found["exact"].value == 0.5
    # 7 of 7 words; of the references the shorter of length 2: no penalty. 5 of 5 pairs, 3 of 3 triples, 2 of 2 quadruples.
    assert [found[f"bleu{n}"].value for n in range(1, 5)] == pytest.approx([1.0] * 4)
    # "a cat" for "no cat": 2 edits of 6 characters; for "a cat sleeps": 7 of 12.
    assert found["cer"].value == pytest.approx(2 / (17 + 6))
    short = caption_scores(["a dog"], [["a dog runs fast here"]]).metrics
    assert short["bleu1"].value == pytest.approx(math.exp(1 - 5 / 2))
    assert short["bleu3"].value == 0


def test_perfect_and_hopeless() -> None:
    _, references = corpus(7)
    perfect = caption_scores([truth[-1] for truth in references], references)
    assert perfect.n == 30
    for name in ("bleu1", "bleu4", "exact"):
        assert perfect.metrics[name].value == pytest.approx(1.0)
        assert perfect.metrics[name].low < 1  # thirty images do not prove perfection
        assert perfect.metrics[name].high == 1
    assert perfect.metrics["cer"].value == 0
    single = [truth[:1] for truth in references]
    assert caption_scores([truth[0] for truth in single], single).metrics["cider"].value == pytest.approx(10, abs=1e-6)
    nothing = caption_scores([""] * 30, references).metrics
    assert [nothing[name].value for name in ("bleu1", "bleu4", "cider", "cer", "exact")] == [0, 0, 0, 1, 0]


def test_intervals_hold_the_value_and_narrow_with_more_images() -> None:
    few, many = (caption_scores(*corpus(1, n)).metrics for n in (20, 160))
    for name, found in many.items():
        assert found.low <= found.value <= found.high, name
        assert 0 < found.high - found.low < 0.75 * (few[name].high - few[name].low), name


def test_the_interval_is_that_of_corpora_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resample's BLEU is what scoring the resampled corpus itself gives (not a mean over images)."""
    generated, references = corpus(2, 12)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(module, "bleu", lambda sums, order: seen.append(bleu(sums, order)) or seen[-1])
    caption_scores(generated, references)
    weights = np.concatenate(list(module.resamples(12, 1000)))
    for draw in (0, 1, 999):
        again = np.repeat(np.arange(12), weights[draw].astype(int))
        drawn = [generated[i] for i in again], [references[i] for i in again]
        monkeypatch.undo()
        scored = caption_scores(*drawn).metrics
        for order in range(1, 5):
            assert seen[2 * (order - 1) + 1][draw] == pytest.approx(scored[f"bleu{order}"].value)


def test_images_without_references_are_left_out() -> None:
    generated, references = corpus(3)
    plain = caption_scores(generated, references)
    more = caption_scores([*generated, "a cat", "a dog"], [*references, (), ("\U0001f600", "")])
    assert more == plain
    with pytest.raises(UserError, match="No image has a reference"):
        caption_scores(["a cat"], [()])
    with pytest.raises(ValueError, match="2 captions"):
        caption_scores(["a", "b"], [("a",)])
