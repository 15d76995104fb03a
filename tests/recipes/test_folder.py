"""A run's folder: what marks it as finished, what a kill while it is emptied leaves, a log on a full disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from keepsight.core import UserError
from keepsight.core.progress import log
from keepsight.recipes.config import as_yaml, resolve
from keepsight.recipes.folder import (
    RESULTS,
    SEAL,
    check_writable,
    clear,
    finish,
    is_finished,
    log_file,
    run_folder,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a finished run, without their meaning."""
    path = tmp_path / "run"
    for name in (*RESULTS, "model/model.json", "model/README.md", "cells/knn/seed-0/cell.json", "checkpoints/x/y"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    (path / "config.yaml").write_text(as_yaml(resolve("digits")))
    finish(path)
    return path


def test_finished_until_a_result_changes(run: Path) -> None:
    assert is_finished(run)
    assert not (run / "checkpoints").exists()
    (run / "model" / "README.md").write_text("A model card is there to be edited.")
    (run / "thesis.txt").write_text("and other files do no harm")
    assert is_finished(run)
    (run / "model" / "model.json").write_text("[]")
    assert not is_finished(run)


def test_a_kill_while_a_run_is_removed_leaves_something_that_can_be_removed(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear(run)
    assert not is_finished(run)
    other = resolve("digits", settings={"seeds": 1})
    with pytest.raises(UserError, match="another configuration"):
        run_folder(other, run, overwrite=False)
    assert run_folder(other, run, overwrite=True) == run
    clear(run)
    assert not list(run.iterdir())


def test_a_folder_in_use_is_refused_before_anything_is_read(run: Path) -> None:
    check_writable(run)
    with FileLock(run / ".lock"), pytest.raises(UserError, match="Another process is working"):
        check_writable(run)
    check_writable(run)
    assert (run / SEAL).is_file()


def test_a_log_that_cannot_be_written_does_not_stop_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with log_file(run / "log.txt"):
        log.info("first")
        resource.setrlimit(resource.RLIMIT_FSIZE, (60, before[1]))
        try:
            for _ in range(5):
                log.info("one more line than there is room for")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "first" in (run / "log.txt").read_text()
    assert "Traceback" not in capsys.readouterr().err
