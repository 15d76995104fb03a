"""WebDataset shards: .tar files in which the members of one image share a name. Knows nothing of splitting.

    KEY.jpg KEY.cls | KEY.png KEY.txt | KEY.webp KEY.json ...

The members are listed once and then read in place, in any order: nothing is ever extracted.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from keepsight.core import Dataset, ImageList, UserError
from keepsight.core.images import Part
from keepsight.core.progress import log
from keepsight.data.columns import dataset_of_columns, part_of_name
from keepsight.data.files import EXTENSIONS, StoredImages
from keepsight.data.options import DEFAULTS, DataConfig

_BLOCK = 512
_LARGEST_LABEL = 2**20  # bytes; a label member is read whole
_MOST_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class _Member:
    """Where the bytes lie."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes, without the rest of the shard."""
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise UserError(
                f"The shard {self.shard} cannot be read ({error.strerror}): was it moved or deleted?"
            ) from error
        if len(content) != self.size:
            raise UserError(f"The shard {self.shard} changed while it was used: write or fetch it again.")
        return content


@dataclass(frozen=True, slots=True)
class _Sample:
    """The members of one key, by extension in lower case."""

    name: str
    part: Part
    members: dict[str, _Member] = field(default_factory=dict)


def read_shards(source: str | Path, options: DataConfig = DEFAULTS) -> Dataset:
    """A .tar file, a folder of them, or a pattern such as `train-{000000..000009}.tar`, in the order of the shards.

    Labels are a .cls or .txt member (whole numbers or text), or `label` in a .json member; a key without one is unlabelled. A shard
    whose name begins with train, val or test gives its images that part.

    Raises:
        UserError: if a shard is missing, damaged, compressed or truncated, a member's name leads out of the archive, a key comes
            twice in a shard, or there are no images.
    """
    shards = _shards(source)
    stored, labels, parts = _columns(source, shards, options)
    return dataset_of_columns(_name(source, shards), stored, labels, parts, str(source))


def read_shard_texts(source: str | Path, options: DataConfig = DEFAULTS) -> tuple[ImageList, list[str | None]]:
    """Images, and the text of the .txt member of each (None where there is none); otherwise as `read_shards`."""
    stored, texts, _ = _columns(source, _shards(source), options.model_copy(update={"label_column": "txt"}))
    return stored, texts


def _columns(source: str | Path, shards: list[Path], options: DataConfig) -> tuple[StoredImages, list[Any], list[Part]]:
    """Images, labels and parts, sample by sample."""
    samples = [sample for shard in shards for sample in _samples(shard)]
    images, labels, names, parts = [], [], [], []
    left_out = 0
    for sample in samples:
        extension = _image_extension(sample, options)
        if extension is None:
            left_out += 1
            continue
        images.append(sample.members[extension])
        labels.append(_label(sample, options))
        names.append(f"{sample.name}.{extension}")
        parts.append(sample.part)
    if not images:
        wanted = f".{options.image_column}" if options.image_column else ", ".join(sorted(EXTENSIONS))
        raise UserError(f"{source} holds no images: expected members such as KEY.jpg and KEY.cls (images: {wanted}).")
    if left_out:
        log.warning("%s: %d samples without an image were left out.", source, left_out)
    return StoredImages(len(images), lambda i: images[i].read(), lambda i: names[i], options.pixels), labels, parts


def shard_files(folder: Path) -> list[Path]:
    """The .tar files directly in a folder."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for: {000..012} counts, with the same number of digits, and {a,b} lists.

    Example:
        >>> expand("{train,val}-{09..10}.tar")
        ['train-09.tar', 'train-10.tar', 'val-09.tar', 'val-10.tar']
    """
    pieces: list[Iterable[str]] = []
    total = 1
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        choices = [piece]
        if span := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece):
            first, last = int(span[1]), int(span[2])
            if last - first >= _MOST_SHARDS:
                raise UserError(
                    f"The pattern {pattern!r} stands for more than {_MOST_SHARDS:,} shards: check its numbers."
                )
            choices = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
        elif piece.startswith("{") and "," in piece:
            choices = piece[1:-1].split(",")
        total *= len(choices)
        if total == 0 or total > _MOST_SHARDS:
            raise UserError(
                f"The pattern {pattern!r} stands for no shard, or for more than {_MOST_SHARDS:,}: check its numbers."
            )
        pieces.append(choices)
    return ["".join(names) for names in itertools.product(*pieces)]


def _shards(source: str | Path) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return shard_files(path)
    shards = [path] if path.exists() else [Path(name) for name in expand(str(path))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(
                f"The shard {shard} does not exist ({len(shards)} shards were asked for): check {str(source)!r}."
            )
    return shards


def _name(source: str | Path, shards: list[Path]) -> str:
    path = Path(source)
    if path.is_dir():
        return path.resolve().name or "data"
    return shards[0].stem if len(shards) == 1 else shards[0].resolve().parent.name or "data"


def _samples(shard: Path) -> list[_Sample]:
    """The samples of one shard, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    part = part_of_name(shard.name)
    size, end, others = shard.stat().st_size, 0, 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = archive.offset  # where the next header begins
                if not member.isreg() or member.issparse():
                    others += not member.isdir()
                    continue
                _add(samples, shard, part, member)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The shard {shard} is no uncompressed .tar file, or a damaged one ({reason}): unpack .tar.gz, or write it again."
        ) from error
    with shard.open("rb") as file:  # tarfile takes a damaged or cut-off header for the end
        file.seek(end)
        if end > size or any(file.read(_BLOCK)) or end + _BLOCK > size:
            raise UserError(
                f"The shard {shard} is truncated or damaged after byte {min(end, size):,}: write or fetch it again."
            )
    if others:
        log.warning("%s: %d links and other members that are no files were left out.", shard, others)
    return list(samples.values())


def _add(samples: dict[str, _Sample], shard: Path, part: Part, member: tarfile.TarInfo) -> None:
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        raise UserError(
            f"The shard {shard} has a member {member.name!r} that leads out of the archive: write it without such names."
        )
    stem, _, extension = place.name.partition(".")
    if not stem or not extension:  # hidden files, and files without an extension
        return
    key = (place.parent / stem).as_posix()
    sample = samples.setdefault(key, _Sample(f"{shard.name}/{key}", part))
    if extension.lower() in sample.members:
        raise UserError(f"The shard {shard} has two members {member.name!r}: give every image a key of its own.")
    sample.members[extension.lower()] = _Member(shard, member.offset_data, member.size)


def _image_extension(sample: _Sample, options: DataConfig) -> str | None:
    if options.image_column is not None:
        wanted = options.image_column.lower().lstrip(".")
        return wanted if wanted in sample.members else None
    for extension in sample.members:
        if f".{extension.rpartition('.')[2]}" in EXTENSIONS:
            return extension
    return None


def _label(sample: _Sample, options: DataConfig) -> Any:
    """Text, number or None; a .cls member, else .txt, else `label` in .json, or what the option says."""
    wanted = options.label_column
    texts = ("cls", "txt") if wanted is None else (wanted.lower().lstrip("."),)
    for extension in texts:
        if extension in sample.members and texts != ("json",):
            return _text(sample, extension).strip()
    if "json" not in sample.members:
        return None
    key = "label" if wanted is None or wanted.lower() == "json" else wanted
    try:
        content = json.loads(_text(sample, "json"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"The label {sample.name}.json is not readable JSON ({error}): write the shard again."
        ) from error
    label = content.get(key) if isinstance(content, dict) else content
    if label is not None and not isinstance(label, str | int):
        raise UserError(
            f"The label {sample.name}.json holds {type(label).__name__} for {key!r}: a text or a whole number was expected."
        )
    return label


def _text(sample: _Sample, extension: str) -> str:
    member = sample.members[extension]
    if member.size > _LARGEST_LABEL:
        raise UserError(
            f"The label {sample.name}.{extension} has {member.size:,} bytes: a short text or number was expected."
        )
    try:
        return member.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"The label {sample.name}.{extension} is not UTF-8 text: write the shard again.") from error
