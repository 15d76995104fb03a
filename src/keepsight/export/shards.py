"""Files of embeddings: shards as Parquet or NumPy, each written atomically, and their joining. Knows no model and no data set.

A Parquet shard has the columns name, label, part and embedding (a fixed-size list of float32). A NumPy shard is `part-00000.npy`
[n, F] with the rows' names, labels and parts in `part-00000.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from keepsight.core.files import atomic_file, write_text

Kind = Literal["parquet", "npy"]
Row = tuple[str, str | None, str]
"""Name, label (None: unlabelled) and part of an image."""


def write_shard(path: Path, rows: Sequence[Row], features_NF: NDArray[np.float32]) -> None:
    """Write the features [n, F] of n images; the kind is the path's ending."""
    if path.suffix == ".npy":
        lines = [json.dumps({"name": name, "label": label, "part": part}) + "\n" for name, label, part in rows]
        write_text(path.with_suffix(".jsonl"), "".join(lines))  # first: a shard counts as there when its .npy is
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, features_NF, allow_pickle=False)
        return
    columns = [pa.array([row[i] for row in rows], pa.string()) for i in range(3)]
    flat = pa.array(features_NF.reshape(-1), pa.float32())
    embedding = pa.FixedSizeListArray.from_arrays(flat, max(features_NF.shape[1], 1))
    table = pa.table([*columns, embedding], names=["name", "label", "part", "embedding"])
    with atomic_file(path) as temporary:
        parquet.write_table(table, temporary)


def shard_shape(path: Path) -> tuple[int, int]:
    """(rows, F) from the file's header; (0, 0) for a shard of which no image could be read."""
    if path.suffix == ".npy":
        rows, width = np.load(path, mmap_mode="r", allow_pickle=False).shape
        return rows, width
    with parquet.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        return rows, file.schema_arrow.field("embedding").type.list_size if rows else 0


def join_shards(shards: Sequence[Path], target: Path, metadata: Mapping[str, str]) -> None:
    """All shards as one file (for .npy with the .jsonl beside it), one of them in memory at a time.

    Args:
        shards: In order; at least one holds a row.
        target: Ends as they do.
        metadata: Kept in the schema of a Parquet file.
    """
    shapes = {shard: shard_shape(shard) for shard in shards}
    filled = [shard for shard in shards if shapes[shard][0]]
    if target.suffix == ".parquet":
        schema = parquet.read_schema(filled[0]).with_metadata(dict(metadata))
        with atomic_file(target) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            for shard in filled:
                writer.write_table(parquet.read_table(shard).replace_schema_metadata(schema.metadata))
        return
    with atomic_file(target.with_suffix(".jsonl")) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for shard in filled:
            lines.write(shard.with_suffix(".jsonl").read_text(encoding="utf-8"))
    rows, width = sum(shapes[shard][0] for shard in filled), shapes[filled[0]][1]
    with atomic_file(target) as temporary:
        joined = np.lib.format.open_memmap(temporary, "w+", np.float32, (rows, width))
        start = 0
        for shard in filled:
            part = np.load(shard, mmap_mode="r", allow_pickle=False)
            joined[start : start + len(part)] = part
            start += len(part)
        joined.flush()
        del joined
