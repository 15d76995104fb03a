"""What is wrong with a set of scenes before anything is trained on it. Knows no model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from keepsight.core import Config
from keepsight.core.scene import SceneDataset
from keepsight.data.findings import Finding
from keepsight.data.marks import Problems
from keepsight.data.scan import BadImage, read_all
from keepsight.data.scenes_load import scan_scenes


class SceneReport(Config):
    """What `check_scenes` found.

    Attributes:
        name: The data set's name.
        images: Number of images that are there.
        parts: Number of images by part.
        classes: Number of objects, without crowds, by class and part.
        masks: Objects with a mask.
        captions: Number of captions by part.
        bad: Images that cannot be read.
        findings: Sentences, errors first; with an error, loading refuses.
    """

    name: str
    images: int
    parts: dict[str, int]
    classes: dict[str, dict[str, int]]
    masks: int
    captions: dict[str, int]
    bad: tuple[BadImage, ...]
    findings: tuple[Finding, ...]


def check_scenes(source: str | Path, *, workers: int | None = None) -> SceneReport:
    """Read every annotation and every image, and report what is wrong; nothing is changed.

    Args:
        source: As for `load_scenes`.
        workers: Threads; one a processor by default.

    Raises:
        UserError: if the path is no set of scenes, or an annotation file is damaged.
    """
    dataset, problems = scan_scenes(source)
    bad = _read(dataset, problems, workers)
    objects: dict[str, Counter[str]] = {name: Counter() for name in dataset.classes}
    captions: Counter[str] = Counter()
    masks = 0
    for found, texts, part in zip(dataset.objects, dataset.captions, dataset.parts, strict=True):
        for label in found.classes[~found.crowd].tolist():
            objects[dataset.classes[label]][part] += 1
        masks += sum(mask is not None for mask in found.masks)
        captions[part] += len(texts)
    return SceneReport(
        name=dataset.name,
        images=len(dataset.images),
        parts=dict(Counter(dataset.parts)),
        classes={name: dict(counts) for name, counts in objects.items()},
        masks=masks,
        captions={part: number for part, number in captions.items() if number},
        bad=bad,
        findings=problems.findings(),
    )


def _read(dataset: SceneDataset, problems: Problems, workers: int | None) -> tuple[BadImage, ...]:
    """Decode each image once: is it whole, and of the size that its annotations say?"""
    bad = []

    def work(_: int, image: Image.Image) -> tuple[int, int]:
        return image.height, image.width

    for index, result in read_all(dataset.images, np.arange(len(dataset.images)), work, workers):
        name = dataset.images.name(index)
        if isinstance(result, BadImage):
            bad.append(result)
            problems.add("unreadable", name)
        elif result != (height_width := tuple(dataset.sizes[index].tolist())):
            (height, width), (h, w) = result, height_width
            problems.add("size", f"{name}: {width} x {height} px, by the annotations {w} x {h}")
    return tuple(bad)
