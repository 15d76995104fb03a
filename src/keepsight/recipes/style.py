"""A look at what a content-style model calls style: images whose style is swapped, decoded, interpolated, and figures.

The figures are made in `evaluate.style`, the page is drawn by `report.style`; here are the images.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from keepsight.core import UNLABELLED, Dataset, UserError
from keepsight.core.files import make_directory, write_text
from keepsight.core.progress import Track, log
from keepsight.data.load import load_dataset
from keepsight.data.multilabel import require_single_label
from keepsight.data.options import DataConfig
from keepsight.data.subset import subset
from keepsight.evaluate.style import (
    Decomposed,
    decompose,
    nearest_tokens,
    neighbours,
    probe,
    reconstruction,
    style_figures,
    swap,
)
from keepsight.export.model import TunedModel
from keepsight.features.stream import stream_batches
from keepsight.heads.content_style import ContentStyleHead
from keepsight.recipes.style_findings import SHARES, Interpolation, LookedAt, Neighbours, Prototype, StyleFindings
from keepsight.recipes.style_page import write_style_page

Indices = NDArray[np.int64]
Nuisances = Mapping[str, "Sequence[float] | Sequence[str] | NDArray[Any]"]

CONTENTS = 5
"""Contents, at most, that interpolations are shown for, and images whose neighbours are shown."""

NEIGHBOURS = 5
"""Nearest images shown."""


@dataclass(frozen=True, slots=True)
class StyleLook:
    """What `look_at_style` found, and the images it was found on."""

    findings: StyleFindings
    dataset: Dataset

    def write(self, out: str | Path) -> None:
        """style.html and style.json into the folder `out`."""
        folder = make_directory(Path(out))
        write_text(folder / "style.json", self.findings.model_dump_json(indent=2) + "\n")
        write_style_page(folder / "style.html", self.findings, self.dataset.images)


def look_at_style(
    model: TunedModel | str | Path,
    data: Dataset | str | Path,
    *,
    images: int = 10,
    seed: int = 0,
    nuisances: Nuisances | str | Path | None = None,
    skip_bad: bool = False,
    options: DataConfig | None = None,
) -> StyleLook:
    """What a content-style model calls style, on any images (labels are used where there are some, for figures alone).

    Args:
        model: A model whose head has a style part, or the folder of one or of its run.
        data: A data set, or what `load_dataset` takes; its classes are matched with the model's by name.
        images: How many images are swapped with one another: one a class (true class where labels are known, else predicted),
            and more of each where there are fewer classes.
        seed: Of all that is drawn.
        nuisances: What else is known: name -> one value an image (numbers, or texts), or a CSV file whose first column holds the
            images' names.
        skip_bad: Leave unreadable images out and count them.
        options: Columns and sources of the data; pixel values are read as the model was trained.

    Raises:
        UserError: The model has no style part, there are fewer than four images, or an unreadable one (without `skip_bad`).

    Example::

        look = look_at_style("runs/leaves", "leaves/", images=6)
        print(look.findings.swaps.kept, "of", look.findings.swaps.swapped)
        look.write("leaves-style/")
    """
    if images < 2:
        raise UserError(f"At least 2 images are needed to swap their styles, and images={images} asks for fewer.")
    loaded = model if isinstance(model, TunedModel) else TunedModel.load(model)
    head = _style_head(loaded, "this one" if isinstance(model, TunedModel) else f"the one in {model}")
    read_as = (options or DataConfig()).model_copy(update={"pixels": loaded.pixels})
    whole = data if isinstance(data, Dataset) else load_dataset(data, read_as, check=False)
    known = _nuisances(nuisances, whole)
    kept, tokens_ND = _tokens(loaded, head, whole, skip_bad)
    if len(kept) < 4:
        raise UserError(f"The data set {whole.name} has {len(kept)} readable images: a look at style needs at least 4.")
    dataset = subset(whole, kept)
    of = decompose(head, tokens_ND, _labels(loaded, dataset))
    chosen = choose_images(of, images, seed)
    findings = _findings(of, loaded, dataset, chosen, {k: v[kept] for k, v in known.items()}, seed)
    return StyleLook(findings.model_copy(update={"skipped": len(whole.images) - len(kept)}), dataset)


def _style_head(model: TunedModel, which: str) -> ContentStyleHead:
    head = model.head
    if not isinstance(head, ContentStyleHead):
        raise UserError(
            f"Only a model with a style part can be looked at, and {which} was fitted by {model.method}: tune with "
            "methods=[content-style]."
        )
    if not head.shape()["style"]:
        raise UserError(
            f"Only a model with a style part can be looked at, and {which} was fitted by {model.method} without one: tune it with "
            "style and reconstruction."
        )
    return head.cpu().eval()


def _tokens(
    model: TunedModel, head: ContentStyleHead, dataset: Dataset, skip_bad: bool
) -> tuple[Indices, torch.Tensor]:
    """(indices of what could be read [N], tokens [N, D])."""
    device = next(model.backbone.parameters()).device
    readout = model.readout.resolved(model.backbone.depth)
    model.backbone.eval()
    kept, tokens = [np.empty(0, np.int64)], [torch.empty(0)]
    every = np.arange(len(dataset.images))
    with Track("reading", len(every), "images") as track, torch.no_grad():
        batches = stream_batches(dataset.images, every, model.backbone.preprocessing, 64, skip_bad)
        for chosen, batch in batches:
            x_BF = readout.read(model.backbone(batch.to(device), readout.blocks)).float().cpu()
            kept.append(chosen)
            tokens.append(head.token(x_BF))
            track.advance(len(chosen))
    return np.concatenate(kept), torch.cat(tokens[1:]) if len(tokens) > 1 else tokens[0]


def _labels(model: TunedModel, dataset: Dataset) -> Indices:
    """True classes as indices into the model's; UNLABELLED for those it does not know."""
    require_single_label(dataset, "keepsight style")
    position = {name: i for i, name in enumerate(model.classes)}
    table = np.array([position.get(name, UNLABELLED) for name in dataset.classes] + [UNLABELLED], dtype=np.int64)
    labels = table[dataset.labels]  # an unlabelled image, -1, takes the last entry
    if unknown := int(((labels == UNLABELLED) & (dataset.labels != UNLABELLED)).sum()):
        log.warning("%d images have a class that the model does not know: they count as unlabelled here", unknown)
    return labels


def choose_images(of: Decomposed, count: int, seed: int) -> Indices:
    """Different images, as even over the classes as can be, ordered by class; true classes where any is known."""
    class_N = of.labels_N if (of.labels_N != UNLABELLED).any() else of.predicted
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(class_N != UNLABELLED))
    taken: dict[int, int] = {}
    rounds = np.empty(len(order), dtype=np.int64)
    for place, k in enumerate(class_N[order].tolist()):
        rounds[place] = taken.get(k, 0)
        taken[k] = rounds[place] + 1
    chosen = order[np.argsort(rounds, kind="stable")][:count]
    ordered: Indices = chosen[np.argsort(class_N[chosen], kind="stable")]
    return ordered


def _findings(
    of: Decomposed,
    model: TunedModel,
    dataset: Dataset,
    chosen: Indices,
    nuisances: Mapping[str, NDArray[np.generic]],
    seed: int,
) -> StyleFindings:
    swaps = swap(of, chosen, seed)
    classes, some = model.classes, chosen[:: -(-len(chosen) // CONTENTS)]
    styles = int(chosen[0]), int(chosen[-1])
    interpolations = tuple(_interpolation(of, int(i), styles) for i in some)
    prototypes = _prototypes(of, classes)
    near = [
        Neighbours(of=int(i), **{k: tuple(v.tolist()) for k, v in neighbours(of, int(i), NEIGHBOURS).items()})
        for i in some
    ]
    has_label = of.labels_N != UNLABELLED
    target = ("class", of.labels_N) if has_label.any() else ("predicted class", of.predicted)
    probes = [probe(of, name, values, seed) for name, values in (target, *nuisances.items())]
    named = {int(i) for i in chosen} | {i for row in swaps.nearest for i in row}
    named |= {i for p in prototypes for i in p.nearest} | {i for p in interpolations for i in p.nearest}
    named |= {i for n in near for i in (*n.style, *n.content, *n.token)}
    return StyleFindings(
        dataset=dataset.name,
        method=model.method,
        n=len(of.tokens_ND),
        labelled=int(has_label.sum()),
        skipped=0,
        style_axes=of.style_NS.shape[1],
        chosen=tuple(chosen.tolist()),
        swaps=swaps,
        prototypes=prototypes,
        styles=styles,
        interpolations=interpolations,
        neighbours=tuple(near),
        probes=tuple(found for found in probes if found is not None),
        reconstruction=reconstruction(of, seed),
        style=style_figures(of.style_NS),
        images={
            i: LookedAt(
                name=dataset.images.name(i).encode("utf-8", "backslashreplace").decode(),
                predicted=classes[of.predicted[i]],
                label=classes[of.labels_N[i]] if of.labels_N[i] != UNLABELLED else None,
            )
            for i in sorted(named)
        },
    )


def _interpolation(of: Decomposed, content: int, styles: tuple[int, int]) -> Interpolation:
    first_S, last_S = of.style_NS[styles[0]], of.style_NS[styles[1]]
    style_TS = torch.stack([(1 - t) * first_S + t * last_S for t in SHARES])
    content_TK = of.content_NK[[content] * len(SHARES)]
    places, _ = nearest_tokens(of, content_TK, style_TS, [(content, *styles)] * len(SHARES))
    return Interpolation(content=content, nearest=tuple(places[:, 0].tolist()))


def _prototypes(of: Decomposed, classes: Sequence[str]) -> tuple[Prototype, ...]:
    k = len(classes)
    mean_KS = of.style_NS.mean(dim=0).expand(k, -1)
    places, cosines = nearest_tokens(of, torch.eye(k), mean_KS, count=min(NEIGHBOURS, len(of.tokens_ND)))
    return tuple(
        Prototype(of=name, nearest=tuple(row.tolist()), cosines=tuple(values.tolist()))
        for name, row, values in zip(classes, places, cosines, strict=True)
    )


def _nuisances(given: Nuisances | str | Path | None, dataset: Dataset) -> dict[str, NDArray[np.generic]]:
    """One array [N] a name: float64, or texts."""
    if given is None:
        return {}
    columns = _read_columns(Path(given), dataset) if isinstance(given, str | Path) else given
    found: dict[str, NDArray[np.generic]] = {}
    for name, values in columns.items():
        array = np.asarray(values)
        if array.shape != (len(dataset.images),):
            raise UserError(
                f"The nuisance {name!r} has the shape {list(array.shape)}, but one value for each of the "
                f"{len(dataset.images)} images is needed."
            )
        found[name] = array.astype(np.float64) if array.dtype.kind in "fiu" else array.astype(str)
    return found


def _read_columns(path: Path, dataset: Dataset) -> dict[str, list[Any]]:
    """The columns of a CSV file, in the order of the data's images; NaN or '' where an image is not in it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The nuisances {path} cannot be read ({error}): give a CSV file in UTF-8.") from error
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    rows = [row for row in rows if row]
    if len(header) < 2 or any(len(row) != len(header) for row in rows):
        raise UserError(
            f"The nuisances {path} need a header and rows of the same length: names of images, then one column a nuisance."
        )
    by_name = {row[0]: row[1:] for row in rows}
    names = [dataset.images.name(i) for i in range(len(dataset.images))]
    if not any(name in by_name for name in names):
        raise UserError(
            f"None of the names in the first column of {path} is an image of {dataset.name}, which are called like {names[0]!r}."
        )
    found: dict[str, list[Any]] = {}
    for number, column in enumerate(header[1:]):
        texts = [by_name[name][number] if name in by_name else "" for name in names]
        convert = _number if all(_is_number(t) for t in texts if t) else str
        found[column] = [convert(text) for text in texts]
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    return float(text) if text else float("nan")
