import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keepsight.core import UserError
from keepsight.data import stamps
from keepsight.data.load import load_dataset
from keepsight.data.pairs import (
    is_clip_benchmark,
    load_pairs,
    read_captioned_shards,
    read_clip_benchmark,
    read_karpathy,
    stamp_pairs,
)
from keepsight.data.scene_stamps import held_out, load_stamps
from keepsight.data.scenes import ScenesConfig


def picture(level: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 3), level).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def karpathy(folder: Path, change: dict[str, object] | None = None) -> Path:
    """COCO's layout: five images, one of each split and two of test, each with two sentences."""
    entries = []
    for number, split in enumerate(("train", "restval", "val", "test", "test")):
        entry: dict[str, object] = {
            "filepath": "val2014",
            "sentids": [2 * number, 2 * number + 1],
            "filename": f"COCO_val2014_{number:012d}.png",
            "imgid": number,
            "split": split,
            "sentences": [
                {"tokens": ["a"], "raw": f"A thing {number}. ", "imgid": number, "sentid": 2 * number},
                {"tokens": ["a"], "raw": f"Another\nthing {number}", "imgid": number, "sentid": 2 * number + 1},
            ],
            "cocoid": number,
        }
        entries.append(entry | (change or {} if number == 3 else {}))
        place = folder / "images" / "val2014" / f"COCO_val2014_{number:012d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(picture(number))
    file = folder / "dataset_coco.json"
    file.write_text(json.dumps({"images": entries, "dataset": "coco"}), encoding="utf-8")
    return file


def test_karpathys_splits(tmp_path: Path) -> None:
    pairs = load_pairs(str(karpathy(tmp_path)))
    assert pairs.name == "coco"
    assert pairs.parts == ("train", "train", "test", "test")
    assert pairs.captions[2] == ("A thing 3.", "Another thing 3")
    assert [pairs.images.load(row).getpixel((0, 0))[0] for row in pairs.rows("test")] == [3, 4]
    assert read_karpathy(tmp_path / "dataset_coco.json", part="val").parts == ("train", "train", "val")


def test_flickrs_file_has_no_folders(tmp_path: Path) -> None:
    (tmp_path / "flickr30k-images").mkdir()
    (tmp_path / "flickr30k-images" / "36979.png").write_bytes(picture(9))
    entry = {"filename": "36979.png", "split": "test", "sentences": [{"raw": "Two men."}], "sentids": [0]}
    file = tmp_path / "dataset_flickr30k.json"
    file.write_text(json.dumps({"images": [entry], "dataset": "flickr30k"}))
    assert read_karpathy(file).images.load(0).getpixel((0, 0)) == (9, 9, 9)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match="1 of 1 images"):
        read_karpathy(file, images=tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filename": "../../secret.png"}, "leads out"),
        ({"filepath": "/etc", "filename": "passwd"}, "leads out"),
        ({"filename": "", "filepath": ""}, "leads out of its folder or has no name"),
        ({"sentences": []}, "no sentence"),
        ({"sentences": ["A thing."]}, "list of sentences"),
        ({"filename": "gone.png"}, "1 of 4 images"),
    ],
)
def test_karpathys_file_is_checked(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_karpathy(karpathy(tmp_path, change))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"images": [1]}', b'{"images": [{"split": "test"}]}'])
def test_other_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "dataset_coco.json").write_bytes(content)
    with pytest.raises(UserError, match="The pairs"):
        read_karpathy(tmp_path / "dataset_coco.json")


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dev'"):
        read_karpathy(karpathy(tmp_path), part="dev")
    with pytest.raises(UserError, match="no image-caption pairs"):
        load_pairs(str(tmp_path / "nothing.json"))


def test_clip_benchmarks_retrieval(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "test" / "0.tar", [("s0000000.jpg", picture(1, "JPEG")), ("s0000000.txt", b"One.\nA thing. \n")]
    )
    write_tar(
        tmp_path / "test" / "1.tar", [("s0000001.webp", picture(7, "WEBP")), ("s0000001.txt", "Zwei Wörter.".encode())]
    )
    (tmp_path / "test" / "nshards.txt").write_text("2\n")
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    pairs = load_pairs(str(tmp_path))
    assert pairs.captions == (("One.", "A thing."), ("Zwei Wörter.",))
    assert pairs.parts == ("test", "test")
    assert pairs.images.load(1).getpixel((0, 0)) == (7, 7, 7)
    (tmp_path / "test" / "nshards.txt").write_text("3\n")
    with pytest.raises(UserError, match="nshards"):
        read_captioned_shards(tmp_path)
    (tmp_path / "test" / "nshards.txt").unlink()
    write_tar(tmp_path / "test" / "2.tar", [("s0000002.png", picture(7))])
    with pytest.raises(UserError, match="no caption"):
        read_captioned_shards(tmp_path)


def test_captions_that_differ_in_case_are_captions(tmp_path: Path) -> None:
    members = [("0.png", picture(1)), ("0.txt", b"A cat."), ("1.png", picture(2)), ("1.txt", b"a cat.")]
    write_tar(tmp_path / "test" / "0.tar", members)
    assert read_captioned_shards(tmp_path).captions == (("A cat.",), ("a cat.",))


def test_a_member_that_leads_out_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "test" / "0.tar", [("../0.png", picture(1)), ("../0.txt", b"A cat.")])
    with pytest.raises(UserError, match="leads out"):
        read_captioned_shards(tmp_path)


def test_clip_benchmarks_classification(tmp_path: Path) -> None:
    members = [part for n in (10, 2) for part in ((f"s{n}.webp", picture(n, "WEBP")), (f"s{n}.cls", str(n).encode()))]
    write_tar(tmp_path / "test" / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("\n".join(f"thing {n}" for n in range(11)) + "\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}\n")
    assert is_clip_benchmark(tmp_path)
    data, templates = read_clip_benchmark(tmp_path)
    assert data.labels.tolist() == [10, 2]
    assert data.classes[10] == "thing 10"
    assert data.images.load(0).getpixel((0, 0)) == (10, 10, 10)
    assert templates == ("a photo of a {c}.", "a {c}")
    (tmp_path / "classnames.txt").write_text("only\nthese\n")
    with pytest.raises(UserError, match="have the class '2'"):
        read_clip_benchmark(tmp_path)
    (tmp_path / "classnames.txt").write_text("only\n\nthese\n")
    with pytest.raises(UserError, match="empty line"):
        read_clip_benchmark(tmp_path)
    assert not is_clip_benchmark(tmp_path / "test")


def few_stamps(root: Path) -> None:
    """Twelve motifs in two categories: of each an animal or a plant, its mirror image, and a second drawing of the same caption."""
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = root / ("animals/birds" if number % 2 else "plants")
        folder.mkdir(parents=True, exist_ok=True)
        rgba = rng.integers(0, 256, (20, 16, 4), dtype=np.uint8)
        rgba[..., 3] = 255
        Image.fromarray(rgba).save(folder / f"kind-{chr(97 + number)}.png")
        Image.fromarray(rgba[:, ::-1]).save(folder / f"kind-{chr(97 + number)}_mirror.png")
        (folder / f"kind-{chr(97 + number)}.txt").write_text(
            f"A kind {chr(97 + number)}.\nde.utf8=Eine Art.\n", encoding="utf-8"
        )
        other = rng.integers(0, 256, (20, 16, 4), dtype=np.uint8)
        other[..., 3] = 255
        Image.fromarray(other).save(folder / f"another-{chr(97 + number)}.png")
        (folder / f"another-{chr(97 + number)}.txt").write_text(f"a kind {chr(97 + number)}!", encoding="utf-8")
    Image.fromarray(rng.integers(0, 256, (9, 9, 4), dtype=np.uint8)).save(root / "plants" / "silent.png")


def test_stamps_are_split_by_motif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_stamps(tmp_path)
    monkeypatch.setattr(stamps, "STAMPS_FOLDER", tmp_path)
    monkeypatch.setattr("keepsight.data.pairs.ScenesConfig", lambda: ScenesConfig(held_out=0.5))
    pairs = stamp_pairs(1)
    names = [pairs.images.name(i) for i in range(len(pairs.images))]
    assert len(names) == 36
    assert "plants/silent.png" not in names
    assert pairs.captions[names.index("animals/birds/kind-b_mirror.png")] == ("A kind b.",)
    motif = {name: name.removesuffix(".png").removesuffix("_mirror")[-1] for name in names}
    out, kept = ({motif[names[row]] for row in pairs.rows(part)} for part in ("test", "train"))
    assert out
    assert kept
    assert not out & kept
    unseen = held_out(load_stamps("stamps")[1], 0.5, 1)
    assert {names[row] for row in pairs.rows("test")} == set(pairs.stamps.values())
    assert set(pairs.stamps.values()) < unseen  # what scenes of this split train on is no test item
    assert pairs.classes == ("animals", "plants")
    assert pairs.labels[names.index("plants/kind-a.png")] == 1
    assert pairs.images.load(0).size == (22, 22)
    assert stamp_pairs(1).parts == pairs.parts
    assert stamp_pairs(2).parts != pairs.parts


def test_shards_of_pairs_are_no_labelled_data_by_accident(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("0.png", picture(1)), ("0.txt", b"cat"), ("1.png", picture(2)), ("1.txt", b"dog")])
    assert load_dataset(tmp_path / "0.tar").classes == ("cat", "dog")
    assert read_captioned_shards(tmp_path).captions == (("cat",), ("dog",))
