"""Files that were cut or changed on the disk: the last good state is used and this is said, or one sentence says what to do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from keepsight.recipes.folder import is_finished

LAST = "finetune-full/seed-1"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff{")


Damage = dict[str, Callable[[Path], None]]
OLD, NEW = (f"checkpoints/{LAST}/step-0000000{step}" for step in (2, 4))

CASES: dict[str, tuple[Damage, list[str]]] = {  # the last two wait for `make test-kill`
    "newest checkpoint cut, a record cut": (
        {f"{NEW}/state.pt": cut, "cells/probe/fold-0/cell.json": cut},
        ["step-00000004 is damaged", "probe/fold-0 is damaged", "resuming from"],
    ),
    "all checkpoints damaged, probabilities are missing": (
        {f"{NEW}/state.pt": garbage, f"{OLD}/COMPLETE": garbage, "cells/probe/fold-1/probabilities.npy": remove},
        ["step-00000002 is damaged", "its training starts again", "probe/fold-1 is damaged"],
    ),
    "newest checkpoint changed, probabilities changed": (
        {f"{NEW}/model.safetensors": flip, "cells/probe/seed-1/probabilities.npy": flip},
        ["step-00000004 is damaged", "probe/seed-1 is damaged", "resuming from"],
    ),
    "newest checkpoint without marker, a saved model cut": (
        {f"{NEW}/COMPLETE": remove, "cells/probe/seed-0/model/head.safetensors": cut},
        ["step-00000004 is damaged", "probe/seed-0 is damaged", "resuming from"],
    ),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if i > 1 else ()) for i, case in enumerate(CASES)]
)
def test_a_damaged_run_is_repaired_and_it_is_said(place, straight, halfway: Path, case: str) -> None:
    shutil.copytree(halfway, place.run)
    damage, said = CASES[case]
    for name, harm in damage.items():
        harm(place.run / name)
    assert place.finish(straight.cache).differences(straight.outcome) == []
    log = (place.run / "log.txt").read_text()
    for words in said:
        assert words in log
    assert ("resuming from" in log) == ("resuming from" in said)


def test_damaged_results_are_made_again_from_the_fits(place, straight) -> None:
    shutil.copytree(straight.path, place.run)
    cut(place.run / "results.jsonl")
    flip(place.run / "model" / "backbone.safetensors")
    assert place.finish(straight.cache).differences(straight.outcome) == []
    said = place.said.read_text()
    assert "are damaged or incomplete" in said
    assert "(0 images through the backbone)" in said
    assert "resuming" not in said


@pytest.mark.parametrize(
    ("name", "harm"),
    [("results.jsonl", cut), ("recommendation.json", garbage), ("report.html", remove), ("model/model.json", flip)],
)
def test_a_run_with_damaged_results_is_not_taken_as_finished(
    straight, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, harm: Callable[[Path], None]
) -> None:
    shutil.copytree(straight.path, tmp_path / "run")
    assert is_finished(tmp_path / "run")
    assert not caplog.messages
    harm(tmp_path / "run" / name)
    with caplog.at_level(logging.WARNING, "keepsight"):
        assert not is_finished(tmp_path / "run")
    assert "are damaged or incomplete" in caplog.text


SENTENCES = {
    "splits cut": ("splits.json", cut, "splits.json cannot be read"),
    "splits of another kind": ("splits.json", lambda path: path.write_text("[]"), "splits.json cannot be read"),
    "no config": ("config.yaml", remove, "has lost its config.yaml"),
    "config is no text": ("config.yaml", garbage, "has lost its config.yaml"),
    "config of an older version": (
        "config.yaml",
        lambda path: path.write_text(path.read_text().replace("seeds:", "repeats:")),
        "another configuration",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_what_cannot_be_repaired_is_one_sentence(place, straight, halfway: Path, case: str) -> None:
    name, harm, words = SENTENCES[case]
    shutil.copytree(halfway, place.run)
    harm(place.run / name)
    assert place.forked.run(place.argv, straight.cache, place.said) == 2
    said = place.said.read_text().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert words in said[0]


def test_a_damaged_choice_of_readout_and_damaged_features_are_made_again(place) -> None:
    place.argv = [
        *place.argv,
        "--readout",
        "auto",
        "--methods",
        "probe",
        "--seeds",
        "1",
        "--labels",
        "20",
        "--test",
        "20",
    ]
    first = place.finish()
    (place.run / ".complete").unlink()
    cut(place.run / "readout.json")
    chunks = sorted(place.cache.rglob("*.npy"))
    cut(chunks[0])
    garbage(chunks[-1])
    assert place.finish().differences(first) == []
    said = place.said.read_text()
    assert "readout.json is damaged" in said
    assert "are damaged and are computed again" in said
