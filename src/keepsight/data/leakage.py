"""Whether a probe shows what a backbone was tuned on: an image, nearly the same one, or a stamp of composed scenes. Knows no probe.

Looked for are, in this order, stamps (by the recipes of composed scenes), images of equal content, and near duplicates (see
`duplicates`), mirrored ones included, since training may mirror its images. The photographs behind composed scenes are few and
sets share them; that is not looked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keepsight.core import ImageList, UserError
from keepsight.data.duplicates import near_pairs, perceptual_hash, thumbnail
from keepsight.data.files import EXTENSIONS, FileImages
from keepsight.data.scan import BadImage, read_all
from keepsight.data.scenes_load import load_scenes, scene_format
from keepsight.data.subset import SubsetImages

RECIPE = "recipe.json"
"""The file in a folder of composed scenes that lists their stamps."""

Stamps = Mapping[str, str]
"""Names of stamps by the sha256 of their pixels."""


def check_leakage(
    probe_images: ImageList, training_folder: Path, stamps: Stamps | None = None, *, near: bool = True
) -> None:
    """Refuse a probe whose images the backbone may have been tuned on.

    Args:
        probe_images: Of the probe.
        training_folder: What the backbone was tuned on: scenes in any format (all parts but those named test...), or a folder of
            images.
        stamps: Those that the probe's test objects show, where it is of composed scenes; compared if the training scenes are
            composed, too.
        near: Whether near duplicates are looked for.

    Raises:
        UserError: naming the first image, or stamp, that both have, or if the folder holds no images.
    """
    folder = Path(training_folder).expanduser()
    _refuse_stamps(stamps or {}, folder)
    training = training_images(folder)
    digests = {training.content_hash(row): row for row in reversed(range(len(training)))}
    for index in range(len(probe_images)):
        row = digests.get(probe_images.content_hash(index))
        if row is not None:
            raise _shared(probe_images.name(index), training.name(row), folder, "is")
    found = _nearest(probe_images, training) if near else None
    if found is not None:
        index, row, correlation = found
        raise _shared(
            probe_images.name(index), training.name(row), folder, f"is nearly (correlation {correlation:.3f})"
        )


def _shared(probed: str, trained: str, folder: Path, how: str) -> UserError:
    so_that = "so that the probe would measure what was trained: give the probe other images."
    return UserError(f"The probe's image {probed} {how} the training image {trained} of {folder}, {so_that}")


def training_images(folder: Path) -> ImageList:
    """What a backbone that was tuned on the folder has seen: all images but those of parts named test... of a set of scenes.

    Raises:
        UserError: There is none.
    """
    if scene_format(folder) is not None:
        dataset = load_scenes(folder)
        rows = [row for row, part in enumerate(dataset.parts) if not part.startswith("test")]
        if rows:
            return SubsetImages(dataset.images, np.array(rows, dtype=np.int64))
    elif folder.is_dir():
        names = sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.suffix.lower() in EXTENSIONS and path.is_file()
        )
        if names:
            return FileImages(folder, names)
    raise UserError(f"{folder} holds no training images that a probe's could be compared with: check the path.")


def shown_stamps(folder: Path, side: Literal["seen", "unseen"]) -> dict[str, str]:
    """Stamps that a folder of composed scenes may show, on one side of its split; none of a folder that was not composed.

    `unseen` are those of the part test-unseen, `seen` those of all others.
    """
    return {stamp["sha256"]: stamp["name"] for stamp in _recorded(folder) if stamp["split"] == side}


def _refuse_stamps(stamps: Stamps, folder: Path) -> None:
    """A stamp was trained on if it, or another of its motif, is on the training side of the recipe."""
    recorded = _recorded(folder)
    trained = {stamp["group"]: stamp["name"] for stamp in reversed(recorded) if stamp["split"] == "seen"}
    group = {stamp["sha256"]: stamp["group"] for stamp in recorded}
    for digest, name in stamps.items():
        other = trained.get(group.get(digest, -1))
        if other is not None:
            motif = "" if other == name else f" (by {other}, of the same motif)"
            raise UserError(
                f"The probe's test objects show the stamp {name}, which the training scenes in {folder} show, too{motif}: give "
                f"the probe the split of those scenes, {_split(folder)}, so that it holds out the same stamps."
            )


def _split(folder: Path) -> Any:
    config = _recipe(folder).get("config", {})
    return config.get("seed") if config.get("split") is None else config["split"]


def _recorded(folder: Path) -> list[dict[str, Any]]:
    stamps = _recipe(folder).get("stamps", [])
    wanted = {"name", "split", "sha256", "group"}
    if not isinstance(stamps, list) or not all(isinstance(each, dict) and wanted <= each.keys() for each in stamps):
        raise UserError(f"{folder / RECIPE} does not list stamps as keepsight writes them: compose the scenes again.")
    return stamps


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / RECIPE} cannot be read, so stamps cannot be compared: compose the scenes again."
        ) from error
    return content if isinstance(content, dict) else {}


def _nearest(probe: ImageList, training: ImageList) -> tuple[int, int, float] | None:
    """The first near duplicate: index in the probe, row in the training images, correlation; None if there is none."""
    small = [_thumbnails(images) for images in (probe, training)]
    small.append(np.ascontiguousarray(small[1][:, :, ::-1]))
    every = np.concatenate(small)
    hashes = np.array([perceptual_hash(each) for each in every], dtype=np.uint64)
    side = np.repeat(np.arange(2), [len(probe), 2 * len(training)])
    flat = every.reshape(len(every), -1)
    pairs, correlations, complete = near_pairs(hashes, flat, side, np.arange(len(every)))
    if not complete and not len(pairs):
        raise UserError(
            "Too many of the images look alike to tell whether the probe shows training images: use other images."
        )
    if not len(pairs):
        return None
    first = int(np.lexsort((-correlations, pairs[:, 0]))[0])
    return int(pairs[first, 0]), int(pairs[first, 1] - len(probe)) % len(training), float(correlations[first])


def _thumbnails(images: ImageList) -> NDArray[np.uint8]:
    """[N, 32, 32]."""
    found: list[NDArray[np.uint8]] = []
    for _, small in read_all(images, np.arange(len(images)), lambda _, image: thumbnail(image)):
        if isinstance(small, BadImage):
            raise UserError(small.reason)
        found.append(small)
    return np.stack(found)
