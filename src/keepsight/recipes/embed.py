"""Features of any images into files: in shards, each written atomically, so that a killed embed goes on with the missing ones.

A folder holds `embed.json` (what the shards are: weights, readout, preprocessing, data) and `part-00000.parquet`, ... with the
columns name, label, part and embedding (a fixed-size list of float32); or `part-00000.npy` [n, F] with the rows' names, labels
and parts in `part-00000.jsonl`. One FILE.parquet or FILE.npy is joined from shards that lie in FILE.shards/ until it is whole.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from keepsight.backbones.load import load_backbone
from keepsight.core import Backbone, Config, Dataset, Preprocessing, Readout, UserError
from keepsight.core.files import make_directory, sweep, write_text
from keepsight.core.progress import Track, log
from keepsight.data.load import load_dataset
from keepsight.data.multilabel import class_text
from keepsight.data.options import DataConfig
from keepsight.data.splits import dataset_digest
from keepsight.export.model import TunedModel
from keepsight.export.shards import Kind, Row, join_shards, shard_shape, write_shard
from keepsight.features.device import this_device
from keepsight.features.stream import stream_batches

MANIFEST = "embed.json"
FORMAT = 1

HASHED_IMAGES = 64
"""Images whose content is part of the data's identity, spread evenly: hashing all would read everything twice."""


class EmbedConfig(Config):
    """How images are embedded.

    Attributes:
        readout: As text; None for a tuned model's own, else the last block's global token.
        size: Input size, px; None for the backbone's own.
        format: Of shards in a folder; one file says it by its ending.
        shard_size: Images a shard, the last one excepted.
        batch_size: Images a forward pass.
        skip_bad: Leave unreadable images out and count them.
        data_options: Columns, sources and pixel values of the data; a tuned model reads pixels as it was trained.
    """

    readout: str | None = None
    size: int | None = Field(default=None, ge=1)
    format: Kind = "parquet"
    shard_size: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    skip_bad: bool = False
    data_options: DataConfig = DataConfig()


class Identity(Config):
    """What the shards in a folder are; shards of another identity are never mixed with them."""

    format: int = FORMAT
    backbone: str
    weights: str
    readout: str
    preprocessing: Preprocessing
    dataset: str
    data: str
    images: int
    kind: Kind
    shard_size: int
    skip_bad: bool


class Manifest(Config):
    """embed.json: the identity, and when all is there the counts."""

    identity: Identity
    finished: bool = False
    rows: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is there now: rows (images), their width F, and images left out as unreadable."""

    rows: int
    width: int
    skipped: int


@dataclass(frozen=True, slots=True)
class _Job:
    backbone: Backbone
    readout: Readout
    dataset: Dataset
    config: EmbedConfig
    identity: Identity
    folder: Path

    def shard(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.{self.identity.kind}"

    @property
    def shards(self) -> int:
        return -(-self.identity.images // self.identity.shard_size)


def embed(
    backbone: Backbone | TunedModel | str | Path,
    data: Dataset | str | Path,
    out: str | Path,
    config: EmbedConfig | None = None,
    *,
    overwrite: bool = False,
) -> Embedded:
    """Write the features of all images, labelled or not, in the order of the data.

    Args:
        backbone: A backbone or tuned model, or the name or folder of one.
        data: A data set, or what `load_dataset` takes.
        out: A folder for shards, or one file that ends in .parquet or .npy (with the rows' names in the .jsonl beside it).
        config: See `EmbedConfig`.
        overwrite: Replace what is in `out`, if it is embeddings.

    Raises:
        UserError: An unreadable image (without skip_bad), or `out` holds something else.
    """
    config, target = config or EmbedConfig(), Path(out)
    single = target.suffix in (".parquet", ".npy")
    kind: Kind = config.format if not single else ("npy" if target.suffix == ".npy" else "parquet")
    _check_target(target, single, overwrite)
    network, readout, options = _source(backbone, config)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, options, check=False)
    identity = Identity(
        backbone=network.name,
        weights=network.weights_hash(),
        readout=str(readout),
        preprocessing=network.preprocessing,
        dataset=dataset.name,
        data=_digest(dataset),
        images=len(dataset.images),
        kind=kind,
        shard_size=config.shard_size,
        skip_bad=config.skip_bad,
    )
    folder = target.with_name(f"{target.name}.shards") if single else target
    job = _Job(network, readout, dataset, config, identity, folder)
    make_directory(folder)
    try:
        with FileLock(folder / ".lock", timeout=0):
            _prepare(job, overwrite)
            done = _write_shards(job)
            if single:
                shards = [job.shard(i) for i in range(job.shards)]
                join_shards(shards, target, {"keepsight": identity.model_dump_json()})
    except Timeout as error:
        raise UserError(f"Another process is writing to {target}: wait for it, or choose another --out.") from error
    if single:
        shutil.rmtree(folder)
    return done


def _check_target(target: Path, single: bool, overwrite: bool) -> None:
    if single and target.exists() and not overwrite:
        raise UserError(f"The output {target} exists already: choose another --out, or replace it with --overwrite.")
    if not single and target.is_file():
        raise UserError(f"The output {target} is a file: give a folder, or a file that ends in .parquet or .npy.")


def _source(backbone: Backbone | TunedModel | str | Path, config: EmbedConfig) -> tuple[Backbone, Readout, DataConfig]:
    """The backbone, the readout (resolved), and how the data is read."""
    if isinstance(backbone, str | Path):
        folder = Path(backbone)
        if any((place / "model.json").is_file() for place in (folder, folder / "model")):
            backbone = TunedModel.load(folder)
        else:
            sized: dict[str, Any] = {} if config.size is None else {"size": config.size}
            backbone = load_backbone(str(backbone), **sized)
    readout, options = Readout(), config.data_options
    if isinstance(backbone, TunedModel):
        readout, options = backbone.readout, options.model_copy(update={"pixels": backbone.pixels})
        backbone = backbone.backbone
    if config.size not in (None, backbone.preprocessing.size):
        raise UserError(
            f"The model takes images of {backbone.preprocessing.size} px, and size={config.size} contradicts it: leave it out."
        )
    chosen = readout if config.readout is None else Readout.parse(config.readout)
    return backbone.eval(), chosen.resolved(backbone.depth), options


def _digest(dataset: Dataset) -> str:
    """Names, classes, labels and parts of all images, and the content of some."""
    digest = hashlib.sha256(dataset_digest(dataset).encode())
    n = len(dataset.images)
    for i in np.unique(np.linspace(0, n - 1, min(n, HASHED_IMAGES)).astype(np.int64)).tolist():
        try:
            digest.update(dataset.images.content_hash(i))
        except UserError:  # it is met again, by name, when its turn comes
            digest.update(b"unreadable")
    return digest.hexdigest()


def _prepare(job: _Job, overwrite: bool) -> None:
    """Make sure that the folder is ours: empty, or with shards of the same identity."""
    path = job.folder / MANIFEST
    others = [entry.name for entry in job.folder.iterdir() if not entry.name.startswith(".")]
    if others and not path.is_file():
        raise UserError(f"The output folder {job.folder} is not empty and holds no embeddings: choose another one.")
    sweep(job.folder)
    if path.is_file():
        found = _read_manifest(path)
        if found is not None and found.identity == job.identity and not overwrite:
            return
        if not overwrite:
            raise UserError(
                f"The folder {job.folder} holds embeddings of {_difference(found, job.identity)}: choose another --out, or replace "
                f"them with --overwrite."
            )
        for shard in list(job.folder.glob("part-*")):
            shard.unlink()
    write_text(path, Manifest(identity=job.identity).model_dump_json(indent=2) + "\n")


def _read_manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


def _difference(found: Manifest | None, wanted: Identity) -> str:
    """What the old embeddings are of, for a person."""
    if found is None:
        return "an unknown kind (embed.json is damaged)"
    old = found.identity.model_dump(mode="json")
    new = wanted.model_dump(mode="json")
    names = {"weights": "other weights", "data": "other data", "preprocessing": "another preprocessing"}
    differing = [name for name in old if old[name] != new[name]]
    return " and ".join(names.get(name, f"another {name} ({old[name]})") for name in differing)


def _write_shards(job: _Job) -> Embedded:
    missing = [i for i in range(job.shards) if not job.shard(i).is_file()]
    if len(missing) < job.shards:
        log.info("%d of %d shards are there already", job.shards - len(missing), job.shards)
    size, total = job.identity.shard_size, job.identity.images
    device = this_device()
    job.backbone.to(device)
    images = sum(min(size, total - i * size) for i in missing)
    with Track("embedding", images, "images") as track:
        for number in missing:
            indices = np.arange(number * size, min((number + 1) * size, total))
            kept, features_NF = _features(job, indices, device, track)
            write_shard(job.shard(number), list(_rows(job.dataset, kept)), features_NF)
    shapes = [shard_shape(job.shard(i)) for i in range(job.shards)]
    rows, width = sum(n for n, _ in shapes), max(f for _, f in shapes)
    if not rows:
        raise UserError(f"None of the {total} images of {job.dataset.name} can be read: there is nothing to embed.")
    done = Manifest(identity=job.identity, finished=True, rows=rows, width=width)
    write_text(job.folder / MANIFEST, done.model_dump_json(indent=2) + "\n")
    return Embedded(rows, width, total - rows)


def _features(
    job: _Job, indices: NDArray[np.int64], device: torch.device, track: Track
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(indices of what could be read [n], features [n, F])."""
    kept, rows = [np.empty(0, np.int64)], []
    batches = stream_batches(
        job.dataset.images, indices, job.backbone.preprocessing, job.config.batch_size, job.config.skip_bad
    )
    for chosen, batch in batches:
        with torch.inference_mode():
            read = job.readout.read(job.backbone(batch.to(device), job.readout.blocks))
        kept.append(chosen)
        rows.append(read.float().cpu().numpy())
        track.advance(len(chosen))
    return np.concatenate(kept), np.concatenate(rows) if rows else np.empty((0, 0), np.float32)


def _rows(dataset: Dataset, indices: NDArray[np.int64]) -> Iterator[Row]:
    """(name, label or None, part) of each image."""
    for i in indices.tolist():
        name = dataset.images.name(i).encode("utf-8", "backslashreplace").decode()
        yield name, class_text(dataset, i), dataset.parts[i]
