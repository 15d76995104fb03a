"""The README's map names every folder of the source, and no other; every file says what it is for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "keepsight"


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"^  (\w+)/\s+\S", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(p.parent.name for p in SOURCE.glob("*/__init__.py"))
    for path in re.findall(r"`(\w+/\w+\.py)`", text):
        assert (SOURCE / path).is_file() or (ROOT / path).is_file(), path


def test_every_file_says_what_it_is_for() -> None:
    for path in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
