"""The one entry to data: a name, a folder or a table in, a checked `Dataset` out. Knows nothing of splitting."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np

from keepsight.core import UNLABELLED, Dataset, UserError
from keepsight.core.progress import log
from keepsight.data.demo import EMBEDDED, read_embedded
from keepsight.data.folder import read_folder
from keepsight.data.labels import check_class_names
from keepsight.data.table import read_csv


def load_dataset(source: str | Path) -> Dataset:
    """An embedded name (see `EMBEDDED`), a folder (see `folder`), or a .csv or .tsv file (see `table`).

    A text that is both an embedded name and a folder here means the embedded data; './name' or a `Path` means the
    folder.

    Raises:
        UserError: if it is none of them, or cannot be learnt from (see `check_dataset`).
    """
    path = Path(source).expanduser()
    if str(source) in EMBEDDED and (isinstance(source, str) or not path.exists()):
        if path.exists():
            log.warning("%s is taken as the embedded data set: write ./%s for the folder of that name.", source, source)
        dataset = read_embedded(str(source))
    elif path.is_dir():
        dataset = read_folder(path)
    elif path.suffix.lower() in (".csv", ".tsv") and path.is_file():
        dataset = read_csv(path)
    elif path.exists():
        raise UserError(f"{path} is a file of an unknown type: expected a folder of images, a .csv or a .tsv file.")
    else:
        raise UserError(_nothing_there(str(source), path))
    check_dataset(dataset, str(source))
    return dataset


def check_dataset(dataset: Dataset, source: str) -> None:
    """Raises UserError unless there are images, named classes, and training labels of at least two classes."""
    if len(dataset.images) == 0:
        raise UserError(f"{source} holds no images: expected labelled images of at least two classes.")
    check_class_names(dataset.classes, source)
    in_training = np.array([part in ("", "train") for part in dataset.parts])
    labels = dataset.labels[in_training & (dataset.labels != UNLABELLED)]
    if len(labels) == 0:
        where = " outside of its val and test parts" if (dataset.labels != UNLABELLED).any() else ""
        raise UserError(
            f"{source} has {len(dataset.images)} images but no labels{where}: put some images into one folder per "
            f"class, or fill the label column."
        )
    if len(present := np.unique(labels)) < 2:
        raise UserError(
            f"{source} has training labels of one class only ({dataset.classes[present[0]]!r}): a classifier needs at "
            f"least two."
        )


def _nothing_there(source: str, path: Path) -> str:
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close_names = difflib.get_close_matches(source, EMBEDDED, n=1)
    close_files = [str(path.parent / name) for name in difflib.get_close_matches(path.name, neighbours, n=1)]
    close = close_names or close_files
    advice = f"did you mean {close[0]!r}?" if close else "check the spelling."
    return f"There is no folder, CSV file or embedded data set {source!r} (embedded: {', '.join(EMBEDDED)}): {advice}"
