"""APTOS 2019 and ISIC 2018 as they are published, and which reader a published medical data set needs. Fetches nothing.

APTOS 2019 Blindness Detection (kaggle.com/c/aptos2019-blindness-detection/data), grades of diabetic retinopathy:

    train.csv          id_code,diagnosis (0 to 4), 3,662 rows      train_images/ID_CODE.png
    test.csv           id_code, 1,928 rows; no labels published    test_images/ID_CODE.png     (optional)

ISIC 2018 Challenge, task 3 (challenge.isic-archive.com/data/#2018), diagnoses of skin lesions, PART is Training, Validation or Test
(10,015, 193 and 1,512 images):

    ISIC2018_Task3_PART_GroundTruth/ISIC2018_Task3_PART_GroundTruth.csv    image,MEL,NV,BCC,AKIEC,BKL,DF,VASC, one of them 1.0
    ISIC2018_Task3_PART_Input/ISIC_0024306.jpg
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from keepsight.core import Dataset, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.medfm import TASKS, is_medfm_folder, read_medfm
from keepsight.data.options import DEFAULTS, DataConfig
from keepsight.data.published import PublishedRow, identifier, image_files, marked, published_dataset, published_table

APTOS_GRADES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")
"""The published names of the grades 0 to 4 of diabetic retinopathy (DR)."""

ISIC_DIAGNOSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
"""Melanoma, melanocytic nevus, basal cell carcinoma, actinic keratosis, benign keratosis, dermatofibroma, vascular lesion."""

_ISIC = "ISIC2018_Task3"
_ISIC_PARTS: Mapping[str, Part] = {"Training": "train", "Validation": "val", "Test": "test"}


def is_aptos_folder(folder: Path) -> bool:
    """Whether it has APTOS 2019's train.csv, by its columns."""
    try:
        with (folder / "train.csv").open(encoding="utf-8-sig") as file:
            header = [cell.strip().lower() for cell in file.readline().split(",")]
    except (OSError, UnicodeDecodeError):
        return False
    return {"id_code", "diagnosis"} <= set(header)


def read_aptos(folder: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """The graded images, and those of test.csv without labels where they are there; no split of its own.

    Raises:
        UserError: A table or an image is missing, or a diagnosis is not one of 0 to 4.
    """
    if not (folder / "train.csv").is_file():
        raise UserError(f"{folder} is not APTOS 2019: its train.csv (columns id_code,diagnosis) is not there.")
    rows = []
    for where, (name, grade) in published_table(folder / "train.csv", ("id_code", "diagnosis")):
        if grade not in ("0", "1", "2", "3", "4"):
            raise UserError(f"{where} has the diagnosis {grade!r}: a grade from 0 to 4 was expected.")
        rows.append(PublishedRow(where, f"train_images/{identifier(name, where)}.png", (int(grade),)))
    if (folder / "test.csv").is_file() and (folder / "test_images").is_dir():
        rows += [
            PublishedRow(where, f"test_images/{identifier(name, where)}.png", None)
            for where, (name,) in published_table(folder / "test.csv", ("id_code",))
        ]
    elif (folder / "test.csv").is_file():
        log.info("%s has no test_images/: the unlabelled images of test.csv are left out", folder)
    return published_dataset("aptos-2019", folder, rows, APTOS_GRADES, options.pixels, several=False)


def is_isic_folder(folder: Path) -> bool:
    """Whether any published file or folder of ISIC 2018's task 3 is there."""
    return next(folder.glob(f"{_ISIC}_*"), None) is not None


def read_isic(folder: Path, options: DataConfig = DEFAULTS) -> Dataset:
    """The published training, validation and test parts that are there; images without ground truth are unlabelled ones.

    With the training part alone there is no split of its own.

    Raises:
        UserError: The training part's table is missing, an image is, or a row does not mark one diagnosis.
    """
    tables = {part: _ground_truth(folder, part) for part in _ISIC_PARTS}
    if tables["Training"] is None:
        raise UserError(
            f"{folder} is not ISIC 2018, task 3: {_ISIC}_Training_GroundTruth/{_ISIC}_Training_GroundTruth.csv is not there."
        )
    alone = tables["Validation"] is None and tables["Test"] is None
    rows = []
    for part, table in tables.items():
        place = f"{_ISIC}_{part}_Input"
        if table is not None and not (folder / place).is_dir():
            raise UserError(f"{folder} has the ground truth of ISIC 2018's {part} part, but not its images, {place}/.")
        listed = set()
        for where, (name, *cells) in published_table(table, ("image", *ISIC_DIAGNOSES)) if table is not None else ():
            has = marked(cells, ISIC_DIAGNOSES, where) or ()
            if len(has) != 1:
                raise UserError(
                    f"{where} marks {len(has)} of the {len(ISIC_DIAGNOSES)} diagnoses: exactly one was expected."
                )
            listed.add(file := f"{identifier(name, where)}.jpg")
            rows.append(PublishedRow(where, f"{place}/{file}", has, "" if alone else _ISIC_PARTS[part]))
        others = [name for name in image_files(folder / place) if name not in listed]
        rows += [PublishedRow(f"The folder {place}", f"{place}/{name}", None) for name in others]
    return published_dataset("isic-2018", folder, rows, ISIC_DIAGNOSES, options.pixels, several=False)


def _ground_truth(folder: Path, part: str) -> Path | None:
    """In its own folder, as the archive is unpacked, or beside the images' folder."""
    name = f"{_ISIC}_{part}_GroundTruth"
    return next((p for p in (folder / name / f"{name}.csv", folder / f"{name}.csv") if p.is_file()), None)


Reader = Callable[[Path, DataConfig], Dataset]

PUBLISHED: Mapping[str, Reader] = {
    "aptos-2019": read_aptos,
    "isic-2018": read_isic,
    **{f"medfm-{task}": partial(read_medfm, task=task) for task in TASKS},
}
"""What may stand before a colon and a folder."""


def published_reader(folder: Path) -> Reader | None:
    """The reader that the files in a folder ask for."""
    known: list[tuple[Callable[[Path], bool], Reader]] = [
        (is_aptos_folder, read_aptos),
        (is_isic_folder, read_isic),
        (is_medfm_folder, read_medfm),
    ]
    return next((reader for recognises, reader in known if recognises(folder)), None)
