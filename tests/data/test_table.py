from pathlib import Path

import pytest
from PIL import Image

from keepsight.core import Dataset, UserError
from keepsight.data.table import read_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png", "sub/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / name)
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(data: Dataset) -> list[tuple[str, str | None, str]]:
    return [
        (data.images.name(i), data.classes[label] if label >= 0 else None, data.parts[i])
        for i, label in enumerate(data.labels)
    ]


EXPECTED = [("b.png", "x10", ""), ("a.png", "x9", ""), ("sub/d.png", None, "")]


@pytest.mark.parametrize(
    "text",
    [
        "path,label\nb.png,x10\na.png,x9\nsub/d.png,\n",
        "path;label\nb.png;x10\na.png;x9\nsub/d.png;\n",
        "path\tlabel\nb.png\tx10\na.png\tx9\nsub/d.png\t",
        "\ufeffpath,label\r\nb.png,x10\r\na.png,x9\r\nsub/d.png,\r\n",
        "Class,extra,FILENAME\nx10,1,b.png\nx9,,a.png\n,3,sub/d.png\n",
        'Image , LABEL\n"b.png","x10"\n\n./a.png,x9\n./sub/../sub/d.png,""\n\n',
        "file,label,split\nb.png,x10,\na.png,x9,\nsub/d.png,,\n",
    ],
    ids=["comma", "semicolon", "tab", "bom and crlf", "other names", "quotes and blank rows", "empty split"],
)
def test_variants_of_one_table(folder: Path, text: str) -> None:
    data = read_csv(table(folder, text))
    assert rows(data) == EXPECTED
    assert data.classes == ("x9", "x10")
    assert data.name == "labels"
    assert data.images.load(2).size == (3, 2)


def test_absolute_paths_lead_anywhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    data = read_csv(table(elsewhere, f"path,label\n{folder}/a.png,x\n{folder}/b.png,y\n"))
    assert data.images.load(0).size == (3, 2)
    assert data.images.name(1) == f"{folder.as_posix()}/b.png"


def test_splits(folder: Path) -> None:
    text = "path,label,Split\na.png,x,train\nb.png,y,TEST\nc.png,x,valid\nsub/d.png,,train\n"
    assert rows(read_csv(table(folder, text))) == [
        ("a.png", "x", "train"),
        ("b.png", "y", "test"),
        ("c.png", "x", "val"),
        ("sub/d.png", None, "train"),
    ]
    assert read_csv(table(folder, text.replace("valid", "validation"))).parts[2] == "val"


def test_blanks_and_repeats_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = read_csv(table(folder, "path,label\na.png, x\nb.png,y\n./a.png,x \n"))
    assert rows(data) == [("a.png", "x", ""), ("b.png", "y", "")]
    assert "blanks around 2 labels" in caplog.text
    assert "1 rows that repeat" in caplog.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,label\n", "no rows"),
        ("name,label\na.png,x\n", "no path column"),
        ("path\na.png\n", "no label column"),
        ("a.png,x\nb.png,y\n", "no path column"),
        ("path,label,label\na.png,x,y\n", "2 columns called 'label'"),
        ("path,label\na.png,x\nb.png\n", "Row 3 .* 1 cells"),
        ("path,label\na.png,x,y\n", "Row 2 .* 3 cells"),
        ("path,label\n,x\n", "Row 2 .* no path"),
        ("path,label\n\na.png,x\n../b.png,y\n", "Row 4 .*'..'"),
        ("path,label\nsub/../../b.png,y\n", "Row 2 .*'..'"),
        ("path,label\na.png,x\nno1.png,y\nno2.png,y\n", r"Row 3 .*no1\.png.*2 of 3 files"),
        ("path,label\n/nowhere/a.png,x\n", "Row 2 .*/nowhere/a.png"),
        ("path,label\nsub,x\n", "Row 2 .*not there"),
        ("path,label,split\na.png,x,train\nb.png,y,holdout\n", "Row 3 .*'holdout'"),
        ("path,label,split\na.png,x,train\nb.png,,test\n", "Row 3 .* test split but has no label"),
        ("path,label,split\na.png,x,train\nb.png,,val\n", "Row 3 .* val split but has no label"),
        ("path,label\na.png,x\n./a.png,y\n", "row 2 and again in row 3 with different labels"),
        ("path,label\na.png,x\na.png,\n", "row 2 and again in row 3 with different labels"),
        ("path,label,split\na.png,x,train\na.png,x,test\n", "row 2 and again in row 3 with different splits"),
        ("path,label\na.png,Cat\nb.png,cat\n", "upper and lower case"),
        ("path,label\na.png,é\n".encode("latin-1"), "not UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16"), "not UTF-8"),
        (b"path,label\na.png," + b"x" * 200_000, "not a readable table"),
    ],
)
def test_bad_tables(folder: Path, text: str | bytes, words: str) -> None:
    path = table(folder, text)
    with pytest.raises(UserError, match=words) as error:
        read_csv(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_an_absent_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_csv(tmp_path / "no.csv")
