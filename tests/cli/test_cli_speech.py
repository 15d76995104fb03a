"""Misspelt and wrong calls are one sentence with what was meant; --quiet is quiet; the shell completes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from keepsight.cli import complete

WRONG = {
    "command": (["tun", "x"], "has no command tun: did you mean tune?"),
    "nothing like it": (["xyzzy"], "there are tune, predict"),
    "option": (["tune", "demo", "--labls", "3"], "There is no option --labls: did you mean --labels?"),
    "option of all": (["--debg", "tune", "demo"], "There is no option --debg: did you mean --debug?"),
    "option of all, too late": (["tune", "demo", "--quiet"], "comes before the command: keepsight --quiet tune"),
    "inner command": (["cache", "pruen"], "keepsight cache has no command pruen: did you mean prune?"),
    "missing argument": (["tune"], "The argument DATA is missing: 'keepsight tune --help'"),
    "missing option": (["export", "m"], "The option --to is missing"),
    "wrong type": (["tune", "demo", "--seeds", "many"], "--seeds"),
    "wrong choice": (["export", "m", "--to", "tflite", "--out", "o"], "tflite"),
    "option without value": (["tune", "demo", "--labels"], "--labels"),
    "too much": (["backbones", "a", "b"], "b"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_one_sentence_and_exit_code_2(run, case: str) -> None:
    arguments, message = WRONG[case]
    printed = run(*arguments)
    assert printed.code == 2
    assert len(printed.errors) == 1
    assert printed.err.strip().count("\n") == 0, printed.err
    assert message in printed.errors[0]
    assert "╭" not in printed.err


def test_groups_without_a_command_show_their_help(run) -> None:
    for arguments in ([], ["cache"], ["data"]):
        printed = run(*arguments)
        assert "Commands" in printed.out + printed.err
        assert not printed.errors


def test_version(run) -> None:
    import keepsight

    printed = run("--version")
    assert (printed.code, printed.out) == (0, f"keepsight {keepsight.__version__}\n")


def test_quiet_prints_the_result_alone(run, model: Path, data: Path) -> None:
    loud = run("predict", model, data / "3")
    assert "predictions" in loud.err
    quiet = run("--quiet", "predict", model, data / "3")
    assert quiet.err == ""
    assert quiet.out == loud.out
    assert run("--quiet", "predict", data, data / "3").errors  # errors are said all the same


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(pattern: str) -> None:
        raise OSError(number, os.strerror(number), "/somewhere")

    monkeypatch.setattr("keepsight.backbones.load.list_backbones", full)
    printed = run("backbones")
    assert printed.code == 2
    assert "Writing /somewhere failed, because the disk (or your quota) is full" in printed.errors[0]


def test_an_error_of_ours_keeps_its_traceback(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pattern: str) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("keepsight.backbones.load.list_backbones", broken)
    with pytest.raises(OSError, match="input/output"):
        run("backbones")


def test_an_interrupt_ends_with_130(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pattern: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("keepsight.backbones.load.list_backbones", interrupted)
    printed = run("backbones")
    assert printed.code == 130
    assert "interrupted" in printed.err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("keepsight ev", "evaluate"),
        ("keepsight tune fashion", "fashion-mnist"),
        ("keepsight tune demo --methods knn,pr", "knn,probe"),
        ("keepsight embed vit_s14", "vit_s14_imgfocus"),
        ("keepsight cache pr", "prune"),
    ],
)
def test_bash_completes_commands_and_names(run, monkeypatch: pytest.MonkeyPatch, line: str, expected: str) -> None:
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    monkeypatch.setenv("_KEEPSIGHT_COMPLETE", "complete_bash")
    printed = run()
    assert printed.code == 0
    assert printed.out.split() == [expected]


def test_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digit-folder").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "digit-folder" / "a.csv").touch()
    assert complete.data_names("dig") == ["digits", "digit-folder/"]
    assert complete.data_names("digit-folder/") == ["digit-folder/a.csv"]
    assert ".hidden/" not in complete.data_names("")
    assert complete.data_names("no/such/") == []
    assert "vit_s14_imgfocus" in complete.backbone_names("vit_s14")
    assert "probe,finetune-lora" in complete.method_names("probe,fine")
    assert complete.method_names("probe,pro") == []  # named already
    assert complete.readouts("last:m") == ["last:mean"]


def test_show_completion_prints_a_script(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    printed = run("--show-completion")
    assert printed.code == 0
    assert "_KEEPSIGHT_COMPLETE=complete_bash" in printed.out
