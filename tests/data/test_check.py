"""The data report: every fault planted in real and made images is found, and nothing is found where nothing is wrong."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from keepsight.core import UNLABELLED, Dataset, ImageList
from keepsight.data.arrays import ArrayImages, PillowImages
from keepsight.data.check import DataReport, check_data, find_unreadable
from keepsight.data.duplicates import equal_groups, near_pairs, perceptual_hash, thumbnail
from keepsight.data.files import FileImages
from keepsight.data.load import load_dataset
from keepsight.report.data_table import report_table

STAMPS = Path("/usr/share/tuxpaint/stamps")
needs_stamps = pytest.mark.skipif(not STAMPS.is_dir(), reason="Debian's tuxpaint-stamps-default is not installed")


def noise(count: int, side: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def dataset(images: ImageList, labels: list[int] | None = None, parts: list[str] | None = None, k: int = 2) -> Dataset:
    n = len(images)
    names = tuple(["cat", "dog", "owl", "fox"][:k])
    return Dataset(
        "pets", images, np.array(labels or [i % k for i in range(n)], np.int64), names, tuple(parts or [""] * n)
    )


def texts(report: DataReport, severity: str) -> str:
    return "\n".join(finding.text for finding in report.findings if finding.severity == severity)


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    report = check_data(dataset(ArrayImages(noise(20))))
    assert report.findings == ()
    assert report.near_pairs == 0
    assert report.sizes is not None
    assert report.sizes.width == (24, 24.0, 24)
    assert (report.sizes.grey, report.sizes.colour) == (0, 20)
    assert [c.parts for c in report.classes] == [{"": 10}, {"": 10}]


@pytest.fixture
def broken(tmp_path: Path) -> FileImages:
    """good0, every kind of unreadable file, good1."""
    pixels = noise(2, 40)
    Image.fromarray(pixels[0]).save(tmp_path / "good0.png")
    Image.fromarray(pixels[1]).save(tmp_path / "good1.png")
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:500])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    names = ["good0.png", "cut.jpg", "text.png", "empty.png", "gone.png", "float.tif", "bomb.png", "good1.png"]
    return FileImages(tmp_path, names)


KINDS = {
    "cut.jpg": "damaged",
    "text.png": "no image",
    "empty.png": "no image",
    "gone.png": "missing",
    "float.tif": "unsupported",
    "bomb.png": "oversized",
}


def test_every_kind_of_unreadable_file_is_reported_and_the_others_still_read(broken: FileImages) -> None:
    report = check_data(dataset(broken), workers=2)
    assert {bad.name: bad.kind for bad in report.bad} == KINDS
    assert all(bad.name in bad.reason for bad in report.bad)
    assert [bad.index for bad in report.bad] == [1, 2, 3, 4, 5, 6]
    assert "6 images cannot be read" in texts(report, "error")
    assert report.sizes is not None
    assert report.sizes.colour == 2


def test_find_unreadable_looks_at_the_indices_asked_for(broken: FileImages) -> None:
    assert {bad.name: bad.kind for bad in find_unreadable(broken)} == KINDS
    assert [bad.name for bad in find_unreadable(broken, np.array([0, 4, 7]))] == ["gone.png"]
    assert find_unreadable(broken, np.array([0, 7])) == []


def test_each_image_is_decoded_once() -> None:
    class Counting(ArrayImages):
        loads: list[int] = []  # noqa: RUF012

        def load(self, index: int) -> Image.Image:
            self.loads.append(index)
            return super().load(index)

    check_data(dataset(Counting(noise(30))))
    assert sorted(Counting.loads) == list(range(30))


def test_all_images_unreadable(tmp_path: Path) -> None:
    report = check_data(dataset(FileImages(tmp_path, ["a.png", "b.png"])))
    assert len(report.bad) == 2
    assert report.sizes is None
    assert report.near_pairs == 0


def test_equal_pixels_are_found_across_formats_and_parts(tmp_path: Path) -> None:
    pixels = noise(4)
    for name, i in {"a.png": 0, "b.bmp": 0, "c.png": 1, "d.png": 2, "e.png": 2, "f.png": 3}.items():
        Image.fromarray(pixels[i]).save(tmp_path / name)
    images = FileImages(tmp_path, ["a.png", "b.bmp", "c.png", "d.png", "e.png", "f.png"])
    report = check_data(dataset(images, [0, 0, 1, 0, 1, 1], ["train", "test", "train", "train", "train", "test"]))
    first, second = report.duplicates
    assert first.names == ("a.png", "b.bmp")
    assert first.crosses
    assert not first.conflicts
    assert not first.same_files
    assert second.names == ("d.png", "e.png")
    assert not second.crosses
    assert second.conflicts
    assert second.same_files
    warnings = texts(report, "warning")
    assert "'a.png' (train, 'cat') and 'b.bmp' (test, 'cat')" in warnings
    assert "'d.png' (train, 'cat') and 'e.png' (train, 'dog'): decide on one label" in warnings
    assert report.near_pairs == 0  # equal images are no near duplicates


def test_unlabelled_copies_do_not_conflict() -> None:
    pixels = np.repeat(noise(2), 2, axis=0)
    report = check_data(dataset(ArrayImages(pixels), [0, UNLABELLED, 1, UNLABELLED]))
    assert len(report.duplicates) == 2
    assert not any(group.conflicts for group in report.duplicates)
    assert "a split drawn at random may learn from one copy" in texts(report, "warning")


def test_tiny_and_constant_images() -> None:
    images = [Image.new("RGB", (1, 1)), Image.new("RGB", (30, 30), "red"), *map(Image.fromarray, noise(2))]
    report = check_data(dataset(PillowImages(images)))
    assert report.tiny == ("0",)
    assert report.constant == ("0", "1")
    assert report.near_pairs == 0


def counts(train: dict[str, int], test: dict[str, int] | None = None, val: dict[str, int] | None = None) -> DataReport:
    """The report of a data set with so many images of each class in each part."""
    parts = {"train" if test or val else "": train, "test": test or {}, "val": val or {}}
    classes = tuple(dict.fromkeys(name for part in parts.values() for name in part))
    rows = [(classes.index(c), part) for part, own in parts.items() for c, n in own.items() for _ in range(n)]
    images = ArrayImages(np.random.default_rng(0).integers(0, 256, (len(rows), 8, 8), dtype=np.uint8))
    labels = np.array([label for label, _ in rows], np.int64)
    return check_data(Dataset("d", images, labels, classes, tuple(part for _, part in rows)), near=False)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("train", "test", "val", "severity", "said"),
    [
        (
            {"a": 9, "b": 9},
            {"a": 2, "b": 2, "c": 1},
            None,
            "error",
            "1 class ('c') in the test part but without a train",
        ),
        ({"a": 9, "b": 9}, {"a": 2, "b": 2}, {"c": 1}, "error", "1 class ('c') in the val part but without a train"),
        ({"a": 9}, None, None, "error", "training labels of one class only"),
        ({}, {"a": 9, "b": 9}, None, "error", "no training labels"),
        ({}, None, None, "error", "no training labels"),
        ({"a": 9, "b": 9}, {"a": 2}, None, "warning", "1 class ('b') without a test image"),
        ({"a": 9, "b": 1}, None, None, "warning", "1 class ('b') with a single training label"),
        ({"a": 9, "b": 4}, None, None, "note", "1 class ('b') with fewer than 5"),
        ({"a": 66, "b": 6}, None, None, "warning", "'a', has 66 training labels and the smallest, 'b', has 6"),
        ({"a": 9, "b": 0}, None, None, "warning", "1 class ('b') without any image"),
        ({f"c{i}": 1 for i in range(24)}, None, None, "warning", "24 classes for 24 labelled images"),
        ({"oak": 9, "nan": 9}, None, None, "warning", "('nan') named like a missing value"),
        ({"oak tree": 9, "Oak_Tree ": 9, "elm": 9}, None, None, "warning", "'oak tree', 'Oak_Tree ' differ in case"),
        ({"caf\u00e9": 9, "cafe\u0301": 9}, None, None, "warning", "give them one name"),
        ({"1.5": 9, "2.5": 9}, None, None, "warning", "it does not fit numbers"),
        ({"oak": 9, "17": 9}, None, None, "warning", "('17') named by a number among names"),
        ({"0": 9, "1": 9}, None, None, "note", "fine for digits"),
    ],
)
def test_labels(
    train: dict[str, int], test: dict[str, int] | None, val: dict[str, int] | None, severity: str, said: str
) -> None:
    assert said in texts(counts(train, test, val), severity)


def test_near_duplicates_of_real_digits_are_found_among_5000() -> None:
    """Re-encoded and enlarged digits are found, and no two different digits are taken for copies."""
    digits = load_dataset("mnist-5k")
    chosen = np.random.default_rng(0).choice(5000, 640, replace=False)
    originals = [digits.images.load(int(i)) for i in chosen]
    copies = []
    for image in originals[:20]:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=75)
        copies += [Image.open(buffer), image.resize((56, 56), Image.Resampling.BICUBIC)]
    parts = ["train"] * len(originals) + ["test"] * len(copies)
    report = check_data(dataset(PillowImages(originals + copies), parts=parts))
    found = {tuple(int(name) for name in pair.names) for pair in report.near}
    assert found == {(i // 2, 640 + i) for i in range(40)}
    assert report.near_pairs == 40
    assert "40 pairs of nearly equal images in different parts" in texts(report, "warning")


@needs_stamps
def test_near_duplicates_of_real_stamps() -> None:
    names = sorted(path.relative_to(STAMPS).as_posix() for path in (STAMPS / "animals").rglob("*.png"))[:60]
    images = FileImages(STAMPS, names)
    originals = [images.load(i) for i in range(len(names))]
    copies = [image.resize((image.width * 2 // 3, image.height * 2 // 3)) for image in originals[:20]]
    parts = ["train"] * len(originals) + ["test"] * len(copies)
    report = check_data(dataset(PillowImages(originals + copies), parts=parts))
    found = {tuple(int(name) for name in pair.names) for pair in report.near}
    true = {(i, len(originals) + i) for i in range(20)}
    assert len(found & true) >= 18
    assert found <= true


def test_near_pairs_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    thumbs = rng.integers(0, 256, (150, 1024), dtype=np.uint8)
    thumbs[100:] = np.clip(thumbs[:50].astype(int) + rng.integers(-9, 10, (50, 1024)), 0, 255)
    hashes = np.array([perceptual_hash(t.reshape(32, 32)) for t in thumbs], np.uint64)
    units = thumbs - thumbs.mean(1, keepdims=True)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for groups in (np.zeros(150, np.int64), rng.integers(0, 3, 150)):
        rows = np.arange(2, 150)
        pairs, scores, complete = near_pairs(hashes, thumbs, groups, rows)
        expected = {
            (a, b): units[a] @ units[b]
            for a in range(2, 150)
            for b in range(a + 1, 150)
            if (groups[a] != groups[b] or not groups.any())
            and bin(int(hashes[a]) ^ int(hashes[b])).count("1") <= 8
            and units[a] @ units[b] >= 0.99
        }
        found = {tuple(sorted(pair)): score for pair, score in zip(pairs.tolist(), scores, strict=True)}
        assert len(expected) >= 20
        assert found.keys() == expected.keys()
        assert all(found[key] == pytest.approx(value, abs=1e-4) for key, value in expected.items())
        assert complete


def test_the_near_search_ends_where_everything_looks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keepsight.data.duplicates.CANDIDATES_AT_MOST", 1000)
    frames = np.repeat(noise(1, 32), 200, axis=0)
    frames[np.arange(200), 0, 0, 0] = np.arange(200)
    report = check_data(dataset(ArrayImages(frames)))
    assert not report.near_complete
    assert "ended early" in texts(report, "warning")
    assert report.near_pairs is not None
    assert len(report.near) == min(report.near_pairs, 1000)


def test_a_thumbnail_has_the_hash_of_its_image() -> None:
    import imagehash

    image = Image.fromarray(noise(1, 90)[0]).resize((130, 70))
    assert perceptual_hash(thumbnail(image)) == int(str(imagehash.phash(image)), 16)


def test_equal_groups_are_in_order() -> None:
    digests = np.array([[3, 1], [1, 1], [3, 1], [2, 0], [1, 1], [3, 1]], np.uint8)
    assert [group.tolist() for group in equal_groups(digests)] == [[0, 2, 5], [1, 4]]
    assert equal_groups(digests[:0]) == []


def test_json_comes_back() -> None:
    pixels = np.repeat(noise(2), 2, axis=0)
    report = check_data(dataset(ArrayImages(pixels)))
    assert DataReport.model_validate_json(report.model_dump_json()) == report


def test_table(broken: FileImages, tmp_path: Path) -> None:
    Image.fromarray(noise(1, 40)[0]).save(tmp_path / "odd\n[red]name.png")
    images = FileImages(tmp_path, [*(broken.name(i) for i in range(len(broken))), "odd\n[red]name.png"])
    report = check_data(dataset(images))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report_table(report))
    shown = console.export_text()
    for text in ("pets: 9 images", "bomb.png", "oversized", "6 images cannot be read", "'odd\\n[red]name.png'", "cat"):
        assert text in shown
