"""What the shell offers after a tab. Reads only what is cheap: no weights, no images."""

from __future__ import annotations

from pathlib import Path


def _paths(incomplete: str) -> list[str]:
    """Files and folders, since a custom completion takes the shell's own one away."""
    folder, _, start = incomplete.rpartition("/")
    base = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".").expanduser()
    prefix = f"{folder}/" if "/" in incomplete else ""
    try:
        entries = sorted(base.iterdir())
    except OSError:
        return []
    hidden = start.startswith(".")
    return [
        f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(start) and (hidden or not entry.name.startswith("."))
    ]


def data_names(incomplete: str) -> list[str]:
    """Data sets by name, then paths."""
    from keepsight.data.named import NAMES

    return [name for name in NAMES if name.startswith(incomplete)] + _paths(incomplete)


def backbone_names(incomplete: str) -> list[str]:
    """Packaged and timm names, then paths."""
    from keepsight.backbones.load import list_backbones

    pattern = "".join(c for c in incomplete if c not in "*?[]")
    return [entry.name for entry in list_backbones(f"{pattern}*")] + _paths(incomplete)


def method_names(incomplete: str) -> list[str]:
    """The last name of a comma-separated list of methods."""
    from keepsight.recipes.config import METHODS

    before, comma, start = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in METHODS if name.startswith(start) and name not in taken]


def probe_names(incomplete: str) -> list[str]:
    """The last name of a comma-separated list of probes."""
    from keepsight.recipes.probe_names import PROBES

    before, comma, start = incomplete.rpartition(",")
    taken = before.split(",")
    return [f"{before}{comma}{name}" for name in PROBES if name.startswith(start) and name not in taken]


def readouts(incomplete: str) -> list[str]:
    """Common readouts."""
    return [text for text in ("auto", "last:cls", "last:mean", "last:cls+mean") if text.startswith(incomplete)]
