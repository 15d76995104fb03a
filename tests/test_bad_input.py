"""Bad input, as a table: each case is one sentence, exit code 2 and nothing written; or, where the input is fine, the right result.

The commands run in this process through the command line's own `main`. Runs that were killed, full disks and damaged files of a
run are in tests/faults.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import logging
import os
import pickle
import re
import signal
import struct
import sys
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from keepsight.cli import main
from keepsight.core.progress import log
from keepsight.data.load import load_dataset

MODEL = ["backbone.name=test_vit", "backbone.weights=random", "backbone.size=32", "readout=2:mean", "methods=[probe]"]
QUICK = [*MODEL, "seeds=1", "selection_folds=0"]


@dataclass(frozen=True)
class Printed:
    code: int
    out: str
    err: str


class Work:
    """An empty working directory, pictures to put into it, and the command line."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._capsys, self._monkeypatch = root, capsys, monkeypatch

    def run(self, *arguments: object) -> Printed:
        self._monkeypatch.setattr("sys.argv", ["keepsight", *(str(a) for a in arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = self._capsys.readouterr()
        return Printed(code, out, err)

    def picture(self, name: str, shade: int = 100, kind: str | None = None, mode: str = "RGB") -> Path:
        """A small picture that differs with its shade."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((12, 12, 3), shade % 256, np.uint8)
        pixels[shade % 12, :6] = 255 - shade % 256
        Image.fromarray(pixels).convert(mode).save(path, kind)
        return path

    def folder(self, name: str = "data", classes: tuple[str, ...] = ("a", "b"), each: int = 6) -> Path:
        """An image folder that is in order."""
        for number, label in enumerate(classes):
            for i in range(each):
                self.picture(f"{name}/{label}/{i}.png", 90 * number + 7 * i)
        return self.root / name

    def with_file(self, name: str, content: bytes) -> Path:
        """An image folder that is in order but for one file of class a."""
        folder = self.folder()
        (folder / "a" / name).write_bytes(content)
        return folder

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def table(self, text: str | bytes, name: str = "t.csv") -> Path:
        """A table beside the folder data/."""
        self.folder()
        return self.write(name, text)


@pytest.fixture
def work(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KEEPSIGHT_CACHE", str(tmp_path / ".cache"))
    before, level = list(log.handlers), log.level
    yield Work(tmp_path, capsys, monkeypatch)
    for handler in list(log.handlers):
        if handler not in before:
            log.removeHandler(handler)
    log.setLevel(level or logging.NOTSET)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is that large, with next to no content."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """A GIF of a few bytes with a screen and a frame of 65535 x 65535 px."""
    side = struct.pack("<HH", 65535, 65535)
    return b"GIF89a" + side + b"\x80\x00\x00" + b"\x00" * 6 + b",\x00\x00\x00\x00" + side + b"\x00\x02\x02L\x01\x00;"


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def damaged_png() -> bytes:
    content = bytearray(saved(noise(), "PNG"))
    content[len(content) // 2] ^= 255
    return bytes(content)


class Evil:
    """What a pickle can do: here it leaves a file behind if it is ever run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def npy(array: object, **options: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), **options)
    return file.getvalue()


def evil_npy(work: Work) -> Path:
    return work.with_file("x.npy", npy(np.array([Evil(work.root / "EXECUTED")], dtype=object), allow_pickle=True))


def evil_weights(work: Work, suffix: str = ".pth") -> Path:
    return work.write(f"evil{suffix}", pickle.dumps({"w": Evil(work.root / "EXECUTED")}))


def evil_torch(work: Work) -> Path:
    torch.save({"w": Evil(work.root / "EXECUTED")}, work.root / "evil.pt")
    return work.root / "evil.pt"


def tensors(work: Work, name: str = "w.safetensors") -> Path:
    (work.root / name).parent.mkdir(parents=True, exist_ok=True)
    save_file({"layer.weight": torch.zeros(2, 2)}, work.root / name)
    return work.root / name


def local(path: Path, architecture: str = "test_vit") -> list[object]:
    return ["--backbone", path, f"backbone.architecture={architecture}", "backbone.size=32"]


def linked(path: Path, target: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def fifo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def run_of(work: Work, text: str) -> Path:
    """A folder that looks like an unfinished run with this config."""
    work.write("old/config.yaml", text)
    work.write("old/splits.json", "{}")
    return work.root / "old"


def model(work: Work, card: object) -> Path:
    work.write("m/model.json", card if isinstance(card, str) else json.dumps(card))
    return work.root / "m"


def laughs() -> str:
    """Nested aliases: a few lines of YAML that stand for a million entries."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 6):
        lists.append(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "split:\n  seed: [" + ",\n    ".join(lists) + "]\n"


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """File permissions hold in the block, even for root: its right to override them is laid down."""

    if sys.platform != "linux":
        yield
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Sets(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = Header(0x20080522, 0), (Sets * 2)()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    before = sets[0].effective
    sets[0].effective = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0


def closed(path: Path, mode: int = 0) -> Path:
    path.chmod(mode)
    return path


Build = Callable[[Work], list[object]]

SOURCES: dict[str, tuple[Build, str]] = {
    "nothing there": (lambda w: ["nowhere"], "There is no folder, CSV file or named data set 'nowhere'"),
    "an embedded name, misspelt": (lambda w: ["mnist5k"], "did you mean 'mnist-5k'?"),
    "a folder's name, misspelt": (lambda w: [str(w.folder("leaves")) + "s"], "leaves'?"),
    "an empty name": (lambda w: [""], "lies in the data folder"),
    "a name that is too long": (lambda w: ["x" * 5000], "There is no data at 'xxx"),
    "a folder of the user that is not there": (lambda w: ["~nobody-has-this-name/x"], "There is no data at '~nobody"),
    "empty folder": (lambda w: [w.write("e/.hidden", "").parent], "holds no images"),
    "empty class folders": (lambda w: [w.write("e/cat/.keep", "").parent.parent], "holds no images"),
    "images without labels": (lambda w: [w.picture("e/1.png").parent], "no labels"),
    "one class": (lambda w: [w.folder(classes=("cat",))], "one class only ('cat')"),
    "a file of another kind": (lambda w: [w.write("notes.txt", "hello")], "notes.txt is a file of an unknown type"),
    "a pipe": (lambda w: [fifo(w.root / "pipe")], "pipe is a file of an unknown type"),
    "a device": (lambda w: ["/dev/zero"], "/dev/zero is a file of an unknown type"),
    "a link to itself": (lambda w: [linked(w.root / "loop", "loop")], "loop"),
    "links that lead nowhere only": (lambda w: [linked(w.root / "e/a/x.png", "gone.png").parent.parent], "1 links"),
    "a folder that is linked into itself": (lambda w: [linked(w.root / "e/a/again", "..").parent.parent], "no images"),
    "two classes that differ in case": (lambda w: [w.folder(classes=("Cat", "cat"))], "differ in upper and lower case"),
    "two classes that look the same": (
        lambda w: [w.folder(classes=(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")))],
        "differ in upper and lower case",
    ),
    "a class of blanks": (lambda w: [w.folder(classes=("a", " "))], "class with an empty name"),
    "a file name that is no text": (
        lambda w: [Path(os.fsdecode(os.fsencode(w.folder()) + b"/a/\xff.png")).write_bytes(b"x") and w.root / "data"],
        "is not valid UTF-8",
    ),
    "a class in the test part only": (
        lambda w: [w.folder("d/train"), w.folder("d/test", ("a", "b", "c"))] and [w.root / "d"],
        "no labelled training image of 1 of its classes ('c')",
    ),
    "test images without a label": (
        lambda w: [w.folder("d/train"), w.folder("d/test"), w.picture("d/test/x.png")] and [w.root / "d"],
        "outside of class folders",
    ),
    "split folders without train": (
        lambda w: [w.folder("d/val"), w.folder("d/test")] and [w.root / "d"],
        "no train folder",
    ),
    "two validation folders": (
        lambda w: [w.folder("d/train"), w.folder("d/val"), w.folder("d/valid")] and [w.root / "d"],
        "two folders for one part",
    ),
    "one image a class, one to be tested on": (lambda w: [w.folder(each=1), "--test", 1], "cannot be held out"),
    "one image a class, one to validate on": (
        lambda w: [w.folder(each=1), "split.validation=0.5"],
        "needs a class with two labels",
    ),
    "a folder called x.csv without images": (lambda w: [w.write("x.csv/a/.keep", "").parent.parent], "holds no images"),
}

TABLES: dict[str, tuple[str | bytes, str]] = {
    "empty table": ("", "is empty"),
    "header only": ("path,label\n", "has a header but no rows"),
    "no label column": ("path,colour\ndata/a/0.png,red\n", "has no label column"),
    "no path column": ("id,label\n1,a\n", "has no path column"),
    "no header": ("data/a/0.png,a\ndata/b/0.png,b\n", "has no path column"),
    "two label columns": ("path,label,label\ndata/a/0.png,a,b\n", "2 columns called 'label'"),
    "a cell too many": ("path,label\ndata/a/0.png,a,b\n", "Row 2"),
    "a missing image": ("path,label\ndata/a/0.png,a\ndata/a/99.png,b\n", "data/a/99.png, which is not there"),
    "a folder as an image": ("path,label\ndata/a,a\ndata/b/0.png,b\n", "which is not there"),
    "a device as an image": ("path,label\n/dev/zero,a\ndata/b/0.png,b\n", "/dev/zero, which is not there"),
    "a path with a NUL": ("path,label\ndata/a\0/0.png,a\ndata/b/0.png,b\n", "Row 2"),
    "a path that is too long": (f"path,label\n{'x' * 300}.png,a\ndata/b/0.png,b\n", "Row 2"),
    "path traversal": ("path,label\n../../etc/passwd,a\ndata/b/0.png,b\n", "leaves the table's directory through '..'"),
    "hidden path traversal": ("path,label\ndata/../../x.png,a\ndata/b/0.png,b\n", "leaves the table's directory"),
    "no path": ("path,label\n,a\ndata/b/0.png,b\n", "Row 2"),
    "one image, two labels": ("path,label\ndata/a/0.png,a\ndata/a/0.png,b\n", "with different labels (a; b)"),
    "one image, two spellings, two labels": ("path,label\ndata/a/0.png,a\n./data//a/0.png,b\n", "different labels"),
    "one image, two splits": ("path,label,split\ndata/a/0.png,a,train\ndata/a/0.png,a,test\n", "different splits"),
    "classes that differ in case": ("path,label\ndata/a/0.png,Cat\ndata/b/0.png,cat\n", "differ in upper and lower"),
    "an unknown split": ("path,label,split\ndata/a/0.png,a,trian\n", "has the split 'trian'"),
    "a test image without label": ("path,label,split\ndata/a/0.png,,test\n", "is in the test split but has no label"),
    "no label at all": ("path,label\ndata/a/0.png,\ndata/b/0.png,\n", "no labels"),
    "all labels in the test": (
        "path,label,split\ndata/a/0.png,a,test\ndata/b/0.png,b,test\n",
        "no labels outside of its val and test parts",
    ),
    "UTF-16": ("path,label\ndata/a/0.png,a\n".encode("utf-16"), "is not UTF-8"),
    "Latin-1": ("path,label\ndata/a/0.png,Käse\n".encode("latin-1"), "is not UTF-8"),
    "a quote that is never closed": ('path,label\n"data/a/0.png,a\ndata/b/0.png,b\n', "Row 2"),
    "a cell without end": ("path,label\n" + "x" * 200_000 + ",a\n", "is not a readable table"),
}

PICTURES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "text named .png": ("x.png", lambda: b"hello", "content is none of"),
    "a page named .jpg": ("x.jpg", lambda: b"<!DOCTYPE html><svg/>", "content is none of"),
    "zero bytes": ("x.png", lambda: b"", "it is empty (0 bytes)"),
    "PostScript named .png": (
        "x.png",
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "content is none of",
    ),
    "truncated JPEG": ("x.jpg", lambda: saved(noise(), "JPEG")[:-700], "truncated or damaged"),
    "truncated PNG": ("x.png", lambda: saved(noise(), "PNG")[:-3000], "truncated or damaged"),
    "truncated WebP": ("x.webp", lambda: saved(noise(), "WEBP")[:-300], "cannot be read"),
    "truncated BMP": ("x.bmp", lambda: saved(noise(), "BMP")[:-3000], "truncated or damaged"),
    "truncated TIFF": ("x.tif", lambda: saved(noise(), "TIFF")[:-3000], "cannot be read"),
    "a changed byte in a PNG": ("x.png", damaged_png, "truncated or damaged"),
    "the head of a PNG": ("x.png", lambda: b"\x89PNG\r\n\x1a\n", "cannot be read"),
    "a header that promises 3.6 gigapixels": (
        "x.png",
        lambda: png_header(60_000, 60_000),
        "more than 89,478,485 pixels",
    ),
    "a header with zero width": ("x.png", lambda: png_header(0, 5), "cannot be read"),
    "an animation that promises 4.3 gigapixels": ("x.gif", gif_bomb, "more than 89,478,485 pixels"),
    "100 megapixels": ("x.png", lambda: saved(Image.new("1", (10_000, 10_000)), "PNG"), "more than 89,478,485 pixels"),
    "floating-point pixels": (
        "x.tif",
        lambda: saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        "without a defined range",
    ),
    "32-bit integers": (
        "x.tif",
        lambda: saved(Image.fromarray(np.full((8, 8), 70_000, np.int32)), "TIFF"),
        "outside 0..65535",
    ),
    "an array of one dimension": ("x.npy", lambda: npy(np.zeros(5, np.uint8)), "cannot be read"),
    "an array of floats without a range": ("x.npy", lambda: npy(np.zeros((5, 5), np.float32)), "cannot be read"),
    "a truncated array": ("x.npy", lambda: npy(np.zeros((50, 50), np.uint8))[:-9], "cannot be read"),
    "an array of text": ("x.npy", lambda: npy(np.array([["a", "b"]])), "cannot be read"),
}

SETTINGS: dict[str, tuple[list[object], str]] = {
    "misspelt key": (["sed=3"], "There is no setting 'sed': did you mean 'seeds'?"),
    "misspelt inner key": (["finetune_lora.epoch=3"], "did you mean 'epochs'?"),
    "misspelt innermost key": (["finetune_lora.training.optim.learning_rate=3"], "finetune_lora.training.optim"),
    "a key below a number": (["seeds.x=3"], "seeds"),
    "wrong type": (["seeds=three"], "seeds='three' is wrong"),
    "half a seed": (["seeds=1.5"], "seeds=1.5 is wrong"),
    "no seeds": (["seeds=0"], "seeds=0 is wrong"),
    "a negative number of seeds": (["--seeds", -1], "seeds=-1 is wrong"),
    "negative learning rate": (["finetune_lora.training.optim.lr=-0.1"], "lr=-0.1 is wrong"),
    "learning rate of zero": (["finetune_full.training.optim.lr=0"], "lr=0 is wrong"),
    "learning rate NaN": (["finetune_full.training.optim.lr=.nan"], "lr=nan is wrong"),
    "infinite learning rate": (["finetune_full.training.optim.lr=.inf"], "lr=inf is wrong"),
    "no epochs": (["finetune_full.epochs=0"], "epochs=0 is wrong"),
    "an empty batch": (["finetune_full.batch_size=0"], "batch_size=0 is wrong"),
    "an unknown precision": (["finetune_full.training.precision=fp8"], "precision='fp8' is wrong"),
    "momentum of one": (["finetune_full.training.optim.momentum=1"], "momentum=1 is wrong"),
    "negative folds": (["selection_folds=-1"], "selection_folds=-1 is wrong"),
    "a key without a value": (["seeds"], "'seeds' is not understood"),
    "a value without a key": (["=3"], "'=3' is not understood"),
    "an empty value": (["seeds="], "seeds=None is wrong"),
    "a bracket that is never closed": (["methods=[probe"], "is not valid YAML"),
    "an object in a value": (["seeds=!!python/object/apply:os.mkdir [EXECUTED]"], "is not valid YAML"),
    "unknown method": (["--methods", "magic"], "'magic' is wrong"),
    "a method twice": (["--methods", "probe,probe"], "methods"),
    "no method": (["--methods", ","], "methods"),
    "unknown readout pool": (["--readout", "2:gird2"], "is not understood"),
    "readout block zero": (["--readout", "0:cls"], "is not understood"),
    "empty readout": (["--readout", ""], "is not understood"),
    "readout block too high": (["--readout", "99:cls"], "it has blocks 1 to"),
    "readout block too low": (["--readout", "-99:cls"], "it has blocks 1 to"),
    "unknown backbone": (["--backbone", "vit_smal_patch14_dinov2"], "did you mean vit_small_patch14_dinov2"),
    "backbone of nonsense": (["--backbone", "\x1b[31m"], "There is no backbone"),
    "weights that are not there": (["--backbone", "none.safetensors"], "none.safetensors"),
    "size that is no multiple of the patch": (["--size", 33], "33"),
    "size zero": (["--size", 0], "size=0 is wrong"),
    "negative size": (["--size", -32], "size=-32 is wrong"),
    "a size of 100,000 px": (["--size", 100_000], "size=100000 is wrong"),
    "unknown fit": (["backbone.fit=stretch"], "fit='stretch' is wrong"),
    "an argument that the architecture does not take": (["backbone.timm_args={nonsense: 1}"], "cannot be built"),
    "fewer labels than classes": (["--labels", 1], "labels=1 is fewer than the 2 classes"),
    "no labels": (["--labels", 0], "labels=0 is wrong"),
    "a test share above one": (["--test", 1.5], "1.5"),
    "a negative test share": (["--test", -0.2], "-0.2"),
    "more test images than there are": (["--test", 5000], "cannot be held out"),
    "a validation share of one": (["split.validation=1"], "validation=1 is wrong"),
    "a negative split seed": (["split.seed=-1"], "seed=-1 is wrong"),
    "config that is not there": (["--config", "no.yaml"], "no.yaml cannot be read"),
    "config that is a folder": (["--config", "data"], "data cannot be read"),
    "misspelt option": (["--lables", 10], "--labels"),
    "an option of the wrong type": (["--seeds", "abc"], "--seeds"),
    "an option without its value": (["--seeds"], "--seeds"),
}

CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "invalid YAML": ("seeds: [1\n", "is not valid YAML"),
    "a list": ("- seeds\n", "must hold 'key: value' lines, found list"),
    "empty": ("", "must hold 'key: value' lines"),
    "bytes": (b"\xff\xfe\x00", "is not valid YAML"),
    "an object that would run code": ("seeds: !!python/object/apply:os.mkdir [EXECUTED]\n", "is not valid YAML"),
    "a key of an older version": ("data: x\nrepeats: 3\n", "There is no setting 'repeats'"),
    "a section that is a number": ("split: 3\n", "split=3 is wrong"),
    "a million laughs": (laughs(), "split.seed="),
    "a very long value": (f"split: {{seed: {'9' * 100_000}x}}\n", "split.seed='999"),
    "a number of 100,000 digits": (f"split: {{seed: {'9' * 100_000}}}\n", "c.yaml is not valid YAML"),
    "nested without end": ("split: " + "[" * 20_000, "c.yaml is not valid YAML"),
    "a number as a key": ("3: 4\n", "3"),
}

OUTS: dict[str, tuple[Build, str]] = {
    "a file": (lambda w: [w.write("thesis.txt", "important")], "is a file"),
    "below a file": (lambda w: [w.write("thesis.txt", "important") / "run"], "thesis.txt"),
    "a folder with other things": (lambda w: [w.write("o/thesis.txt", "important").parent], "holds no run"),
    "the data folder": (lambda w: [w.root / "data"], "lies in the data folder"),
    "inside the data folder": (lambda w: [w.root / "data/a/run"], "lies in the data folder"),
    "a run of another configuration": (
        lambda w: [run_of(w, "data: x\nbackbone: {}\nmethods: [knn]\nsplit: {}\n")],
        "another configuration",
    ),
    "a run of an older version": (
        lambda w: [run_of(w, "data: x\nbackbone: {}\nmethods: [knn]\nsplit: {}\nrepeats: 3\n")],
        "another configuration",
    ),
    "a place where nothing can be made": (lambda w: ["/proc/keepsight/run"], "/proc"),
    "a folder that is read-only": (lambda w: [closed(w.write("o/.keep", "").parent, 0o555)], "o"),
    "below a folder that is read-only": (lambda w: [closed(w.write("o/.keep", "").parent, 0o555) / "run"], "o"),
    "a name that is too long": (lambda w: [w.root / ("x" * 300)], "xxx"),
}

WEIGHTS: dict[str, tuple[Build, str]] = {
    "pickled code": (lambda w: local(evil_weights(w)), "evil.pth"),
    "pickled code as a zip": (lambda w: local(evil_torch(w)), "pickled code, which keepsight never runs"),
    "pickled code named .safetensors": (lambda w: local(evil_weights(w, ".safetensors")), "evil.safetensors"),
    "text": (lambda w: local(w.write("w.pth", "hello")), "damaged or not a weight file"),
    "truncated": (lambda w: local(w.write("t.safetensors", tensors(w).read_bytes()[:-5])), "damaged"),
    "a header that promises exabytes": (lambda w: local(w.write("w.safetensors", b"\xff" * 7 + b"\x0f{}")), "damaged"),
    "empty": (lambda w: local(w.write("w.safetensors", b"")), "damaged"),
    "a suffix that is none": (lambda w: local(w.write("w.onnxx", b"x")), "w.onnxx"),
    "weights of another architecture": (lambda w: local(tensors(w)), "fill only 0 of"),
    "an unknown architecture": (lambda w: local(tensors(w), "vit_smal_patch14"), "vit_smal_patch14"),
    "no architecture": (lambda w: ["--backbone", tensors(w)], "architecture"),
    "a folder with two files": (
        lambda w: local(tensors(w, "d/1.safetensors").parent) + [tensors(w, "d/2.safetensors")][:0],
        "2 .safetensors",
    ),
    "a folder without weights": (lambda w: local(w.write("d/readme.txt", "").parent), "holds no weights"),
}

OTHERS: dict[str, tuple[Build, str]] = {
    "no such command": (lambda w: ["tunee", w.folder()], "tune"),
    "no data": (lambda w: ["tune"], "DATA"),
    "predict without a model": (lambda w: ["predict", w.folder(), w.root / "data/a"], "There is no tuned model"),
    "predict with a model that is no JSON": (lambda w: ["predict", model(w, "{"), w.folder()], "damaged or incomplete"),
    "predict with a model that is a list": (lambda w: ["predict", model(w, []), w.folder()], "damaged or incomplete"),
    "predict with a model of another format": (
        lambda w: ["predict", model(w, {"format": 99}), w.folder()],
        "format 99",
    ),
    "predict with a model that lacks parts": (lambda w: ["predict", model(w, {"format": 1}), w.folder()], "damaged"),
    "backbones that match nothing": (lambda w: ["backbones", "no-such-thing"], "No backbone matches"),
}


def all_cases() -> dict[str, Build]:
    """Every case as a command line that must be refused."""
    cases: dict[str, tuple[Build, str]] = {}

    for name, (build, words) in SOURCES.items():
        cases[f"source: {name}"] = (lambda w, b=build: _tune(w, *b(w)), words)
    for name, (text, words) in TABLES.items():
        cases[f"table: {name}"] = (lambda w, t=text: _tune(w, w.table(t)), words)
    for name, (file, content, words) in PICTURES.items():
        cases[f"picture: {name}"] = (lambda w, f=file, c=content: _tune(w, w.with_file(f, c())), words)
    cases["picture: an array with code in it"] = (lambda w: _tune(w, evil_npy(w)), "x.npy")
    cases["picture: unreadable"] = (
        lambda w: [closed(w.picture("data/a/0.png"))] and _tune(w, w.folder("data", ("b",)).parent / "data"),
        "permission",
    )
    for name, (extra, words) in SETTINGS.items():
        cases[f"setting: {name}"] = (lambda w, e=extra: _tune(w, w.folder(), *e), words)
    for name, (text, words) in CONFIGS.items():
        cases[f"config: {name}"] = (lambda w, t=text: _tune(w, w.folder(), "--config", w.write("c.yaml", t)), words)
    for name, (build, words) in OUTS.items():
        cases[f"out: {name}"] = (lambda w, b=build: ["tune", w.folder(), *QUICK, "--out", *b(w)], words)
    for name, (build, words) in WEIGHTS.items():
        cases[f"weights: {name}"] = (lambda w, b=build: ["tune", w.folder(), "--out", w.root / "out", *b(w)], words)
    for name, (build, words) in OTHERS.items():
        cases[f"command: {name}"] = (build, words)
    return cases


def _tune(work: Work, *arguments: object) -> list[object]:
    """A quick job with a case's own arguments, which replace the job's."""
    data, *own = arguments
    flags = {
        "--backbone": "backbone.",
        "--size": "backbone.size",
        "--readout": "readout",
        "--seeds": "seeds",
        "--methods": "methods",
    }
    replaced = tuple(start for flag, start in flags.items() if flag in own)
    keys = [text.partition("=")[0] for text in map(str, own)]
    rest = [text for text in QUICK if not text.startswith(replaced or "-") and text.partition("=")[0] not in keys]
    return ["tune", data, *rest, *own, "--out", work.root / "out"]


CASES = all_cases()


def contents(root: Path) -> dict[str, tuple[int, float]]:
    """Everything below, with sizes and times, but for the cache."""
    found = {}
    for place, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != ".cache"]
        for name in [*files, *folders]:
            stat = (Path(place) / name).lstat()
            found[f"{place}/{name}"] = (stat.st_size, stat.st_mtime)
    return found


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_and_writes_nothing(case: str, work: Work) -> None:
    build, words = CASES[case]
    arguments = build(work)
    before = contents(work.root)
    with without_privileges():
        printed = work.run(*arguments)
    assert printed.code == 2, printed.err
    *others, said = printed.err.splitlines()
    assert said.startswith("error: "), printed.err
    assert not any(line.startswith("error: ") or "Traceback" in line for line in others), printed.err
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in others), printed.err  # what was logged on the way
    assert words in said
    assert said.endswith((".", "?"))
    assert len(said) < 1000 + len(str(work.root)) * 4
    assert not re.search(r"[.?!] [A-Z]", said), "more than one sentence"
    assert contents(work.root) == before
    assert not (work.root / "EXECUTED").exists()


def test_there_are_at_least_seventy_cases() -> None:
    assert len(CASES) >= 70


# What looks bad and is fine: the right picture, the right labels.


def animated() -> bytes:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    return saved(red, "GIF", save_all=True, append_images=[blue])


def transparent_palette() -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    return saved(image, "PNG", transparency=1)


def rotated() -> bytes:
    image = Image.new("RGB", (16, 8), "white")
    image.paste((0, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    return saved(image, "PNG", exif=exif)


def close(image: Image.Image, place: tuple[int, int], colour: tuple[int, int, int], within: int = 3) -> bool:
    found = image.getpixel(place)
    assert isinstance(found, tuple)
    return image.mode == "RGB" and all(abs(a - b) <= within for a, b in zip(found, colour, strict=True))


WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
GREY16 = Image.fromarray(np.full((8, 8), 32896, np.uint16))

FINE_PICTURES: dict[str, tuple[str, Callable[[], bytes], Callable[[Image.Image], bool]]] = {
    "an animation gives its first frame": ("x.gif", animated, lambda i: close(i, (4, 4), RED)),
    "CMYK": (
        "x.jpg",
        lambda: saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"),
        lambda i: close(i, (4, 4), RED, 12),
    ),
    "a palette with transparency is put on white": (
        "x.png",
        transparent_palette,
        lambda i: close(i, (4, 4), WHITE) and close(i, (0, 0), RED),
    ),
    "half transparent black becomes grey": (
        "x.png",
        lambda: saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"),
        lambda i: close(i, (4, 4), (127, 127, 127)),
    ),
    "EXIF rotation is applied": (
        "x.png",
        rotated,
        lambda i: i.size == (8, 16) and close(i, (4, 2), BLACK) and close(i, (4, 13), WHITE),
    ),
    "one pixel": ("x.png", lambda: saved(Image.new("RGB", (1, 1), RED), "PNG"), lambda i: i.size == (1, 1)),
    "a thread of pixels": ("x.png", lambda: saved(Image.new("RGB", (1, 3000), RED), "PNG"), lambda i: i.height == 3000),
    "16-bit grey": ("x.png", lambda: saved(GREY16, "PNG"), lambda i: close(i, (4, 4), (128, 128, 128))),
    "black and white": ("x.tif", lambda: saved(Image.new("1", (8, 8), 1), "TIFF"), lambda i: close(i, (4, 4), WHITE)),
    "grey with transparency": (
        "x.png",
        lambda: saved(Image.new("LA", (8, 8), (0, 0)), "PNG"),
        lambda i: close(i, (4, 4), WHITE),
    ),
    "a progressive JPEG": (
        "x.jpeg",
        lambda: saved(Image.new("RGB", (8, 8), RED), "JPEG", progressive=True),
        lambda i: close(i, (4, 4), RED, 12),
    ),
    "a JPEG named .PNG": (
        "x.PNG",
        lambda: saved(Image.new("RGB", (8, 8), RED), "JPEG"),
        lambda i: close(i, (4, 4), RED, 12),
    ),
    "a name in Japanese": (
        "桜 é.png",
        lambda: saved(Image.new("RGB", (8, 8), RED), "PNG"),
        lambda i: close(i, (4, 4), RED),
    ),
    "a name with quotes and a line break": (
        "a'b\"c\nd, e.png",
        lambda: saved(Image.new("RGB", (8, 8), RED), "PNG"),
        lambda i: close(i, (4, 4), RED),
    ),
    "a name like an option": (
        "--out.png",
        lambda: saved(Image.new("RGB", (8, 8), RED), "PNG"),
        lambda i: i.size == (8, 8),
    ),
}


@pytest.mark.parametrize("case", FINE_PICTURES)
def test_a_picture_that_is_fine(case: str, work: Work) -> None:
    name, content, is_right = FINE_PICTURES[case]
    images = load_dataset(work.with_file(name, content())).images
    index = [images.name(i) for i in range(len(images))].index(f"a/{name}")
    assert is_right(images.load(index))


@pytest.mark.filterwarnings("error")
def test_all_pictures_that_are_fine_in_one_run(work: Work) -> None:
    folder = work.folder()
    for number, (name, content, _) in enumerate(FINE_PICTURES.values()):
        (folder / "b" / f"{number}-{name}").write_bytes(content())
    printed = work.run(*_tune(work, folder))
    assert printed.code == 0, printed.err
    assert f"{12 + len(FINE_PICTURES)} images" in printed.err
    printed = work.run("predict", work.root / "out", folder / "b")
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    assert len(rows) == 6 + len(FINE_PICTURES)
    assert any(row["path"].endswith("a'b\"c\nd, e.png") for row in rows)


def strange_entries(work: Work) -> Path:
    """Beside good images: a pipe, a folder and links that are called like images, and folders linked into a circle."""
    folder = work.folder()
    fifo(folder / "a/pipe.png")
    (folder / "a/folder.png").mkdir()
    linked(folder / "a/zero.png", "/dev/zero")
    linked(folder / "a/broken.png", "nowhere.png")
    linked(folder / "a/self.png", "self.png")
    linked(folder / "a/up", "..")
    linked(folder / "b/password.png", "/etc/passwd")
    (folder / "a/.hidden.png").write_bytes(b"no image")
    (folder / "a/Thumbs.db").write_bytes(b"no image")
    return folder


ROWS = "".join(f"data/{c}/{i}.png,{c}\n" for c in "ab" for i in range(3))

FINE_SOURCES: dict[str, tuple[Callable[[Work], Path], int, tuple[str, ...]]] = {
    "pipes, devices, links and loops called like images": (strange_entries, 12, ("a", "b")),
    "a label with a trailing blank": (lambda w: w.table(f"path,label\n{ROWS}data/a/5.png,a \n"), 7, ("a", "b")),
    "semicolons": (lambda w: w.table(f"path;label\n{ROWS.replace(',', ';')}"), 6, ("a", "b")),
    "tabs": (lambda w: w.table(f"path\tlabel\n{ROWS}".replace(",", "\t"), "t.tsv"), 6, ("a", "b")),
    "a byte-order mark": (lambda w: w.table(f"path,label\n{ROWS}".encode("utf-8-sig")), 6, ("a", "b")),
    "Windows line ends": (lambda w: w.table(f"path,label\n{ROWS}".replace("\n", "\r\n")), 6, ("a", "b")),
    "a row that is repeated": (lambda w: w.table(f"path,label\n{ROWS}data/a/0.png,a\n"), 6, ("a", "b")),
    "other columns, upper case": (
        lambda w: w.table("ID,Label,PATH\n1,a,data/a/0.png\n2,b,data/b/0.png\n"),
        2,
        ("a", "b"),
    ),
    "an absolute path": (lambda w: w.table(f"path,label\n{ROWS}{w.root / 'data/a/5.png'},a\n"), 7, ("a", "b")),
    "a row without label": (lambda w: w.table(f"path,label\n{ROWS}data/a/5.png,\n"), 7, ("a", "b")),
    "classes with commas, quotes and line breaks": (
        lambda w: w.table('path,label\ndata/a/0.png,"a ""b"", c"\ndata/b/0.png,"two\nlines"\n'),
        2,
        ('a "b", c', "two\nlines"),
    ),
    "a folder called like a table": (lambda w: w.folder("x.csv"), 12, ("a", "b")),
    "a name with blanks and quotes": (lambda w: w.folder("my 'best' \"data\""), 12, ("a", "b")),
    "one image a class": (lambda w: w.folder(each=1), 2, ("a", "b")),
}


@pytest.mark.parametrize("case", FINE_SOURCES)
def test_a_source_that_is_fine(case: str, work: Work) -> None:
    build, count, classes = FINE_SOURCES[case]
    source = build(work)
    signal.alarm(30)  # a pipe that is opened waits for ever
    try:
        dataset = load_dataset(source)
        for i in range(len(dataset.images)):
            assert dataset.images.load(i).mode == "RGB"
    finally:
        signal.alarm(0)
    assert len(dataset.images) == count
    assert dataset.classes == classes


def test_more_labels_than_images_and_one_image_a_class(work: Work) -> None:
    printed = work.run("tune", work.folder(), *QUICK, "--labels", 500, "--dry-run")
    assert printed.code == 0, printed.err
    assert "fewer than labels=500" in printed.err
    printed = work.run("tune", work.folder("one", each=1), *QUICK, "--dry-run")
    assert printed.code == 0, printed.err
    assert "# test: 0" in printed.out


def test_names_that_look_like_markup(work: Work) -> None:
    work.folder()
    classes = ("<script>alert(1)</script>", "[bold]b[/bold]", "=1+1", 'a "b",\nc')
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["path", "label"])
    for i in range(6):
        for number, name in enumerate(classes):
            picture = work.picture(f"p/<img src=x>{number}-{i}.png", 60 * number + 5 * i)
            writer.writerow([picture.relative_to(work.root), name])
    table = work.write("<b>t.csv", rows.getvalue())
    printed = work.run(*_tune(work, table))
    assert printed.code == 0, printed.err
    report = (work.root / "out" / "report.html").read_text()
    assert "<script>alert" not in report
    assert "<b>t" not in report
    assert "&lt;b&gt;t" in report
    printed = work.run("predict", work.root / "out", work.root / "p")
    assert printed.code == 0, printed.err
    header, *lines = csv.reader(io.StringIO(printed.out))
    assert {f"p({name})" for name in classes} <= set(header)
    assert {line[header.index("label")] for line in lines} <= set(classes)


def test_arrays_with_nan_are_read_once_it_is_said_what_they_mean(work: Work) -> None:
    folder = work.folder()
    pixels = np.zeros((8, 8), np.float32)
    pixels[0, 0], pixels[0, 1] = np.nan, np.inf
    (folder / "a" / "x.npy").write_bytes(npy(pixels))
    ranged = "data_options.pixels.value_range=[0,1]"
    printed = work.run(*_tune(work, folder, ranged))
    assert printed.code == 2
    assert "x.npy" in printed.err
    assert "2 of its values are NaN or infinite" in printed.err
    assert work.run(*_tune(work, folder, ranged, "data_options.pixels.fill=0")).code == 0


def test_fifty_thousand_classes(work: Work) -> None:
    picture = work.picture("p/0.png")
    rows = ["path,label", "p/0.png,class 0"]
    for i in range(1, 50_000):
        if i % 30_000 == 0:  # a file system may limit the links of one file
            picture = work.picture(f"p/{i}.png")
        else:
            os.link(picture, work.root / f"p/{i}.png")
        rows.append(f"p/{i}.png,class {i}")
    table = work.write("many.csv", "\n".join(rows))
    begin = time.monotonic()
    printed = work.run("tune", table, *QUICK, "--labels", 100, "--dry-run")
    assert printed.code == 2
    assert "labels=100 is fewer than the 50000 classes" in printed.err
    assert len(printed.err) < 2000  # what is said of classes is said of a few
    assert time.monotonic() - begin < 60
