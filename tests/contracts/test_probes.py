"""What every probe promises (`core.Probe`), over all of `PROBES` on real packaged weights and few images.

The unmarked ones take less than 20 s together, the others are slow: `make test-slow`, or for one
`pytest -m slow tests/contracts/test_probes.py -k vqa`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from keepsight.backbones.load import load_backbone
from keepsight.core import Findings, Probe, Score
from keepsight.evaluate.scores import score_difference, score_interval
from keepsight.features.cache import FeatureCache
from keepsight.features.view import BackboneView
from keepsight.recipes.probe_fit import TrainerFit
from keepsight.recipes.probe_make import make_probe
from keepsight.recipes.probe_names import PROBES, ProbeName
from keepsight.recipes.probe_settings import probing_config


@dataclass(frozen=True)
class Case:
    """A probe that is small enough to test.

    Attributes:
        name: Which.
        settings: That make it small.
        metric: The headline that must tell good features from random ones, and be at chance when shuffled.
        slow: Whether it takes more than 10 s on an idle thread.
        floor: The score that stands for chance, where there is more to guess from than the classes' frequencies.
    """

    name: ProbeName
    settings: tuple[str, ...]
    metric: str
    slow: bool = True
    floor: str | None = None


CASES = (
    Case("ocr", ("ocr.train=500", "ocr.test=100", "ocr.seeds=1", "ocr.size=84"), "cer"),
    Case("goi", ("goi.train=150", "goi.test=100"), "accuracy (region)"),
    Case("zero-shot", ("zero_shot.size=84", "zero_shot.alignment.seeds=2"), "top1"),
    Case("retrieval", ("retrieval.size=84", "retrieval.alignment.seeds=2"), "recall10 (image to text)"),
    Case(
        "vqa",
        ("vqa.train_images=800", "vqa.test_images=200", "vqa.seeds=[0]"),
        "accuracy",
        floor="accuracy (image-blind)",
    ),
    Case(
        "few-shot",
        ("few_shot.draws=3", "few_shot.shots=[4]", "few_shot.sets.per_set=200", "few_shot.sets.least=10"),
        "accuracy (4-shot)",
        False,
    ),
    Case("knn", ("knn.sets.per_set=200", "knn.sets.least=10"), "accuracy", False),
    Case("linear", ("linear.sets.per_set=200", "linear.sets.least=10"), "accuracy"),
    Case("attention", ("attention.images=24", "attention.size=112"), "attention_on_objects"),
)

every = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c.slow else (), id=c.name) for c in CASES]
)


@pytest.fixture(scope="module")
def probe_of() -> Callable[[Case], Probe]:
    """Each probe made once."""
    made: dict[str, Probe] = {}

    def get(case: Case) -> Probe:
        if case.name not in made:
            made[case.name] = fresh(case)
        return made[case.name]

    return get


def fresh(case: Case, *more: str) -> Probe:
    return make_probe(
        case.name, probing_config("vit_s14_imgfocus", assignments=("suite=[digits]", *case.settings, *more))
    )


@pytest.fixture(scope="module")
def found(probe_of: Callable[[Case], Probe], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Findings]:
    """What a probe finds; features, maps and heads of each `run` have folders of their own: runs share nothing but weights."""
    known: dict[tuple[str, str, str, bool], Findings] = {}

    def get(case: Case, run: str = "first", weights: str = "pretrained", shuffled: bool = False) -> Findings:
        key = (case.name, run, weights, shuffled)
        if key not in known:
            probe = probe_of(case)
            fit = "squash" if probe.squash else None
            backbone = load_backbone("vit_s14_imgfocus", weights=weights, size=probe.size, fit=fit)
            features, folder = (
                tmp_path_factory.getbasetemp() / f"{of}-{run}-{weights}" for of in ("features", case.name)
            )
            cache = FeatureCache(backbone.weights_hash(), backbone.preprocessing, root=features)
            view = BackboneView(backbone, probe.images, folder / "maps", cache=cache)
            state = torch.get_rng_state()
            known[key] = probe.measure(view, TrainerFit(folder / f"heads-{shuffled}"), shuffled)
            assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers change
        return known[key]

    return get


def headline(findings: Findings, case: Case) -> Score:
    return next(s for s in findings.scores if s.metric == case.metric and s.shown)


def floor(findings: Findings, case: Case) -> Score:
    """What stands for chance, under the headline's name."""
    return replace(next(s for s in findings.scores if s.metric == case.floor), metric=case.metric)


def test_every_probe_is_here() -> None:
    assert {case.name for case in CASES} == set(PROBES)


@every
def test_made_twice_it_is_the_same_and_its_key_says_so(case: Case, probe_of: Callable[[Case], Probe]) -> None:
    probe, again = probe_of(case), fresh(case)
    assert probe.name == case.name
    assert again.key() == probe.key()
    assert len(again.images) == len(probe.images) > 0
    assert fresh(case, "seed=1").key() != probe.key()


@every
def test_findings_are_whole(case: Case, found: Callable[..., Findings], probe_of: Callable[[Case], Probe]) -> None:
    findings, images = found(case), probe_of(case).images
    names = [(s.metric, s.dataset) for s in findings.scores]
    assert len(set(names)) == len(names)
    for score in findings.scores:
        assert np.isfinite(score.values).all()
        assert score.chance is None or 0 <= score.chance <= 1
    assert any(s.shown for s in findings.scores)
    assert all(0 <= e.row < len(images) for e in findings.examples)
    assert all(0 <= h.row < len(images) and h.values.min() >= 0 for h in findings.heats)


@every
def test_a_backbone_against_itself_differs_by_exactly_nothing(case: Case, found: Callable[..., Findings]) -> None:
    first, second = found(case), found(case, run="second")
    for one, other in zip(first.scores, second.scores, strict=True):
        difference = score_difference(one, other)
        assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0), one.metric
    assert first.examples == second.examples


@every
def test_shuffled_it_is_at_chance(case: Case, found: Callable[..., Findings]) -> None:
    score = headline(found(case, shuffled=True), case)
    learnt = score_interval(headline(found(case), case))
    interval = score_interval(score)
    if score.chance is None:  # an error rate: what is learnt from shuffled texts is surely worse
        assert score.better == "lower"
        assert interval.low > learnt.high
        return
    if case.floor is not None:
        difference = score_difference(score, floor(found(case, shuffled=True), case))
        assert difference.low <= 0 <= difference.high
        assert score_difference(headline(found(case), case), floor(found(case), case)).low > 0
        return
    # One 95 % interval of nine may miss by chance: half as wide again is one in three hundred.
    spare = (interval.high - interval.low) / 4
    assert interval.low - spare <= score.chance <= interval.high + spare
    assert learnt.low > score.chance


@every
def test_random_weights_are_clearly_worse(case: Case, found: Callable[..., Findings]) -> None:
    pretrained, random = (headline(found(case, weights=w), case) for w in ("pretrained", "random"))
    sign = 1.0 if pretrained.better == "higher" else -1.0
    one, other = (replace(s, values=sign * s.values) for s in (pretrained, random))
    assert score_difference(one, other).low > 0
