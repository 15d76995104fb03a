"""The moving average follows its formula, comes and goes, and a resumed training goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from keepsight.train import train
from keepsight.train.average import Average
from training_parts import SGD, Classifier, batches, weights


def test_formula() -> None:
    p = nn.Parameter(torch.tensor([0.0]))
    average, expected = Average([p], decay=0.25), 0.0
    for step in range(5):
        with torch.no_grad():
            p.fill_(step + 1.0)
        average.update(step)
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        with average.applied():
            assert p.item() == pytest.approx(expected, rel=1e-6)
        assert p.item() == step + 1
    average.keep()
    assert p.item() == pytest.approx(expected, rel=1e-6)


def test_what_is_kept_and_validated_is_the_average(tmp_path: Path) -> None:
    config = SGD.model_copy(update={"ema": 0.9, "validate_every": 4})
    plain, averaged, validated = Classifier(), Classifier(), Classifier()
    train(plain, batches(), 12, SGD, tmp_path / "plain")
    train(averaged, batches(), 12, config, tmp_path / "averaged")
    assert not torch.allclose(weights(averaged), weights(plain), atol=1e-4)
    seen = []

    def validate() -> float:
        seen.append(weights(validated).clone())
        return float(len(seen))  # the last one is the best

    outcome = train(validated, batches(), 12, config, tmp_path / "validated", validate)
    assert outcome.selection == "validation"
    assert len(seen) == 3
    assert torch.equal(seen[-1], weights(averaged))
    assert torch.equal(weights(validated), weights(averaged))


def test_resumed_average_is_bit_identical(tmp_path: Path) -> None:
    config = SGD.model_copy(update={"ema": 0.9, "checkpoint_steps": 5})
    straight, resumed = Classifier(), Classifier()
    train(straight, batches(), 14, config, tmp_path / "a")

    def stop(step: int, _: dict[str, float]) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Classifier(), batches(), 14, config, tmp_path / "b", report=stop)
    train(resumed, batches(), 14, config, tmp_path / "b")
    assert torch.equal(weights(resumed), weights(straight))
