"""APTOS 2019, ISIC 2018 and MedFM, as small folders of exactly the published files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.medfm import TASKS

CHEST = TASKS["chest"].classes


def save(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 + number, np.uint8)).save(path)


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def seen(data: Dataset) -> list[tuple[str, str | None, str]]:
    """(name, label, part) of each image."""
    names = [data.images.name(i) for i in range(len(data.images))]
    labels = [data.classes[k] if k >= 0 else None for k in data.labels.tolist()]
    return list(zip(names, labels, data.parts, strict=True))


def targets(data: Dataset) -> list[list[int]]:
    assert data.targets is not None
    return data.targets.tolist()


def aptos(root: Path) -> Path:
    write(root / "train.csv", "id_code,diagnosis", "000c1434d8d7,2", "001639a390f0,4", "0024cdab0c1e,0")
    write(root / "test.csv", "id_code", "0005cfc8afb6")
    write(root / "sample_submission.csv", "id_code,diagnosis", "0005cfc8afb6,0")
    save(*(root / "train_images" / f"{name}.png" for name in ("000c1434d8d7", "001639a390f0", "0024cdab0c1e")))
    save(root / "test_images" / "0005cfc8afb6.png")
    return root


def isic(root: Path, *parts: str) -> Path:
    names = {"Training": ("ISIC_0024306", "ISIC_0024307"), "Validation": ("ISIC_0034321",), "Test": ("ISIC_0034524",)}
    rows = {"Training": ("0.0,1.0", "1.0,0.0"), "Validation": ("0.0,1.0",), "Test": ("1.0,0.0",)}
    for part in parts:
        table = f"ISIC2018_Task3_{part}_GroundTruth"
        lines = [f"{name},{row},0.0,0.0,0.0,0.0,0.0" for name, row in zip(names[part], rows[part], strict=True)]
        write(root / table / f"{table}.csv", "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC", *lines)
        save(*(root / f"ISIC2018_Task3_{part}_Input" / f"{name}.jpg" for name in names[part]))
        write(root / f"ISIC2018_Task3_{part}_Input" / "LICENSE.txt", "CC-BY-NC")
    return root


def endo_table(root: Path) -> Path:
    home = root / "MedFMC_train" / "endo"
    names = [f"13333_2021.12_0007_5729749{i}.png" for i in range(3)]
    lines = [f"{names[0]},7,1,0,0,1", f"{names[1]},7,0,0,0,0", f"{names[2]},8,0,1,1,0", ",,,,,"]
    write(home / "endo_train.csv", "img_id,study_id,ulcer,erosion,polyp,tumor", *lines)
    save(*(home / "images" / name for name in names))
    return root


def lists(home: Path) -> Path:
    """Chest in the layout of openmedlab/MedFM: two images to learn from, one to validate on, one of each test list, one more."""
    row = {"a": [0, 18], "b": [10], "c": [], "t": [3]}
    line = {n: f"{n}.1.2.png " + ",".join("1" if k in has else "0" for k in range(19)) for n, has in row.items()}
    write(home / "trainval.txt", line["a"], line["b"], line["c"])
    write(home / "chest_1-shot_train_exp1.txt", line["a"], line["b"])
    write(home / "chest_1-shot_val_exp1.txt", line["c"])
    write(home / "test_WithLabel.txt", line["t"])
    write(home / "test_WithoutLabel.txt", "u.1.2.png")
    save(*(home / "images" / f"{name}.1.2.png" for name in "abctu"))
    return home


def test_aptos_is_recognised_by_its_table(tmp_path: Path) -> None:
    data = load_dataset(str(aptos(tmp_path)))
    assert data.name == "aptos-2019"
    assert data.targets is None
    assert data.classes == ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")
    assert seen(data) == [
        ("train_images/000c1434d8d7.png", "Moderate", ""),
        ("train_images/001639a390f0.png", "Proliferative DR", ""),
        ("train_images/0024cdab0c1e.png", "No DR", ""),
        ("test_images/0005cfc8afb6.png", None, ""),
    ]
    assert data.images.load(1).getpixel((0, 0)) == (11, 11, 11)
    assert seen(load_dataset(f"aptos-2019:{tmp_path}")) == seen(data)


def test_isic_brings_the_parts_that_are_there(tmp_path: Path) -> None:
    data = load_dataset(isic(tmp_path, "Training", "Validation", "Test"))
    assert data.classes == ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    assert [entry[1:] for entry in seen(data)] == [("NV", "train"), ("MEL", "train"), ("NV", "val"), ("MEL", "test")]
    assert data.images.name(3) == "ISIC2018_Task3_Test_Input/ISIC_0034524.jpg"


def test_isic_without_ground_truth_of_a_part_has_unlabelled_images(tmp_path: Path) -> None:
    isic(tmp_path, "Training", "Test")
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth" / "ISIC2018_Task3_Test_GroundTruth.csv").unlink()
    assert [entry[1:] for entry in seen(load_dataset(tmp_path))] == [("NV", ""), ("MEL", ""), (None, "")]


def test_medfm_table_is_multi_label(tmp_path: Path) -> None:
    data = load_dataset(endo_table(tmp_path))
    assert data.name == "medfm-endo"
    assert data.classes == ("ulcer", "erosion", "polyp", "tumor")
    assert targets(data) == [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert data.labels.tolist() == [0, 0, 0]
    assert data.parts == ("", "", "")
    assert data.images.name(0) == "MedFMC_train/endo/images/13333_2021.12_0007_57297490.png"
    own = load_dataset(tmp_path / "MedFMC_train" / "endo")
    assert own.images.name(0) == "images/13333_2021.12_0007_57297490.png"
    assert targets(own) == targets(data)


def test_medfm_validation_table_with_and_without_labels(tmp_path: Path) -> None:
    home = endo_table(tmp_path) / "MedFMC_val" / "endo"
    save(home / "images" / "v.png")
    write(home / "endo_val.csv", "img_id,study_id", "v.png,9", ",")
    data = load_dataset(tmp_path)
    assert targets(data)[3] == [-1] * 4
    assert data.labels.tolist() == [0, 0, 0, -1]
    assert set(data.parts) == {""}
    write(home / "endo_val.csv", "img_id,study_id,ulcer,erosion,polyp,tumor", "v.png,9,0,0,1,0")
    data = load_dataset(tmp_path)
    assert targets(data)[3] == [0, 0, 1, 0]
    assert data.parts == ("train", "train", "train", "val")


def test_medfm_colon_has_one_class_an_image(tmp_path: Path) -> None:
    names = ["2019-06-11 01_00_50-lv1-1956-12720-11095-7901p0079.png", "b.png"]
    save(*(tmp_path / "colon" / "images" / name for name in names))
    write(tmp_path / "colon" / "trainval.txt", f"{names[0]} 1", f"{names[1]} 0")
    data = load_dataset(f"medfm-colon:{tmp_path}")
    assert data.targets is None
    assert data.classes == ("negative", "positive")
    assert data.labels.tolist() == [1, 0]
    (tmp_path / "colon" / "trainval.txt").unlink()
    write(tmp_path / "colon" / "colon_train.csv", "img_id,tumor", f"{names[0]},1", f"{names[1]},0")
    assert load_dataset(tmp_path).labels.tolist() == [1, 0]


def test_medfm_lists_bring_their_split(tmp_path: Path) -> None:
    data = load_dataset(lists(tmp_path))
    assert data.classes == CHEST
    assert len(CHEST) == 19
    assert dict(zip((e[0][7] for e in seen(data)), data.parts, strict=True)) == dict(
        zip("abctu", ("train",) * 3 + ("test", ""), strict=True)
    )
    assert [np.flatnonzero(np.array(row) == 1).tolist() for row in targets(data)] == [[0, 18], [10], [], [3], []]
    assert data.labels.tolist() == [0, 0, 0, 0, -1]


def test_a_few_shot_list_is_a_data_set(tmp_path: Path) -> None:
    data = load_dataset(str(lists(tmp_path) / "chest_1-shot_train_exp1.txt"))
    assert data.parts == ("train", "train", "val", "test", "")
    assert data.labels.tolist() == [0, 0, 0, 0, -1]
    (tmp_path / "chest_1-shot_val_exp1.txt").unlink()
    data = load_dataset(tmp_path / "chest_1-shot_train_exp1.txt")
    assert [e[0][7] for e in seen(data)] == list("abtcu")
    assert data.labels.tolist() == [0, 0, 0, -1, -1]


def test_the_same_image_in_two_lists_stays_in_the_first(tmp_path: Path) -> None:
    home = lists(tmp_path)
    first = (home / "trainval.txt").read_text().splitlines()[0]
    write(home / "test_WithLabel.txt", first, "t.1.2.png " + ",".join("0" * 19))
    data = load_dataset(home)
    assert data.parts == ("train", "train", "train", "test", "")


def refused(data: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_dataset(data)
    return str(caught.value)


def test_aptos_refuses(tmp_path: Path) -> None:
    aptos(tmp_path)
    (tmp_path / "train_images" / "001639a390f0.png").unlink()
    assert "Row 3 of" in refused(tmp_path)
    assert "001639a390f0.png, which is not there (1 of 4" in refused(tmp_path)
    write(tmp_path / "train.csv", "id_code,diagnosis", "000c1434d8d7,5")
    assert "diagnosis '5': a grade from 0 to 4" in refused(tmp_path)
    write(tmp_path / "train.csv", "id_code,diagnosis", "../000c1434d8d7,1")
    assert "without a folder" in refused(tmp_path)
    (tmp_path / "train.csv").unlink()
    assert "train.csv (columns id_code,diagnosis) is not there" in refused(f"aptos-2019:{tmp_path}")
    assert "is not a folder: give the one that aptos-2019" in refused(f"aptos-2019:{tmp_path}/nowhere")


def test_isic_refuses(tmp_path: Path) -> None:
    table = (
        isic(tmp_path, "Training") / "ISIC2018_Task3_Training_GroundTruth" / "ISIC2018_Task3_Training_GroundTruth.csv"
    )
    header = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"
    for cells, said in (
        ("1.0,1.0,0,0,0,0,0", "marks 2 of the 7 diagnoses"),
        ("0,0,0,0,0,0,0", "marks 0 of the 7 diagnoses"),
        ("0.5,0,0,0,0,0,0", "has '0.5' in the column MEL"),
    ):
        write(table, header, f"ISIC_0024306,{cells}")
        assert said in refused(tmp_path)
    write(table, "image,MEL,NV", "ISIC_0024306,1,0")
    assert "has no column 'BCC'" in refused(tmp_path)
    write(table, header, "ISIC_0024306,1,0,0,0,0,0,0", "ISIC_9999999,1,0,0,0,0,0,0")
    assert "Row 3 of" in refused(tmp_path)
    assert "ISIC_9999999.jpg, which is not there" in refused(tmp_path)
    (tmp_path / "ISIC2018_Task3_Training_Input").rename(tmp_path / "images")
    assert "but not its images, ISIC2018_Task3_Training_Input/" in refused(tmp_path)
    table.unlink()
    assert "is not ISIC 2018, task 3" in refused(f"isic-2018:{tmp_path}")


def test_medfm_refuses(tmp_path: Path) -> None:
    home = endo_table(tmp_path) / "MedFMC_train" / "endo"
    table = "img_id,ulcer,erosion,polyp,tumor"
    write(home / "endo_train.csv", table, "13333_2021.12_0007_57297490.png,1,0,,0")
    assert "has '' in the column polyp: 0 or 1" in refused(tmp_path)
    write(home / "endo_train.csv", table, "gone.png,1,0,0,0")
    assert "gone.png, which is not there" in refused(tmp_path)
    write(home / "endo_train.csv", "img_id,ulcer", "gone.png,1")
    assert "has no column 'erosion'" in refused(tmp_path)
    save(tmp_path / "chest" / "images" / "a.png")
    write(tmp_path / "chest" / "chest_train.csv", ",".join(["img_id", *CHEST]), "a.png," + ",".join("1" * 19))
    assert f"holds MedFM's endo, chest: say which, for example medfm-endo:{tmp_path}" in refused(tmp_path)
    assert len(load_dataset(f"medfm-chest:{tmp_path}").images) == 1
    assert "neither colon_train.csv nor trainval.txt is there" in refused(f"medfm-colon:{tmp_path}")


def test_a_damaged_list_is_named_with_its_line(tmp_path: Path) -> None:
    home = lists(tmp_path)
    lines = (home / "trainval.txt").read_text().splitlines()
    write(home / "trainval.txt", lines[0], "b.1.2.png 1,0,0")
    assert "Line 2 of" in refused(home)
    assert "19 labels, 0 or 1, were expected" in refused(home)
    write(home / "trainval.txt", lines[0], lines[0].replace(" 1", " 0"))
    assert "Line 2 of" in refused(home)
    assert "other labels than line 1 of" in refused(home)
