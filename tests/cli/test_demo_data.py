"""`keepsight demo-data scenes` and what `keepsight data check` says of it, as a user types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from keepsight import cli
from keepsight.data import scenes
from keepsight.data.scene_stamps import Stamp


@pytest.fixture(autouse=True)
def _squares(monkeypatch: pytest.MonkeyPatch) -> None:
    white = np.full((20, 20, 4), 255, np.uint8)
    pool = tuple(Stamp(f"{n}", f"kind{n % 2}", f"a kind{n % 2}", "a square", white, n) for n in range(12))
    monkeypatch.setattr(scenes, "load_stamps", lambda source: ("squares", pool))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["keepsight", *words])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    words = ("--images", "8", "--val", "3", "--test", "2", "--seed", "1", "--size", "48")
    assert run(monkeypatch, "demo-data", "scenes", str(folder), *words) == 0
    assert "15 images (train 8, val 3, test-seen 2, test-unseen 2)" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        "annotations",
        "recipe.json",
        "test-seen",
        "test-unseen",
        "train",
        "val",
    ]
    assert run(monkeypatch, "data", "check", str(folder), "--json", str(tmp_path / "report.json")) == 0
    assert "15 images" in capsys.readouterr().out
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 99
    file.write_text(json.dumps(content))
    assert run(monkeypatch, "data", "check", str(folder), "--json", str(tmp_path / "report.json")) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"][0]["severity"] == "error"
    assert "unknown category" in report["findings"][0]["text"]


def test_a_filled_folder_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    assert run(monkeypatch, "demo-data", "scenes", str(tmp_path), "--images", "1") == 2
    assert "is not empty: choose another place" in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, "demo-data", "scenes", str(tmp_path / "x"), "--source", "photos") == 2
    assert "--source 'photos' is not known" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_template_captions_are_the_first_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {}
    for kind in ("all", "template"):
        folder = tmp_path / kind
        words = ("--images", "6", "--val", "1", "--test", "1", "--size", "48", "--captions", kind)
        assert run(monkeypatch, "demo-data", "scenes", str(folder), *words) == 0
        found = json.loads((folder / "annotations" / "captions_train.json").read_text())["annotations"]
        said[kind] = [(each["image_id"], each["caption"]) for each in found]
    firsts = dict(reversed(said["all"]))
    assert said["template"] == list(firsts.items())[::-1]
    assert len(said["all"]) > len(said["template"]) == 6
    assert run(monkeypatch, "demo-data", "scenes", str(tmp_path / "no"), "--captions", "some") == 2
