"""The last section of a page: the command, the settings and what they ran on. Knows no run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from keepsight.report.page import Block, Listing

ENVIRONMENT = "environment.json"


def repeating(path: Path, version: str, command: str, config: Mapping[str, Any]) -> list[Block]:
    """What someone needs who wants the same figures again.

    Args:
        path: The run's folder; its environment.json is shown where there is one.
        version: keepsight's.
        command: What started the run; empty if it was started in Python.
        config: Its settings.
    """
    settings = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    made: list[Block] = []
    if command:
        made.append(Listing(title="Command", text=command, shown=True))
    made.append(Listing(title=f"Configuration (keepsight {version})", text=settings))
    if (path / ENVIRONMENT).is_file():
        made.append(Listing(title="Environment", text=(path / ENVIRONMENT).read_text(encoding="utf-8").strip()))
    return made
