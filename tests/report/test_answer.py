"""The first sentence in every case: sure gain, no gain, sure loss; forgotten or not; the baseline itself; nothing measured."""

from __future__ import annotations

import dataclasses

import pytest

from keepsight.core import Result
from keepsight.report.answer import Change, Facts, answer


def figure(method: str, value: float, split: str = "test", metric: str = "error") -> Result:
    return Result(
        task="classification",
        dataset="leaves",
        split=split,
        method=method,
        backbone="tiny",
        readout="8:mean",
        metric=metric,
        value=value,
        ci_low=value - 0.01,
        ci_high=value + 0.01,
        interval="bootstrap",
        n=1500,
        labels=100,
        seed=None,
        seeds=3,
        seconds=17.6,
        peak_mib=1282,
    )


BETTER, NONE, WORSE = Change(0.042, 0.031, 0.053), Change(0.004, -0.009, 0.016), Change(-0.026, -0.04, -0.01)
FORGOT, KEPT = Change(-0.013, -0.023, -0.002), Change(-0.004, -0.012, 0.003)

LORA = Facts(
    method="finetune-lora",
    tuned=True,
    tested=figure("finetune-lora", 0.081),
    validated=figure("finetune-lora", 0.1, "cross-validation"),
    baseline="probe",
    baseline_tested=figure("probe", 0.123),
    gain=BETTER,
    forgot=KEPT,
)
PROBE = Facts(
    method="probe",
    tuned=False,
    tested=figure("probe", 0.123),
    validated=None,
    baseline="probe",
    baseline_tested=figure("probe", 0.123),
    rival="finetune-lora",
    rival_gain=NONE,
)
CASES = {
    "gain": (
        LORA,
        ["finetune-lora is worth it over probe: test error 8.1 % against 12.3 %", "4.2 points better", "3.1 to 5.3"],
    ),
    "gain and nothing forgotten": (LORA, ["nothing is surely forgotten", "[-1.2, +0.3]", "17.6 s", "1,282 MiB"]),
    "gain and forgotten": (
        dataclasses.replace(LORA, forgot=FORGOT),
        ["if the backbone serves this task alone", "forgot 1.3 points", "[-2.3, -0.2]"],
    ),
    "gain and forgetting unknown": (
        dataclasses.replace(LORA, forgot=None),
        ["for this task", "what it forgot was not measured"],
    ),
    "no gain": (
        dataclasses.replace(LORA, gain=NONE),
        ["probe is as good, as far as 1,500 test images can tell: ship probe", "+0.4 points", "-0.9 to +1.6"],
    ),
    "loss": (
        dataclasses.replace(LORA, gain=WORSE),
        ["Ship probe", "worse on the test images", "2.6 points worse", "1.0 to 4.0"],
    ),
    "frozen over frozen": (dataclasses.replace(LORA, tuned=False), ["worth it over probe", "nothing is forgotten"]),
    "baseline": (PROBE, ["Ship probe: test error 12.3 %", "not surely better", "nothing is forgotten"]),
    "baseline, tuning better": (
        dataclasses.replace(PROBE, rival_gain=BETTER),
        ["tuning is better on the test images", "4.2 points better"],
    ),
    "baseline, tuning worse": (dataclasses.replace(PROBE, rival_gain=WORSE), ["makes it worse", "2.6 points worse"]),
    "baseline, unrecorded": (dataclasses.replace(PROBE, rival_gain=None), ["finetune-lora included"]),
    "one method": (
        dataclasses.replace(PROBE, rival=None, rival_gain=None),
        ["no method that tunes the backbone was measured on the test images"],
    ),
    "baseline by rule, tuning better": (
        dataclasses.replace(PROBE, rival_gain=BETTER, by_rule=True),
        ["was recommended by rule", "tuning is better on the test images"],
    ),
    "several that tune, and nothing to choose by": (
        dataclasses.replace(
            PROBE, rival=None, rival_gain=None, by_rule=True, unranked=("finetune-lora", "finetune-full")
        ),
        ["too few to choose one of those that tune the backbone (finetune-lora, finetune-full)"],
    ),
    "no cheap method": (
        dataclasses.replace(LORA, baseline=None, gain=None),
        ["no cheap method was tried", "add probe"],
    ),
    "old run": (dataclasses.replace(LORA, gain=None), ["against test error 12.3 %", "was not recorded"]),
    "no test": (dataclasses.replace(LORA, tested=None), ["cross-validated error 10.0 %", "there are no test images"]),
    "nothing": (dataclasses.replace(LORA, tested=None, validated=None), ["by rule", "no test images"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_says_it(case: str) -> None:
    facts, parts = CASES[case]
    found = answer(facts)
    for part in parts:
        assert part in found
    assert found.endswith(".")
    assert ". " not in found.replace("vs. ", "")
    assert len(found) < 420


def test_only_a_sure_gain_is_called_worth_it() -> None:
    for case, (facts, _) in CASES.items():
        sure = facts.gain is not None and facts.gain.low > 0 and facts.tested is not None and facts.baseline is not None
        assert ("worth it over" in answer(facts)) == (sure and facts.method != facts.baseline), case
