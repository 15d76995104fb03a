import hashlib
import io
import json
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data import parquet
from keepsight.data.frame import dataset_from_arrays, dataset_from_frame
from keepsight.data.load import load_dataset
from keepsight.data.options import DataConfig
from keepsight.data.pixels import PixelConfig


def png(level: int, size: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), level).save(buffer, "PNG")
    return buffer.getvalue()


def level(data: object, index: int) -> int:
    return data.images.load(index).getpixel((0, 0))[0]  # type: ignore[attr-defined]


def hub_table(levels: list[int], labels: list[int | None], names: list[str]) -> pa.Table:
    """A table as `datasets` writes it."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": pa.array([{"bytes": png(v), "path": f"{v}.png"} for v in levels], struct),
            "label": pa.array(labels, pa.int64()),
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def test_a_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    names = ["zebra", "ant"]
    pq.write_table(
        hub_table([1, 2, 3], [0, 1, -1], names), tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=2
    )
    pq.write_table(hub_table([4], [0], names), tmp_path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(hub_table([5, 6], [1, 0], names), tmp_path / "data" / "test-00000-of-00001.parquet")
    data = load_dataset(tmp_path)
    assert data.classes == ("zebra", "ant")  # the order of their numbers
    assert data.labels.tolist() == [1, 0, 0, 1, -1, 0]
    assert data.parts == ("test", "test", "train", "train", "train", "train")
    assert [level(data, i) for i in (5, 0, 4, 2, 3, 1)] == [4, 5, 3, 1, 2, 6]
    assert data.images.name(4) == "data/train-00000-of-00002.parquet#3"
    assert data.images.content_hash(5) == hashlib.sha256(png(4)).digest()
    converted = tmp_path / "default" / "train"
    converted.mkdir(parents=True)
    pq.write_table(hub_table([1, 2], [0, 1], names), converted / "0000.parquet")
    assert load_dataset(tmp_path / "default").parts == ("train", "train")


@pytest.mark.parametrize(
    ("values", "classes", "indices"),
    [
        (["b", "a ", None, ""], ("a", "b"), [1, 0, -1, -1]),
        ([10, 9, -1, None], ("9", "10"), [1, 0, -1, -1]),
        ([True, False, None, True], ("False", "True"), [1, 0, -1, 1]),
        (pd.Categorical(["x", "y", None, "x"]), ("x", "y"), [0, 1, -1, 0]),
    ],
)
def test_label_types(tmp_path: Path, values: object, classes: tuple[str, ...], indices: list[int]) -> None:
    table = pa.table({"bytes": [png(v) for v in range(4)], "Label": pa.array(values)})
    pq.write_table(table, tmp_path / "t.parquet")
    data = load_dataset(tmp_path / "t.parquet")
    assert data.classes == classes
    assert data.labels.tolist() == indices
    assert level(data, 3) == 3


def test_paths_splits_and_named_columns(tmp_path: Path) -> None:
    for v in (1, 2, 3):
        (tmp_path / f"{v}.png").write_bytes(png(v))
    table = pa.table({"where": ["1.png", "2.png", "3.png"], "kind": ["a", "b", "b"], "fold": ["train", "Test", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    options = DataConfig(image_column="where", label_column="KIND", split_column="fold")
    data = load_dataset(tmp_path / "t.parquet", options)
    assert data.parts == ("train", "test", "")
    assert [level(data, i) for i in range(3)] == [1, 2, 3]
    assert data.images.name(1) == "2.png"
    with pytest.raises(UserError, match=r"no image column.*'where', 'kind', 'fold'"):
        load_dataset(tmp_path / "t.parquet")
    frame = table.to_pandas()
    in_memory = dataset_from_frame(frame, options, root=tmp_path)
    assert (in_memory.parts, in_memory.labels.tolist()) == (data.parts, data.labels.tolist())


BAD_TABLES = [
    ({"image": [b"x"], "name": ["a"]}, "no label column"),
    ({"label": ["a"], "name": ["a"]}, "no image column"),
    ({"image": [1], "label": ["a"]}, "'image' .*int64.*image bytes"),
    ({"image": [b"x"], "label": [0.5]}, "Row 1 .*label 0.5, a floating-point"),
    ({"image": [b"x", b"x"], "label": [float("nan"), 1.0]}, "Row 1 .*label NaN"),
    ({"image": [b"x"], "label": [["a"]]}, "Row 1 .*type list"),
    ({"image": [b"x"], "label": [-2]}, "Row 1 .*label -2"),
    ({"image": [b"x"], "label": [b"a"]}, "Row 1 .*type bytes"),
    ({"image": [b"x", b"y"], "label": ["a", "b"], "split": ["train", "holdout"]}, "Row 2 .*'holdout'"),
    ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.string())}, "no rows"),
    ({"path": ["../secret.png"], "label": ["a"]}, "Row 1 .*'..'"),
    ({"path": ["gone.png"], "label": ["a"]}, "Row 1 .*gone.png.*not there"),
    ({"path": pa.array([None], pa.string()), "label": ["a"]}, "Row 1 .*no path"),
    ({"image": [b"x", b"y"], "label": ["Cat", "cat"]}, "upper and lower case"),
    ({"image": [b"x", b"y"], "label": ["a", "a"]}, "one class only"),
    ({"image": [b"x"], "label": pa.array([None], pa.string())}, "no labels"),
]


@pytest.mark.parametrize(("columns", "words"), BAD_TABLES)
def test_bad_tables(tmp_path: Path, columns: dict[str, object], words: str) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError, match=words) as error:
        load_dataset(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(hub_table([1, 2], [0, 1], ["a", "b"]), path)
    whole = path.read_bytes()
    for damage in (b"", b"text", whole[:-10], whole[: len(whole) // 2], whole[:-8] + b"\xff\xff\xff\x7fPAR1"):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"t\.parquet is no Parquet file"):
            load_dataset(path)
    table = pa.table({"image": [png(1), b"no image", None], "label": ["a", "b", "a"]})
    pq.write_table(table, path)
    data = load_dataset(path)
    for index, words in ((1, "t.parquet#2 .*none of PNG"), (2, "t.parquet#3 .*empty")):
        with pytest.raises(UserError, match=words):
            data.images.load(index)
    path.unlink()
    with pytest.raises(UserError, match=r"t\.parquet"):
        load_dataset(tmp_path / "t.parquet")


def test_class_numbers_beyond_the_names(tmp_path: Path) -> None:
    pq.write_table(hub_table([1, 2], [0, 2], ["a", "b"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"Row 2 .*label 2, but there are 2 named classes"):
        load_dataset(tmp_path / "t.parquet")


def test_files_of_a_folder_must_agree(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "label": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"image": [b"x"], "class": ["a"]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"2\.parquet has no column 'label'"):
        load_dataset(tmp_path)
    pq.write_table(pa.table({"image": ["x"], "label": ["a"]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match="bytes in some files and paths in others"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "a/../../secret.png"])
def test_stored_paths_never_leave_the_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "data" / "in.png").write_bytes(png(7))
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": path}, {"bytes": None, "path": "in.png"}], struct)
    pq.write_table(pa.table({"image": cells, "label": ["a", "b"]}), tmp_path / "data" / "t.parquet")
    data = load_dataset(tmp_path / "data" / "t.parquet")
    with pytest.raises(UserError, match="leads out of"):
        data.images.load(0)
    assert level(data, 1) == 7


@pytest.mark.parametrize("path", ["gone.png", "a\0b.png"])
def test_stored_paths_to_nothing(tmp_path: Path, path: str) -> None:
    frame = pd.DataFrame({"image": [{"bytes": None, "path": path}] * 2, "label": ["a", "b"]})
    with pytest.raises(UserError, match=r"row 1 .*cannot be opened"):
        load_dataset(frame, DataConfig(data_root=str(tmp_path))).images.load(0)


def noisy_file(path: Path, rows: int, size: int) -> int:
    """A file of incompressible images, 20 a row group; returns the bytes of all images."""
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=0)
        cells.append(buffer.getvalue())
    table = pa.table({"image": cells, "label": [n % 2 for n in range(rows)]})
    pq.write_table(table, path, row_group_size=20, compression="none")
    return sum(len(cell) for cell in cells)


def test_memory_of_2000_images_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = noisy_file(tmp_path / "t.parquet", 2000, 56)
    group = stored // 100
    monkeypatch.setattr(parquet, "KEPT_BYTES", 2 * group)
    before, highest = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    data = load_dataset(tmp_path / "t.parquet")
    for i in range(0, 2000, 7):
        assert len(data.images.content_hash(i)) == 32
        highest = max(highest, pa.total_allocated_bytes() - before)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stored > 18e6
    assert 0 < highest < 6 * group
    assert peak < stored / 8


def test_threads_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1)
    noisy_file(tmp_path / "t.parquet", 60, 4)
    data = load_dataset(tmp_path / "t.parquet")
    expected = [data.images.content_hash(i) for i in range(60)]
    assert len(set(expected)) == 60
    found: dict[int, bytes] = {}

    def read(start: int) -> None:
        found.update({i: data.images.content_hash(i) for i in range(start, 60, 4)})

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(60)] == expected


# Data frames and arrays


def test_frames_of_every_kind_of_image(tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(png(7))
    (tmp_path / "8.png").write_bytes(png(8))
    kinds = {
        "paths": ["7.png", str(tmp_path / "8.png")],
        "path objects": [tmp_path / "7.png", tmp_path / "8.png"],
        "bytes": [png(7), png(8)],
        "hub": [{"bytes": png(7), "path": None}, {"bytes": None, "path": "8.png"}],
        "pillow": [Image.new("L", (2, 2), 7), Image.new("L", (3, 3), 8)],
        "arrays": [np.full((2, 2), 7, np.uint8), np.full((4, 2), 8, np.uint8)],
    }
    for kind, cells in kinds.items():
        frame = pd.DataFrame({"image": pd.Series(cells, dtype=object), "label": ["a", "b"], "split": ["train", None]})
        data = load_dataset(frame, DataConfig(data_root=str(tmp_path)))
        assert [level(data, i) for i in range(2)] == [7, 8], kind
        assert (data.parts, data.classes) == (("train", ""), ("a", "b")), kind


def test_frame_labels() -> None:
    cells = [png(1), png(2), png(3)]
    for labels, expected in [
        (pd.Series(["x", None, "y"]), [0, -1, 1]),
        (pd.Series(["x", np.nan, "y"], dtype=object), [0, -1, 1]),
        (pd.Series([4, None, 3], dtype="Int64"), [1, -1, 0]),
        (pd.Series([True, False, True]), [1, 0, 1]),
        (pd.Series(["x", "y", None], dtype="category"), [0, 1, -1]),
    ]:
        assert dataset_from_frame(pd.DataFrame({"bytes": cells, "label": labels})).labels.tolist() == expected
    for bad, words in [
        (pd.Series([1, None, 2]), "Row 1 .*1.0, a floating-point"),
        (pd.Series([None, 1, 2]), "Row 1 .*label NaN"),
        (pd.Series([[1], [2], [1]]), "Row 1 .*type list"),
        (pd.Series(pd.to_datetime(["2020-01-01"] * 3)), "Row 1 .*type Timestamp"),
    ]:
        with pytest.raises(UserError, match=words):
            dataset_from_frame(pd.DataFrame({"bytes": cells, "label": bad}))


def test_bad_frames() -> None:
    for frame, words in [
        (pd.DataFrame({"label": [1]}), "no image column"),
        (pd.DataFrame({"image": [b"x"]}), "no label column"),
        (pd.DataFrame({"image": [], "label": []}), "no rows"),
        (pd.DataFrame({"image": [b"x", "y.png"], "label": ["a", "b"]}), "holds bytes, str"),
        (pd.DataFrame([[b"x", "a", "b"]], columns=["image", "label", "label"]), "2 columns called 'label'"),
        (pd.DataFrame({"image": ["../x.png"], "label": ["a"]}), "'..'"),
    ]:
        with pytest.raises(UserError, match=words):
            load_dataset(frame)


def test_arrays_with_labels() -> None:
    values = np.arange(4 * 2 * 2, dtype=np.uint8).reshape(4, 2, 2)
    data = load_dataset((values, np.array([[1], [0], [1], [-1]])))
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1, -1], ("0", "1"))
    named = dataset_from_arrays(values, [0, 1, 1, None], classes=("no", "yes"), parts=("train", "train", "test", "val"))
    assert named.classes == ("no", "yes")
    assert named.parts == ("train", "train", "test", "")
    deep = load_dataset(
        (values[:, :, :, None] * np.ones(5), ["a", "b", "a", "b"]),
        DataConfig(pixels=PixelConfig(channels=(4,), value_range=(0, 15))),
    )
    assert level(deep, 3) == round(12 / 15 * 255)
    for images, labels, words in [
        (values, [1, 2], "4 images but 2 labels"),
        (values, np.zeros((4, 3)), r"shape \[4, 3\]"),
        (values, np.array([0.0, 1.0, np.nan, 1.0]), "floating-point"),
        (values.astype(float), [0, 1, 0, 1], "float64"),
        ("no images", [1], "type str"),
    ]:
        with pytest.raises(UserError, match=words):
            load_dataset((images, labels))
    with pytest.raises(UserError, match="parts"):
        dataset_from_arrays(values, [0, 1, 1, 0], parts=("train",))
    with pytest.raises(UserError, match="type int cannot be read"):
        load_dataset(5)
