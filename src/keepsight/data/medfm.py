"""MedFM (MedFMC) as it is published: endoscopy, colon pathology and chest X-rays. Fetches nothing.

Two layouts are read. That of the challenge's archives (medfm2023.grand-challenge.org/datasets), TASK being endo, colon or chest:

    MedFMC_train/TASK/TASK_train.csv    img_id (a file name), study_id and others, and a column of 0 or 1 a class; colon: tumor
    MedFMC_train/TASK/images/           (image/ in some descriptions)
    MedFMC_val/TASK/TASK_val.csv, MedFMC_val/TASK/images/      published without labels at first

and that of github.com/openmedlab/MedFM, whose lists (data_backup/MedFMC/TASK/*.txt) lie beside images/:

    trainval.txt, test_WithLabel.txt, train_20.txt, val_20.txt, TASK_N-shot_train_expM.txt, TASK_N-shot_val_expM.txt
        endo:  NAME.png 1 0 0 1                      ulcer, erosion, polyp, tumor
        colon: NAME.png 1                            0 negative, 1 positive; names hold blanks
        chest: NAME.png 1,0,0,...                    19 findings
    test_WithoutLabel.txt                            names alone

Endo and chest are multi-label; their published figure is mean average precision. The order of the classes is that of
medfmc/datasets/medical_datasets.py there. The challenge's tables end in rows without an image, which are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.published import PublishedRow, identifier, marked, published_dataset, published_table


@dataclass(frozen=True, slots=True)
class Task:
    """One of MedFM's data sets.

    Attributes:
        name: endo, colon or chest.
        classes: K names.
        columns: The columns of its tables that hold labels.
        several: Whether an image may have several classes.
    """

    name: str
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    several: bool


_ENDO = ("ulcer", "erosion", "polyp", "tumor")
_CHEST = (
    *("pleural_effusion", "nodule", "pneumonia", "cardiomegaly", "hilar_enlargement", "fracture_old", "fibrosis"),
    *("aortic_calcification", "tortuous_aorta", "thickened_pleura", "TB", "pneumothorax", "emphysema", "atelectasis"),
    *("calcification", "pulmonary_edema", "increased_lung_markings", "elevated_diaphragm", "consolidation"),
)

TASKS: Mapping[str, Task] = {
    "endo": Task("endo", _ENDO, _ENDO, several=True),
    "colon": Task("colon", ("negative", "positive"), ("tumor",), several=False),
    "chest": Task("chest", _CHEST, _CHEST, several=True),
}

_LINE = re.compile(r"(?P<image>.+\.(?:png|jpg|jpeg)) (?P<labels>[01](?:[ ,][01])*)", re.IGNORECASE)


def is_medfm_folder(folder: Path) -> bool:
    """Whether the tables or lists of a task are there, or in its folder of one of the two layouts."""
    return any(_home(folder, task) is not None for task in TASKS.values())


def read_medfm(folder: Path, options: DataConfig = DEFAULTS, task: str | None = None) -> Dataset:
    """One task's images: of trainval.txt and test_WithLabel.txt with their split, or of the tables.

    Labelled rows of TASK_val.csv are the validation part; images without labels are unlabelled ones.

    Args:
        folder: A task's own folder, or one that holds several in either layout.
        options: Pixel values.
        task: endo, colon or chest; None takes the only one that is there.

    Raises:
        UserError: There is none or several, an image is missing, or a row is not as the module says.
    """
    tasks = list(TASKS.values()) if task is None else [TASKS[task]]
    homes = {one.name: home for one in tasks if (home := _home(folder, one)) is not None}
    if not homes:
        wanted = " or ".join(f"{one.name}_train.csv" for one in tasks)
        raise UserError(
            f"{folder} is not MedFM: neither {wanted} nor trainval.txt is there, in MedFMC_train/{task or 'TASK'}/ or in "
            f"{task or 'TASK'}/."
        )
    if len(homes) > 1:
        raise UserError(
            f"{folder} holds MedFM's {', '.join(homes)}: say which, for example medfm-{next(iter(homes))}:{folder}."
        )
    chosen, home = TASKS[next(iter(homes))], next(iter(homes.values()))
    if (home / "trainval.txt").is_file():
        return _dataset(chosen, home, _rows_of_lists(home, "trainval.txt", chosen), options)
    rows = _rows_of_table(folder, home, f"{chosen.name}_train.csv", chosen, "train")
    for other in (home, folder / "MedFMC_val" / chosen.name):
        if (other / f"{chosen.name}_val.csv").is_file():
            rows += _rows_of_table(folder, other, f"{chosen.name}_val.csv", chosen, "val")
    if not any(row.part == "val" and row.has is not None for row in rows):
        rows = [PublishedRow(row.where, row.image, row.has) for row in rows]  # no split of its own
    return _dataset(chosen, folder, rows, options)


def is_medfm_list(path: Path) -> bool:
    """Whether a file's first line is one of MedFM's."""
    return _task_of_list(path) is not None


def read_medfm_list(path: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """The published split that a training list, such as endo_5-shot_train_exp1.txt, stands for.

    The images of the list are learnt from, those of its partner (the same name with val) are the validation part, those of
    test_WithLabel.txt beside it the test part; other images of trainval.txt and test_WithoutLabel.txt are unlabelled.

    Raises:
        UserError: It is not a list of MedFM, and as `read_medfm`.
    """
    task = _task_of_list(path)
    if task is None:
        raise UserError(
            f"{path} is not a list of MedFM, the only .txt files that are read: expected lines such as 'NAME.png 1 0 0 1' (endo), "
            f"'NAME.png 1' (colon) or 'NAME.png 1,0,...' (chest)."
        )
    return _dataset(task, path.parent, _rows_of_lists(path.parent, path.name, task), options)


def _dataset(task: Task, root: Path, rows: list[PublishedRow], options: DataConfig) -> Dataset:
    return published_dataset(f"medfm-{task.name}", root, rows, task.classes, options.pixels, several=task.several)


def _home(folder: Path, task: Task) -> Path | None:
    """The folder that holds the task's tables or lists."""
    for place in (folder, folder / "MedFMC_train" / task.name, folder / task.name):
        if (place / f"{task.name}_train.csv").is_file():
            return place
        # One 0 or 1 after a name is a common format: the colon's lists are known by the folder beside them, too.
        if _task_of_list(place / "trainval.txt") == task and (task.several or (place / "images").is_dir()):
            return place
    return None


def _task_of_list(path: Path) -> Task | None:
    """The task of a list by the number of labels in its first line; None for another file."""
    try:
        with path.open(encoding="utf-8") as file:
            first = next((line.strip() for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return None
    match = _LINE.fullmatch(first)
    labels = len(re.split("[ ,]", match["labels"])) if match else 0
    return next((task for task in TASKS.values() if len(task.columns) == labels), None)


def _images_in(folder: Path) -> str:
    for name in ("images", "image"):
        if (folder / name).is_dir():
            return name
    raise UserError(f"{folder} has the labels of MedFM, but not its images: the folder images/ is not there.")


def _rows_of_table(root: Path, home: Path, name: str, task: Task, part: Part) -> list[PublishedRow]:
    place = (home / _images_in(home)).relative_to(root).as_posix()
    path, rows = home / name, []
    labelled = part == "train" or _has_labels(path, task)
    for where, (image, *cells) in published_table(path, ("img_id", *(task.columns if labelled else ()))):
        if image:
            has = marked(cells, task.columns, where) if labelled else None
            rows.append(PublishedRow(where, f"{place}/{identifier(image, where)}", _classes(task, has), part))
    return rows


def _has_labels(path: Path, task: Task) -> bool:
    """Whether a table has any of the label columns: the validation tables were published without them at first."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = {cell.strip().lower() for cell in file.readline().split(",")}
    return any(column.lower() in header for column in task.columns)


def _classes(task: Task, has: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Of the colon's one column, its value is the class."""
    return has if has is None or task.several else (len(has),)


def _rows_of_lists(home: Path, training: str, task: Task) -> list[PublishedRow]:
    place = _images_in(home)
    rows = _rows_of_list(home / training, place, task, "train")
    partner = re.sub(r"(?<![a-z])train(?![a-z])", "val", training)
    if partner != training and (home / partner).is_file():
        rows += _rows_of_list(home / partner, place, task, "val")
    if (home / "test_WithLabel.txt").is_file():
        rows += _rows_of_list(home / "test_WithLabel.txt", place, task, "test")
    listed = {row.image for row in rows}
    others = []
    if (home / "trainval.txt").is_file():
        others += _rows_of_list(home / "trainval.txt", place, task, "")
    if (home / "test_WithoutLabel.txt").is_file():
        for number, line in enumerate(_lines(home / "test_WithoutLabel.txt"), start=1):
            if line:
                where = f"Line {number} of {home / 'test_WithoutLabel.txt'}"
                others.append(PublishedRow(where, f"{place}/{identifier(line, where)}", None))
    rows += [PublishedRow(row.where, row.image, None) for row in others if row.image not in listed]
    return rows


def _rows_of_list(path: Path, place: str, task: Task, part: Part) -> list[PublishedRow]:
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            continue
        where, match = f"Line {number} of {path}", _LINE.fullmatch(line)
        cells = re.split("[ ,]", match["labels"]) if match else []
        if match is None or len(cells) != len(task.columns):
            raise UserError(
                f"{where} is {line[:80]!r}: the name of an image and {len(task.columns)} labels, 0 or 1, were expected."
            )
        has = _classes(task, marked(cells, task.columns, where))
        rows.append(PublishedRow(where, f"{place}/{identifier(match['image'], where)}", has, part))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start} cannot be read): fetch it again.") from error
    except OSError as error:
        raise UserError(f"The list {path} cannot be read ({error.strerror}).") from error
