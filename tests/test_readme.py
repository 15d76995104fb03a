"""The README's map names every source file, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_map_names_every_source_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^  (\S+\.py)\s+\S", text, flags=re.MULTILINE)
    source = ROOT / "src" / "keepsight"
    there = {p.relative_to(source).as_posix() for p in source.rglob("*.py") if p.name != "__init__.py"}
    assert sorted(named) == sorted(there)
