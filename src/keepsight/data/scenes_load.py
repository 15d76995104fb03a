"""The one entry to scenes: a path in, a checked `SceneDataset` out. Knows no format and no transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from keepsight.core import UserError
from keepsight.core.scene import SceneDataset
from keepsight.data.coco import coco_files, scan_coco
from keepsight.data.marks import Problems
from keepsight.data.voc import scan_voc, voc_root
from keepsight.data.yolo import scan_yolo, yolo_file

SceneFormat = Literal["coco", "yolo", "voc"]

_SCAN: dict[SceneFormat, Callable[[Path], tuple[SceneDataset, Problems]]] = {
    "coco": scan_coco,
    "yolo": scan_yolo,
    "voc": scan_voc,
}


def scene_format(source: str | Path) -> SceneFormat | None:
    """Which format a path is in; None if it is no set of scenes (or not there)."""
    path = Path(source).expanduser()
    try:
        if not path.exists():
            return None
        if coco_files(path):
            return "coco"
        if voc_root(path) is not None:
            return "voc"
        return "yolo" if yolo_file(path) is not None else None
    except OSError:
        return None


def load_scenes(source: str | Path) -> SceneDataset:
    """Images with marked objects or captions from a folder (or file) in the format of COCO, YOLO or Pascal VOC.

    Warnings (missing files, boxes cut off, ...) are logged, a line each.

    Raises:
        UserError: if the path is none of them, or its annotations cannot be used (see `marks.SAYS`: severity 'error').
    """
    dataset, problems = scan_scenes(source)
    problems.refuse_or_log(str(source))
    return dataset


def scan_scenes(source: str | Path) -> tuple[SceneDataset, Problems]:
    """What can be read, and everything that is wrong with the rest; raises UserError if the path is no set of scenes."""
    path = Path(source).expanduser()
    kind = scene_format(path)
    if kind is not None:
        return _SCAN[kind](path)
    if not path.exists():
        raise UserError(f"There is no folder {str(source)!r} of scenes: check the spelling.")
    raise UserError(
        f"{path} is no set of scenes: expected COCO (annotations/instances_*.json or captions_*.json), YOLO (data.yaml, or "
        f"classes.txt with images/ and labels/) or Pascal VOC (Annotations/ and JPEGImages/)."
    )
