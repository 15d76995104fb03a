"""Two networks on the sets of a suite: features of both, and what changed between them. Knows no run and no file of results.

The features before are kept in the user's cache; those after in a folder of the caller's, since nobody else asks for them.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from keepsight.adapters.blocks import switched_off
from keepsight.backbones.open_clip_models import OpenClipBackbone
from keepsight.core import Backbone, Dataset, Pool, Readout, TextTower, processes
from keepsight.core.progress import log
from keepsight.data.transforms import load_batch
from keepsight.evaluate.classification import Floats
from keepsight.evaluate.forgetting import (
    Change,
    accuracy_change,
    block_similarity,
    cross_fitted,
    ece_change,
    mean_change,
    rotated_picture,
)
from keepsight.export.adapter import FusedAdapter
from keepsight.features.cache import FeatureCache
from keepsight.features.extract import Extractor
from keepsight.recipes.forgetting_settings import ForgettingConfig
from keepsight.report.chart_parts import plain
from keepsight.report.forgetting_records import SHOWN, AdapterSwitch, BlockSimilarity, Figure, SetFindings, SetPoints

if TYPE_CHECKING:
    from peft import PeftModel

SWITCHED = 32
"""Images on which the adapter is switched off and on."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The networks that are compared, with the hashes of their weights.

    Attributes:
        before, after: The networks.
        weights_before, weights_after: `Backbone.weights_hash()`.
        text: The text tower that belongs to both, if there is one.
    """

    before: Backbone
    after: Backbone
    weights_before: str
    weights_after: str
    text: TextTower | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """Points [N, 2] of one set before and after (`evaluate.forgetting.rotated_picture`), and their classes."""

    name: str
    before_N2: NDArray[np.float64]
    after_N2: NDArray[np.float64]
    labels_N: NDArray[np.int64]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What `measure` found; `extracted` counts images through the network before."""

    sets: tuple[SetFindings, ...]
    mean: dict[str, Figure]
    pictures: tuple[Picture, ...]
    extracted: int


def figure_of(change: Change) -> Figure:
    """The change as a record, without its draws."""
    return Figure(before=change.before, after=change.after, low=change.low, high=change.high, kind=change.kind)


def points_of(picture: Picture, seed: int) -> SetPoints:
    """The picture as a record: at most `SHOWN` of its points, drawn by the seed, with four digits of their largest coordinate."""
    chosen = np.sort(np.random.default_rng((seed, 7)).permutation(len(picture.labels_N))[:SHOWN])
    both = [points_N2[chosen] for points_N2 in (picture.before_N2, picture.after_N2)]
    reach = max(float(np.abs(points_M2).max(initial=0.0)) for points_M2 in both)
    digits = 3 - math.floor(math.log10(reach)) if reach > 0 else 0
    before, after = ([(float(x), float(y)) for x, y in points_M2.round(digits)] for points_M2 in both)
    return SetPoints(
        name=picture.name,
        before=tuple(before),
        after=tuple(after),
        labels=tuple(picture.labels_N[chosen].tolist()),
        classes=tuple(plain(name) for name in picture.classes),
    )


def measure(pair: Pair, sets: Sequence[Dataset], readout: Readout, config: ForgettingConfig, cache: Path) -> Measured:
    """Changes on every set and their mean; under several processes all must call it, and the main one measures.

    Args:
        pair: The networks.
        sets: Labelled images; every class has as many images as there are folds.
        readout: What k-NN and probe see; blocks counted from the end mean each network's own.
        config: The settings.
        cache: Folder for the features after.
    """
    caches = (
        FeatureCache(pair.weights_before, pair.before.preprocessing, about={"backbone": pair.before.name}),
        FeatureCache(pair.weights_after, pair.after.preprocessing, root=cache),
    )
    extractors = []
    for dataset in sets:
        every, both = np.arange(len(dataset.images)), []
        for network, features in zip((pair.before, pair.after), caches, strict=True):
            extractor = Extractor(network, dataset.images, cache=features)
            extractor.fill(every, _parts(pair, network, readout, config.block_pool))
            both.append(extractor)
        extractors.append((both[0], both[1]))
    extracted = sum(processes.everyone(sum(before.extracted for before, _ in extractors)))
    if not processes.is_main():
        return Measured((), {}, (), extracted)
    changes, findings, pictures = [], [], []
    for number, (dataset, (before, after)) in enumerate(zip(sets, extractors, strict=True)):
        every = np.arange(len(dataset.images))
        x0_NF, x_NF = before.features(every, readout), after.features(every, readout)
        found = _changes(pair, (before, after), (x0_NF, x_NF), dataset, config, number)
        changes.append(found)
        probe = found["probe_accuracy"]
        log.info("%s: linear probe %.1f %% -> %.1f %%", dataset.name, 100 * probe.before, 100 * probe.after)
        findings.append(
            SetFindings(
                name=dataset.name,
                images=len(every),
                classes=len(dataset.classes),
                figures={name: figure_of(change) for name, change in found.items()},
                blocks=tuple(_blocks(pair, (before, after), (x0_NF, x_NF), readout, config)),
            )
        )
        p0_N2, p_N2 = (p.double().numpy() for p in rotated_picture(x0_NF, x_NF))
        pictures.append(Picture(dataset.name, p0_N2, p_N2, dataset.labels, dataset.classes))
    shared = [name for name in changes[0] if all(name in of for of in changes)]
    mean = {name: figure_of(mean_change([of[name] for of in changes])) for name in shared}
    return Measured(tuple(findings), mean, tuple(pictures), extracted)


def _parts(pair: Pair, network: Backbone, readout: Readout, pool: Pool) -> list[tuple[int, Pool]]:
    """Everything that is looked at, so that one pass gives it all."""
    wanted = [*readout.resolved(network.depth).parts, *((block, pool) for block in range(1, network.depth + 1))]
    if pair.text is not None:
        wanted.append((network.depth, "cls"))
    return list(dict.fromkeys(wanted))


def _changes(
    pair: Pair,
    extractors: tuple[Extractor, Extractor],
    features: tuple[Tensor, Tensor],
    dataset: Dataset,
    config: ForgettingConfig,
    number: int,
) -> dict[str, Change]:
    y_N, k, seed = dataset.labels, len(dataset.classes), config.seed
    before, after = (cross_fitted(x_NF, y_N, k, config.rule, seed) for x_NF in features)
    draws = seed + 1000 * number  # another resampling for every set, so that the mean's interval is right
    found = {
        "knn_accuracy": accuracy_change(before.knn_NK, after.knn_NK, y_N, draws),
        "probe_accuracy": accuracy_change(before.probe_NK, after.probe_NK, y_N, draws),
        "probe_ece": ece_change(before.probe_NK, after.probe_NK, y_N, draws),
    }
    if pair.text is not None:
        texts = [config.template.format(name.replace("_", " ")) for name in dataset.classes]
        with torch.inference_mode():
            text_KE = pair.text.encode(texts).cpu()
        said = [_zero_shot(e.backbone, e, text_KE) for e in extractors]
        found["zero_shot_accuracy"] = accuracy_change(said[0], said[1], y_N, draws)
    return found


def _zero_shot(backbone: Backbone, extractor: Extractor, text_KE: Tensor) -> Floats:
    """Cosine similarities [N, K] of images and texts; the largest is the prediction."""
    assert isinstance(backbone, OpenClipBackbone)
    cls_NC = extractor.part(np.arange(len(extractor.images)), backbone.depth, "cls")
    with torch.inference_mode():
        device = next(backbone.parameters()).device
        image_NE = torch.cat(
            [F.normalize(backbone.project(rows.to(device)), dim=1).cpu() for rows in torch.split(cls_NC, 1024)]
        )
    similar: Floats = (image_NE @ text_KE.T).double().numpy()
    return similar


def _blocks(
    pair: Pair,
    extractors: tuple[Extractor, Extractor],
    features: tuple[Tensor, Tensor],
    readout: Readout,
    config: ForgettingConfig,
) -> Iterator[BlockSimilarity]:
    before, after = extractors
    every = np.arange(len(before.images))
    if pair.before.depth == pair.after.depth:
        for block in range(1, pair.before.depth + 1):
            x0_NF, x_NF = (e.part(every, block, config.block_pool) for e in (before, after))
            cka, shuffled = block_similarity(x0_NF, x_NF, config.seed)
            yield BlockSimilarity(readout=f"{block}:{config.block_pool}", cka=cka, shuffled=shuffled)
    cka, shuffled = block_similarity(*features, config.seed)
    yield BlockSimilarity(readout=f"readout {readout}", cka=cka, shuffled=shuffled)


def switch_adapter(
    untouched: Backbone, tuned: Backbone, adapter: FusedAdapter | None, readout: Readout, dataset: Dataset
) -> AdapterSwitch:
    """Features of the first images of a set with the adapter on the untouched weights, switched off and on.

    Without an adapter of its own the tuned network holds it (AdaptFormer, prompts), and is switched itself.
    """
    readout = readout.resolved(untouched.depth)
    chosen = np.arange(min(SWITCHED, len(dataset.images)))
    device = next(untouched.parameters()).device
    images = load_batch(dataset.images, chosen, untouched.preprocessing).to(device)

    def read(backbone: Backbone) -> Tensor:
        with torch.inference_mode():
            return readout.read(backbone(images, readout.blocks)).float().cpu()

    before, after = read(untouched), read(tuned.to(device))
    if adapter is None:  # AdaptFormer or prompts, which are parts of the tuned network
        on = after
        with switched_off(tuned):
            off = read(tuned)
    else:
        with _attached(untouched, adapter) as (backbone, peft_model):
            on = read(backbone)
            with peft_model.disable_adapter():
                off = read(backbone)
    largest = before.abs().max().clamp(min=1e-30)
    return AdapterSwitch(
        images=len(chosen),
        off_identical=torch.equal(off, before),
        off_deviation=((off - before).abs().max() / largest).item(),
        on_deviation=((on - after).abs().max() / largest).item(),
    )


@contextmanager
def _attached(untouched: Backbone, adapter: FusedAdapter) -> Iterator[tuple[Backbone, PeftModel]]:
    """A copy of the untouched backbone with the saved adapter in it, and PEFT's model that switches it."""
    from peft import PeftModel

    backbone = copy.deepcopy(untouched).eval()
    with tempfile.TemporaryDirectory(prefix="keepsight-") as folder, warnings.catch_warnings():
        # PEFT asks models of transformers by a name they are about to drop, and warns of names it does not know.
        warnings.simplefilter("ignore")
        adapter.save(Path(folder))
        peft_model = PeftModel.from_pretrained(backbone.network, folder).eval()
        yield backbone, peft_model
