"""Embeddings on disk: equal to the readout, in shards or one file, resumed after a kill, never mixed with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

from keepsight.backbones.load import load_backbone
from keepsight.core import UNLABELLED, Backbone, Dataset, ImageList, Readout, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.export.model import TunedModel
from keepsight.export.shards import shard_shape
from keepsight.heads.linear import LinearHead
from keepsight.recipes import embed as module
from keepsight.recipes.embed import EmbedConfig, embed


@pytest.fixture
def dataset(noise_images: ImageList) -> Dataset:
    labels = np.arange(40) % 3
    labels[::7] = UNLABELLED
    parts = ("train",) * 30 + ("test",) * 10
    return Dataset("noise", noise_images, labels.astype(np.int64), ("a", "b", "ö"), parts)


def expected(backbone: Backbone, dataset: Dataset, readout: str) -> np.ndarray:
    r = Readout.parse(readout).resolved(backbone.depth)
    with torch.inference_mode():
        x = load_batch(dataset.images, np.arange(len(dataset.images)), backbone.preprocessing)
        return r.read(backbone(x, r.blocks)).numpy()


CONFIG = EmbedConfig(readout="1,2:mean", shard_size=12, batch_size=5)


def read_folder(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    if list(folder.glob("*.npy")):
        shards = sorted(folder.glob("part-*.npy"))
        lines = [line for s in shards for line in s.with_suffix(".jsonl").read_text().splitlines()]
        return np.concatenate([np.load(s) for s in shards]), [json.loads(line) for line in lines]
    tables = [parquet.read_table(s) for s in sorted(folder.glob("part-*.parquet"))]
    rows = [row for t in tables for row in t.select(["name", "label", "part"]).to_pylist()]
    return np.array([row["embedding"] for t in tables for row in t.to_pylist()], np.float32), rows


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_shards_hold_the_readout_of_every_image(
    kind: Any, tiny_backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    done = embed(tiny_backbone, dataset, tmp_path / "e", CONFIG.model_copy(update={"format": kind}))
    assert (done.rows, done.width, done.skipped) == (40, 16, 0)
    assert len(list((tmp_path / "e").glob(f"part-*.{kind}"))) == 4
    features, rows = read_folder(tmp_path / "e")
    np.testing.assert_allclose(features, expected(tiny_backbone, dataset, "1,2:mean"), atol=1e-6)
    assert [r["name"] for r in rows] == [str(i) for i in range(40)]
    assert [r["part"] for r in rows] == list(dataset.parts)
    assert [r["label"] for r in rows] == [None if k < 0 else dataset.classes[k] for k in dataset.labels]
    if kind == "parquet":
        schema = parquet.read_schema(tmp_path / "e" / "part-00000.parquet")
        assert str(schema.field("embedding").type) == "fixed_size_list<element: float>[16]"


@pytest.mark.parametrize("name", ["all.parquet", "all.npy"])
def test_one_file_holds_the_same(name: str, tiny_backbone: Backbone, dataset: Dataset, tmp_path: Path) -> None:
    embed(tiny_backbone, dataset, tmp_path / name, CONFIG)
    wanted = expected(tiny_backbone, dataset, "1,2:mean")
    if name.endswith("npy"):
        np.testing.assert_allclose(np.load(tmp_path / name), wanted, atol=1e-6)
        lines = (tmp_path / "all.jsonl").read_text().splitlines()
        assert [json.loads(line)["name"] for line in lines] == [str(i) for i in range(40)]
    else:
        table = parquet.read_table(tmp_path / name)
        np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), wanted, atol=1e-6)
        assert json.loads(table.schema.metadata[b"keepsight"])["readout"] == "1,2:mean"
    assert not list(tmp_path.glob("*.shards"))
    with pytest.raises(UserError, match="exists already"):
        embed(tiny_backbone, dataset, tmp_path / name, CONFIG)
    embed(tiny_backbone, dataset, tmp_path / name, CONFIG, overwrite=True)


@pytest.mark.parametrize("name", ["e", "e.parquet", "e.npy"])
def test_a_killed_embed_goes_on_with_the_missing_shards(
    name: str, tiny_backbone: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(tiny_backbone, dataset, tmp_path / f"whole-{name}", CONFIG)
    written: list[str] = []

    def dies(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)

    write = module.write_shard
    monkeypatch.setattr(module, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(tiny_backbone, dataset, tmp_path / name, CONFIG)
    if name != "e":
        assert not (tmp_path / name).exists()
    folder = tmp_path / (name if name == "e" else f"{name}.shards")
    (folder / ".part-00002.parquet.xyz.tmp").write_bytes(b"half of one")
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*")}
    monkeypatch.setattr(module, "write_shard", write)
    tiny_backbone.block_calls.clear()
    done = embed(tiny_backbone, dataset, tmp_path / name, CONFIG)
    assert done.rows == 40
    assert tiny_backbone.block_calls.count(1) == 4  # 16 images are left: batches of 5, 5, 2 and 4
    if name == "e":
        assert {p.name: p.stat().st_mtime_ns for p in folder.glob("part-*") if p.name in kept} == kept
        assert not list(folder.glob(".*.tmp"))
        assert json.loads((folder / "embed.json").read_text())["finished"] is True
        for path in folder.glob("part-*"):
            assert path.read_bytes() == (tmp_path / f"whole-{name}" / path.name).read_bytes()
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / f"whole-{name}").read_bytes()


def other_labels(dataset: Dataset) -> Dataset:
    labels = dataset.labels.copy()
    labels[1] = 2
    return Dataset(dataset.name, dataset.images, labels, dataset.classes, dataset.parts)


def other_pixels(dataset: Dataset) -> Dataset:
    pixels = np.zeros((40, 16, 16, 3), np.uint8)
    return Dataset(dataset.name, ArrayImages(pixels), dataset.labels, dataset.classes, dataset.parts)


def test_other_embeddings_in_the_folder_are_refused(tiny_backbone: Any, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "e"
    embed(tiny_backbone, dataset, out, CONFIG)
    before = {p.name: p.read_bytes() for p in out.glob("*")}
    other = type(tiny_backbone)(seed=1)
    for arguments, message in [
        ((other, dataset, out, CONFIG), "holds embeddings of other weights"),
        ((tiny_backbone, other_labels(dataset), out, CONFIG), "other data"),
        ((tiny_backbone, other_pixels(dataset), out, CONFIG), "other data"),
        (
            (tiny_backbone, dataset, out, CONFIG.model_copy(update={"readout": "2:cls"})),
            r"another readout \(1,2:mean\)",
        ),
        ((tiny_backbone, dataset, out, CONFIG.model_copy(update={"shard_size": 20})), "another shard_size"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            embed(*arguments)
        assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in out.glob("*")} == before
    embed(tiny_backbone, dataset, out, CONFIG.model_copy(update={"shard_size": 30}), overwrite=True)
    assert len(list(out.glob("part-*"))) == 2
    (out / "embed.json").write_text("{")
    with pytest.raises(UserError, match=r"embed\.json is damaged"):
        embed(tiny_backbone, dataset, out, CONFIG)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds no embeddings"):
        embed(tiny_backbone, dataset, tmp_path / "own", CONFIG, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        embed(tiny_backbone, dataset, tmp_path / "own" / "thesis.txt", CONFIG)


class Broken(ImageList):
    """Some images of another list cannot be read."""

    def __init__(self, inner: ImageList, bad: set[int]) -> None:
        self.inner, self.bad = inner, bad

    def __len__(self) -> int:
        return len(self.inner)

    def load(self, index: int) -> Any:
        if index in self.bad:
            raise UserError(f"The image {index} cannot be read.")
        return self.inner.load(index)

    def name(self, index: int) -> str:
        return self.inner.name(index)

    def content_hash(self, index: int) -> bytes:
        if index in self.bad:
            raise UserError("no")
        return self.inner.content_hash(index)


@pytest.mark.parametrize("name", ["e.parquet", "e.npy"])
def test_bad_images_stop_it_or_are_left_out(
    name: str, tiny_backbone: Backbone, dataset: Dataset, tmp_path: Path
) -> None:
    bad = {3, *range(12, 24)}  # one whole shard among them
    broken = Dataset("b", Broken(dataset.images, bad), dataset.labels, dataset.classes, dataset.parts)
    with pytest.raises(UserError, match="image 3"):
        embed(tiny_backbone, broken, tmp_path / name, CONFIG)
    skipping = CONFIG.model_copy(update={"skip_bad": True})
    done = embed(tiny_backbone, broken, tmp_path / f"good-{name}", skipping)
    assert (done.rows, done.skipped) == (27, 13)
    good = [i for i in range(40) if i not in bad]
    wanted = expected(tiny_backbone, dataset, "1,2:mean")[good]
    if name.endswith("npy"):
        found = np.load(tmp_path / f"good-{name}")
    else:
        found = np.array(parquet.read_table(tmp_path / f"good-{name}")["embedding"].to_pylist())
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    none = Dataset("n", Broken(dataset.images, set(range(40))), dataset.labels, dataset.classes, dataset.parts)
    with pytest.raises(UserError, match="None of the 40 images"):
        embed(tiny_backbone, none, tmp_path / f"none-{name}", skipping)


def test_a_tuned_model_is_embedded_with_its_own_readout(dataset: Dataset, tmp_path: Path) -> None:
    backbone = load_backbone("test_vit", weights="random", size=32, timm_args={"depth": 2})
    model = TunedModel("probe", backbone, Readout.parse("1:mean"), LinearHead(features=64, classes=2), ("a", "b"))
    model.save(tmp_path / "run" / "model", "0")
    embed(str(tmp_path / "run"), dataset, tmp_path / "e.npy")
    np.testing.assert_allclose(np.load(tmp_path / "e.npy"), expected(backbone, dataset, "1:mean"), atol=1e-5)
    assert shard_shape(tmp_path / "e.npy") == (40, 64)
