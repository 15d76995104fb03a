"""Extraction and the cache: right values, nothing twice, shared, resumable after a kill, safe against damage."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from keepsight.core import ImageList, Preprocessing, Readout, UserError
from keepsight.data.arrays import ArrayImages
from keepsight.data.transforms import load_batch
from keepsight.features.cache import FeatureCache, FeaturePart, _discard, cache_key
from keepsight.features.extract import CHUNK, Extractor
from keepsight.features.lock import lock_file
from keepsight.features.manage import list_cache, prune_cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / "cache"))


READOUTS = ["1:cls", "2:mean", "1,2:grid2", "last:cls+grid3", "2,1:mean+cls"]


@pytest.mark.parametrize("text", READOUTS)
def test_features_equal_the_readout_of_the_backbone(tiny_backbone, noise_images: ImageList, text: str) -> None:
    readout = Readout.parse(text).resolved(2)
    indices = np.arange(40)
    images = load_batch(noise_images, indices, tiny_backbone.preprocessing)
    expected = readout.read(tiny_backbone(images, readout.blocks)).detach()
    found = Extractor(tiny_backbone, noise_images).features(indices, readout)
    torch.testing.assert_close(found, expected)


def test_nothing_is_extracted_twice_and_parts_are_shared(tiny_backbone, noise_images: ImageList) -> None:
    Extractor(tiny_backbone, noise_images).fill(np.arange(40), [(1, "cls"), (2, "mean")])
    again = Extractor(tiny_backbone, noise_images)
    again.features(np.arange(40), Readout.parse("1:cls"))
    again.features(np.arange(10, 30), Readout.parse("2:mean"))
    assert again.extracted == 0
    again.features(np.arange(5), Readout.parse("2:cls"))
    assert again.extracted == 5


def test_equal_images_are_computed_once(tiny_backbone) -> None:
    pixels = np.zeros((7, 16, 16), np.uint8)
    pixels[5] = 90
    extractor = Extractor(tiny_backbone, ArrayImages(pixels))
    found = extractor.features(np.arange(7), Readout.parse("1:cls"))
    assert extractor.extracted == 2
    assert torch.equal(found[0], found[6])
    assert not torch.equal(found[0], found[5])


def test_blocks_after_the_readout_are_not_run(tiny_backbone, noise_images: ImageList) -> None:
    Extractor(tiny_backbone, noise_images).features(np.arange(8), Readout.parse("1:cls"))
    assert set(tiny_backbone.block_calls) == {1}


def test_other_weights_or_preprocessing_have_other_keys(tiny_backbone) -> None:
    first = cache_key(tiny_backbone.weights_hash(), tiny_backbone.preprocessing)
    with torch.no_grad():
        tiny_backbone.network["block2"].bias[0] += 1e-3
    assert cache_key(tiny_backbone.weights_hash(), tiny_backbone.preprocessing) != first
    other = Preprocessing(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), fit="crop")
    assert cache_key("same", other) != cache_key("same", tiny_backbone.preprocessing)


def test_a_reopened_part_gives_the_rows_asked_for(tmp_path: Path) -> None:
    part = FeaturePart(tmp_path)
    part.add([bytes([i]) * 32 for i in range(3)], np.arange(6, dtype=np.float32).reshape(3, 2))
    reopened = FeaturePart(tmp_path)
    assert reopened.read([bytes([2]) * 32, bytes([0]) * 32]).tolist() == [[4, 5], [0, 1]]


def test_a_damaged_chunk_is_computed_again(tiny_backbone, noise_images: ImageList) -> None:
    readout = Readout.parse("1:cls")
    extractor = Extractor(tiny_backbone, noise_images)
    expected = extractor.features(np.arange(40), readout)
    (chunk,) = extractor.cache.folder.rglob("*.npy")
    chunk.write_bytes(chunk.read_bytes()[:200])
    again = Extractor(tiny_backbone, noise_images)
    assert torch.equal(again.features(np.arange(40), readout), expected)
    assert again.extracted == 40


def test_empty_request(tiny_backbone, noise_images: ImageList) -> None:
    found = Extractor(tiny_backbone, noise_images).features(np.arange(0), Readout.parse("1:cls"))
    assert len(found) == 0


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from conftest import TinyBackbone
from keepsight.core import Readout
from keepsight.data.arrays import ArrayImages
from keepsight.features.extract import Extractor
kill_after = int(sys.argv[1])
pixels = np.random.default_rng(1).integers(0, 256, (1400, 16, 16, 3), dtype=np.uint8)
class Killing(TinyBackbone):
    calls = 0
    def forward(self, images, blocks):
        Killing.calls += 1
        if Killing.calls == kill_after:
            while not list(Path(os.environ["KEEPSIGHT_CACHE"]).rglob("block02-cls/*.npy")):
                time.sleep(0.01)  # the first chunk is written while the model goes on
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images, blocks)
extractor = Extractor(Killing(), ArrayImages(pixels))
x = extractor.features(np.arange(1400), Readout.parse("1,2:cls"))
np.save(sys.argv[3], x.numpy())
print(extractor.extracted)
"""


def test_a_killed_extraction_resumes_without_repeating_finished_chunks(tmp_path: Path) -> None:
    def start(kill_after: int, cache: str, out: str) -> subprocess.CompletedProcess[str]:
        tests = str(Path(__file__).parents[1])
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(kill_after), tests, str(tmp_path / out)],
            env={**os.environ, "KEEPSIGHT_CACHE": str(tmp_path / cache), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    assert start(12, "killed", "x.npy").returncode == -signal.SIGKILL
    resumed = start(-1, "killed", "resumed.npy")
    straight = start(-1, "straight", "straight.npy")
    assert int(resumed.stdout) == 1400 - CHUNK  # one chunk was complete at the kill
    assert int(straight.stdout) == 1400
    assert np.array_equal(np.load(tmp_path / "resumed.npy"), np.load(tmp_path / "straight.npy"))


def test_cache_folder_can_be_chosen(tmp_path: Path, tiny_backbone) -> None:
    cache = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path / "elsewhere")
    cache.part(1, "cls").add([b"x" * 32], np.ones((1, 4), np.float32))
    assert len(list((tmp_path / "elsewhere").rglob("*.npy"))) == 1


def keys_of(start: int, count: int) -> list[bytes]:
    return [i.to_bytes(4, "big") + bytes(28) for i in range(start, start + count)]


def values_of(keys: list[bytes]) -> np.ndarray:
    numbers = np.array([int.from_bytes(key[:4], "big") for key in keys], np.float32)
    return numbers[:, None] * 2 + np.arange(3, dtype=np.float32)


def filled(folder: Path, count: int, chunk: int) -> FeaturePart:
    part = FeaturePart(folder)
    for start in range(0, count, chunk):
        keys = keys_of(start, chunk)
        part.add(keys, values_of(keys))
    return part


WRITER = """
import sys
import numpy as np
from keepsight.core import Preprocessing
from keepsight.features.cache import FeatureCache
def add(start):
    keys = [i.to_bytes(4, "big") + bytes(28) for i in range(start, start + 160)]
    part.add(keys, (np.arange(start, start + 160)[:, None] * 2 + np.arange(3)).astype(np.float32))
cache = FeatureCache("w", Preprocessing(size=28, mean=(0, 0, 0), std=(1, 1, 1)), about={"backbone": "tiny"})
part = cache.part(1, "cls")
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 4000, 160):  # the same chunks in both processes, and chunks that overlap by half
    add(start)
    add(10_000 + start + int(sys.argv[1]))
print("done", flush=True)
sys.stdin.readline()
"""


def test_two_processes_write_overlapping_images_while_a_third_reads(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen([*command, str(shift)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for shift in (0, 80)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        cache = FeatureCache("w", Preprocessing(size=28, mean=(0, 0, 0), std=(1, 1, 1)))
        part = cache.part(1, "cls")
        everything = keys_of(0, 4000) + keys_of(10_000, 4080)
        assert not part.has(everything).any()
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        seen, deadline = set(), time.monotonic() + 60
        while not part.has(everything).all():
            assert time.monotonic() < deadline
            part.refresh()
            there = [key for key, known in zip(everything, part.has(everything), strict=True) if known]
            seen.add(len(there))
            if there:
                assert np.array_equal(part.read(there), values_of(there))
        assert len(seen) > 2  # it was read while it grew
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "done\n"
        folder = cache.folder
        del cache
        gc.collect()
        (entry,) = list_cache(folder.parents[1])
        assert entry.in_use
        assert prune_cache(folder.parents[1], everything=True) == []  # both writers still hold it
        assert np.array_equal(FeaturePart(folder / "block01-cls").read(everything), values_of(everything))
        assert len(list(folder.rglob("*.npy"))) == 75  # equal chunks are one file
        assert list(folder.rglob("*.tmp")) == []
    finally:
        for writer in writers:
            writer.communicate("end\n")
    assert [e.path for e in prune_cache(folder.parents[1], everything=True)] == [folder]
    assert not folder.exists()


def test_a_part_sees_what_another_has_written_after_refreshing(tmp_path: Path) -> None:
    early = FeaturePart(tmp_path)
    other = filled(tmp_path, 6, 3)
    assert not early.has(keys_of(0, 6)).any()
    early.refresh()
    assert early.has(keys_of(0, 7)).tolist() == [True] * 6 + [False]
    assert np.array_equal(early.read(keys_of(0, 6)[::-1]), other.read(keys_of(0, 6))[::-1])


def test_many_chunks_hold_no_file_open(tmp_path: Path) -> None:
    """A kept memory map holds a file descriptor: 70,000 images in twenty parts would be 2,740 of 1,024."""
    part = filled(tmp_path, 400, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 12, hard))
    try:
        part = FeaturePart(tmp_path)
        assert np.array_equal(part.read(keys_of(0, 400)), values_of(keys_of(0, 400)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(tmp_path.glob("*.npy"))) == 100


def test_a_part_keeps_few_bytes_an_image(tmp_path: Path) -> None:
    filled(tmp_path, 20 * 512, 512)
    FeaturePart(tmp_path).has(keys_of(0, 1))  # whatever is loaded once
    tracemalloc.start()
    part = FeaturePart(tmp_path)
    assert part.has(keys_of(0, 20 * 512)).all()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / (20 * 512) < 60


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeros", "text", "renamed", "other array", "header"])
def test_damaged_chunks_are_left_out_and_removed_and_the_others_read(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, 8, 4)
    path = sorted(tmp_path.glob("*.npy"))[0]
    content = path.read_bytes()
    if damage == "renamed":
        path = path.rename(path.with_name("0" * 32 + ".npy"))
    elif damage == "other array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        made = {
            "truncated": content[:-10],
            "empty": b"",
            "zeros": bytes(len(content)),
            "text": b"no array",
            "header": content[:20] + b"((((" + content[24:],
        }
        path.write_bytes(made[damage])
    part = FeaturePart(tmp_path)
    there = part.has(keys_of(0, 8))
    assert there.sum() == 4
    kept = [key for key, known in zip(keys_of(0, 8), there, strict=True) if known]
    assert np.array_equal(part.read(kept), values_of(kept))
    assert not path.exists()


def test_a_chunk_that_was_replaced_by_a_good_one_is_not_removed(tmp_path: Path) -> None:
    filled(tmp_path, 4, 4)
    (path,) = tmp_path.glob("*.npy")
    good = path.read_bytes()
    path.write_bytes(good[:50])
    seen = path.stat()
    filled(tmp_path, 4, 4)  # another process: removes the damaged one and writes it again
    _discard(path, seen)
    assert path.read_bytes() == good
    assert len(list(tmp_path.iterdir())) == 1


def test_unreadable_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 8, 4)

    def refuse(path: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(FeaturePart, "_map", staticmethod(refuse))
    with pytest.raises(UserError, match="Too many open files"):
        FeaturePart(tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_files_that_were_removed_in_use_are_said(tmp_path: Path) -> None:
    part = filled(tmp_path, 8, 4)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match="start again"):
        part.read(keys_of(0, 2))
    with pytest.raises(KeyError):
        part.read(keys_of(8, 1))


def test_leftovers_of_killed_writers_go_when_they_are_a_day_old(tmp_path: Path, tiny_backbone) -> None:
    cache = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path)
    folder = cache.folder / "block01-cls"
    folder.mkdir(parents=True)
    old, young = folder / ".a.npy.x1.tmp", folder / ".b.npy.x2.tmp"
    for path, hours in ((old, 25), (young, 23)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - hours * 3600,) * 2)
    FeatureCache("weights", tiny_backbone.preprocessing, tmp_path)
    assert not old.exists()
    assert young.exists()


def test_about_is_written_and_kept_up(tmp_path: Path, tiny_backbone) -> None:
    for name in ("first", "second"):
        cache = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path, about={"backbone": name})
        assert json.loads((cache.folder / "about.json").read_text()) == {"backbone": name, "size": "16"}


def test_a_cache_that_cannot_be_locked_is_read(tmp_path: Path, tiny_backbone) -> None:
    first = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path)
    first.part(1, "cls").add(keys_of(0, 2), values_of(keys_of(0, 2)))
    lock_file(first.folder).unlink()
    lock_file(first.folder).mkdir()
    reader = FeatureCache("weights", tiny_backbone.preprocessing, tmp_path, about={"backbone": "x"})
    assert np.array_equal(reader.part(1, "cls").read(keys_of(0, 2)), values_of(keys_of(0, 2)))
