"""The script that draws charts is made once, kept whole, and can stand inside of a page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keepsight.report import vega


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache and a bundle that is counted, since the real one takes seconds."""

    calls: list[str] = []

    def bundle(snippet: str) -> str:
        calls.append("made")
        return 'const a = "</script><!--";\r\nwindow.vegaEmbed = a;'

    monkeypatch.setattr(vega, "_bundle", lambda: bundle("window.vegaEmbed = vegaEmbed;"))
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))
    return calls


def test_it_is_made_once_and_the_same_from_the_cache(made: list[str]) -> None:
    first, second = vega.script(), vega.script()
    assert first == second
    assert made == ["made"]


def test_nothing_in_it_ends_the_element(made: list[str]) -> None:
    script = vega.script()
    assert "</script" not in script
    assert "<!--" not in script
    assert "\r" not in script
    assert script.startswith("/*!")


@pytest.mark.parametrize("harm", [b"", b"half", "\u00e4".encode("latin-1")], ids=["empty", "half", "no text"])
def test_a_damaged_copy_is_made_again(made: list[str], tmp_path: Path, harm: bytes) -> None:
    whole = vega.script()
    (kept,) = (tmp_path / "cache" / "vega").iterdir()
    kept.write_bytes(kept.read_bytes()[: len(harm) + 70] + harm)
    assert vega.script() == whole
    assert made == ["made", "made"]
    assert vega.script() == whole
    assert len(made) == 2


def test_a_cache_that_cannot_be_written_is_done_without(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the cache should be")
    assert "vegaEmbed" in vega.script()


def test_the_real_one_defines_what_the_page_uses() -> None:
    script = vega.script()
    assert re.search(r"window\.vegaEmbed\s*=", script)
    assert len(script) < 1_500_000


def test_importing_the_report_does_not_load_the_converter() -> None:
    code = "import sys, keepsight.report.write; sys.exit('vl_convert' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
