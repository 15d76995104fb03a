import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig

datasets = pytest.importorskip("datasets", reason="left out: the package datasets is not installed")


def rows(levels: list[int], labels: list[Any], names: list[str] | None = None) -> Any:
    """Images of one grey level each, with labels that are classes if names are given."""
    label = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    pictures = [Image.new("L", (3, 2), level) for level in levels]
    return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def levels(data: Dataset) -> list[int]:
    return [data.images.load(i).getpixel((0, 0))[0] for i in range(len(data.images))]


def test_splits_classes_and_a_saved_folder(tmp_path: Path) -> None:
    names = ["zebra", "ant"]
    whole = datasets.DatasetDict(
        {
            "train": rows([1, 2, 3], [0, 1, -1], names),
            "validation": rows([4], [1], names),
            "test": rows([5, 6], [1, -1], names),
            "unsupervised": rows([7], [0], names),
            "extra": rows([8], [0], names),
        }
    )
    whole.save_to_disk(tmp_path / "saved")
    for source in (whole, tmp_path / "saved", str(tmp_path / "saved")):
        data = load_dataset(source)
        assert data.classes == ("zebra", "ant")
        assert data.labels.tolist() == [0, 1, -1, 1, 1, -1, -1]
        assert data.parts == (
            "train",
            "train",
            "train",
            "val",
            "test",
            "",
            "",
        )  # a test image without a label is unlabelled
        assert levels(data) == [1, 2, 3, 4, 5, 6, 7]
        assert data.images.name(3) == "validation#1"
        assert len({data.images.content_hash(i) for i in range(7)}) == 7
    saved_alone = tmp_path / "alone"
    whole["train"].save_to_disk(saved_alone)
    assert load_dataset(saved_alone).parts == ("", "", "")


def test_one_data_set_with_other_columns() -> None:
    table = rows([1, 2, 3], ["b", "a", None]).rename_columns({"image": "scan", "label": "kind"})
    table = table.add_column("fold", ["train", "test", None])
    options = DataConfig(image_column="scan", label_column="kind", split_column="fold")
    data = load_dataset(table, options, check=False)
    assert (data.classes, data.labels.tolist(), data.parts) == (("a", "b"), [1, 0, -1], ("train", "test", ""))
    shuffled = table.select([2, 0]).with_format("numpy")
    assert levels(load_dataset(shuffled, options, check=False)) == [3, 1]


def test_image_files_of_a_data_set(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 9).save(tmp_path / "9.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cells = {"image": [str(tmp_path / "9.png"), None, str(tmp_path / "gone.png"), "../9.png"], "label": [0, 1, 1, 1]}
    data = load_dataset(datasets.Dataset.from_dict(cells, features=features))
    assert data.images.load(0).getpixel((1, 1)) == (9, 9, 9)
    for index, words in ((1, "cell is empty"), (2, "gone.png says"), (3, "not absolute")):
        with pytest.raises(UserError, match=words):
            data.images.load(index)


def test_damaged_bytes_are_named() -> None:
    features = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.Value("int64"),
        }
    )
    cells = {"image": [{"bytes": b"no image", "path": None}] * 2, "label": [0, 1]}
    table = datasets.Dataset.from_dict(cells, features=features).cast_column("image", datasets.Image())
    with pytest.raises(UserError, match=r"row#1 .*none of PNG"):
        load_dataset(table).images.load(0)


def test_bad_data_sets(tmp_path: Path) -> None:
    good = rows([1, 2], [0, 1], ["a", "b"])
    for source, words in [
        (good.remove_columns("label"), "no label column"),
        (good.remove_columns("image"), "no image column"),
        (datasets.Dataset.from_dict({"image": ["a.png"], "label": ["a"]}), "of Value, not Image"),
        (datasets.DatasetDict({"extra": good}), "at least one called train"),
        (
            datasets.DatasetDict({"train": good, "test": rows([1], [0], ["x", "y"])}),
            "other classes in the split 'test'",
        ),
    ]:
        with pytest.raises(UserError, match=words):
            load_dataset(source)
    good.save_to_disk(tmp_path / "saved")
    for damaged in (tmp_path / "saved").glob("*.arrow"):
        damaged.write_bytes(damaged.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged folder"):
        load_dataset(tmp_path / "saved")


def test_the_hub_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(name: str, config: str | None, revision: str | None) -> Any:
        asked.append((name, config, revision))
        return datasets.DatasetDict({"train": rows([1, 2], [0, 1], ["a", "b"])})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    data = load_dataset("hf:org/leaves", DataConfig(hub_config="small", hub_revision="v1"))
    assert (data.name, data.parts) == ("leaves", ("train", "train"))
    assert asked == [("org/leaves", "small", "v1")]


def test_the_hub_offline_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"hf:org/nothing-here cannot be read .*network") as error:
        load_dataset("hf:org/nothing-here")
    assert "\n" not in str(error.value)
    for name in ("hf:", "hf:./here"):
        with pytest.raises(UserError, match="names no data set"):
            load_dataset(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'keepsight\[datasets\]'"):
        load_dataset("hf:org/name")
