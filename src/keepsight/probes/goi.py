"""The probe of grounded object identification: which of four categories is the object in the marked region?

Two ways of saying which region is meant: the region is cut out of the map of features (its patches are averaged), or a frame is
drawn on the picture and the mean of the whole map is read, so that the features themselves must follow the mark.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from keepsight.core import Config, Example, Findings, Fit, Probe, SceneDataset, Score, UserError, View
from keepsight.core.probe import Rows
from keepsight.data.cached_scenes import probe_scenes, train_and_test
from keepsight.data.choices import balanced, draw_options
from keepsight.data.leakage import Stamps, shown_stamps
from keepsight.data.marked_images import Box, MarkConfig, MarkedImages
from keepsight.data.scenes_load import load_scenes
from keepsight.data.splits import stratified_folds
from keepsight.heads.linear import standardisation
from keepsight.heads.logistic import cross_validate, fit_logistic_ladder, row_space

OPTIONS = 4

SHOWN = 12  # examples
AT_ONCE = 128  # images whose maps are in memory


class GoiConfig(Config):
    """Settings of `GoiProbe`.

    Attributes:
        scenes: Scenes with categories, in any format; composed ones by default. Learnt from is the part train, tested on the first
            of test-unseen, test and val that there is.
        train: Most images to learn from.
        test: Most images to test on.
        seed: Of the composition, the choice of images and objects, and the options.
        split: Of composed scenes: the seed by which stamps are held out, that of the scenes that a backbone was tuned on.
        size: Side of the backbone's input, px.
        blocks: What is read, counted from 1 or from the end; by default blocks at two thirds, three quarters and five sixths of a
            deep network (8, 9 and 10 of 12), and the last of one of less than twelve blocks.
        smallest: Objects whose box is smaller than this share of the image's area are left out.
        mark: The frame.
        strengths: Candidates of the classifier's L2 penalty, in units of the features' mean squared length.
        folds: Of the cross-validation that chooses it.
    """

    scenes: Path | None = None
    train: int = Field(default=400, ge=1)
    test: int = Field(default=400, ge=4)
    seed: int = Field(default=0, ge=0)
    split: int = Field(default=0, ge=0)
    size: int = Field(default=112, ge=16)
    blocks: tuple[int, ...] | None = None
    smallest: float = Field(default=0.005, ge=0, lt=1)
    mark: MarkConfig = MarkConfig()
    strengths: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    folds: int = Field(default=4, ge=2)


@dataclass(frozen=True, slots=True)
class _Items:
    """Objects [M]: their image's row in the probe's list, box in shares of the sides [M, 4], and category."""

    rows: Rows
    boxes: NDArray[np.float64]
    truth: Rows

    def only(self, keep: NDArray[np.int64]) -> _Items:
        return _Items(self.rows[keep], self.boxes[keep], self.truth[keep])


@final
class GoiProbe(Probe):
    """Multiple choice among four categories, wrong options balanced, so that guessing is right in one of four.

    A multinomial logistic classifier over all categories learns from the objects of the training images, its penalty chosen by
    cross-validation on them; the answer is the option of the highest score. By region every object counts; a mark is put on one
    object of each image, and the same pictures without it are a baseline: what knowing the picture alone is worth.

    Attributes:
        stamps: Stamps that the test objects of composed scenes show, for `data.leakage.check_leakage`.
        categories: Their names.

    Raises:
        UserError: The scenes cannot be read, or have less than four categories with objects in both parts.
    """

    name = "goi"
    squash = True

    def __init__(self, config: GoiConfig | None = None) -> None:
        self.config = config = config or GoiConfig()
        self.size = self.config.size
        folder = config.scenes or probe_scenes(config.seed, config.split, config.train, config.test)
        dataset = load_scenes(folder)
        train, test, part = train_and_test(dataset, config.train, config.test, config.seed)
        self.stamps: Stamps = shown_stamps(Path(folder), "unseen" if part == "test-unseen" else "seen")
        self._dataset_name = "scenes" if self.config.scenes is None else dataset.name
        self._train, self._test = (_objects(dataset, rows, self.config.smallest) for rows in (train, test))
        self._train = _renumbered(self._train, train, 0)
        self._test = _renumbered(self._test, test, len(train))
        self.categories = self._common(dataset)
        self._mark_items()
        rows = [*train.tolist(), *test.tolist()]
        marked = [*self._marked_train.rows.tolist(), *self._marked_test.rows.tolist()]
        boxes: list[Box] = [_box(each) for each in (*self._marked_train.boxes, *self._marked_test.boxes)]
        self._marks = len(rows)  # the row of the first picture with a mark
        self.images = MarkedImages(
            dataset.images,
            [*rows, *(rows[row] for row in marked)],
            [*([None] * len(rows)), *boxes],
            self.config.mark,
        )

    def _common(self, dataset: SceneDataset) -> tuple[str, ...]:
        """Keep the categories that both parts have, numbered anew."""
        common = np.intersect1d(self._train.truth, self._test.truth)
        if len(common) < OPTIONS:
            raise UserError(
                f"The scenes {dataset.name} have {len(common)} categories with objects both to learn from and to test on, and a "
                f"choice of {OPTIONS} needs as many: use scenes with more categories or images."
            )
        kept = []
        for items in (self._train, self._test):
            items = items.only(np.flatnonzero(np.isin(items.truth, common)))
            kept.append(_Items(items.rows, items.boxes, np.searchsorted(common, items.truth)))
        self._train, self._test = kept
        return tuple(dataset.classes[label] for label in common.tolist())

    def _mark_items(self) -> None:
        """One object of each image is marked; then the options of both kinds of test items are drawn."""
        seed = self.config.seed
        self._marked_train, marked = (_one_each(items, seed) for items in (self._train, self._test))
        kept = [items.only(balanced(items.truth, OPTIONS, seed)) for items in (self._test, marked)]
        if not all(len(items.truth) for items in kept):
            raise UserError(
                "The objects to test on are nearly all of a few categories, so that no balanced choices can be made of them: "
                "use scenes with other test images."
            )
        self._test, self._marked_test = kept
        self._options, self._marked_options = (draw_options(items.truth, OPTIONS, seed) for items in kept)

    def key(self) -> str:
        """See `Probe.key`."""
        about = f"goi 1 {self.config.model_dump_json(exclude={'scenes'})} {self._dataset_name} {self.categories}"
        found = hashlib.sha256(about.encode())
        for index in range(len(self.images)):
            found.update(self.images.content_hash(index))
        for items in (self._train, self._test, self._marked_train, self._marked_test):
            for part in (items.rows, items.boxes, items.truth):
                found.update(part.tobytes())
        found.update(self._options.tobytes() + self._marked_options.tobytes())
        return found.hexdigest()

    def measure(self, view: View, fit: Fit, shuffled: bool = False) -> Findings:
        """See `Probe.measure`. The classifier is solved, not trained by steps, so `fit` is not used."""
        del fit
        blocks = self.config.blocks or deep_blocks(view.depth)
        region, _ = self._answers(
            _regions(view, self._train, blocks),
            _regions(view, self._test, blocks),
            (self._train, self._test, self._options),
            shuffled,
        )
        items = (self._marked_train, self._marked_test, self._marked_options)
        first, count = self._marks, len(self._marked_train.rows)
        rows_T, rows_M = np.arange(first, first + count), np.arange(first + count, len(self.images))
        x_TC, x_MC = whole_means(view, rows_T, blocks), whole_means(view, rows_M, blocks)
        mark, said = self._answers(x_TC, x_MC, items, shuffled)
        x_TC, x_MC = (whole_means(view, some.rows, blocks) for some in items[:2])
        plain, _ = self._answers(x_TC, x_MC, items, shuffled)
        examples = tuple(
            Example(
                row=int(rows_M[place]),
                truth=self.categories[items[1].truth[place]],
                said=self.categories[said[place]],
                right=bool(mark[place]),
            )
            for place in range(min(SHOWN, len(said)))
        )
        return Findings(
            (
                self._score("accuracy (region)", region, self._test),
                self._score("accuracy (mark)", mark, items[1]),
                self._score("accuracy (no mark)", plain, items[1], shown=False),
            ),
            examples,
        )

    def _score(self, metric: str, right: NDArray[np.bool_], items: _Items, shown: bool = True) -> Score:
        values = right[None].astype(np.float64)
        return Score(metric, self._dataset_name, values, units=items.rows, chance=1 / OPTIONS, shown=shown)

    def _answers(
        self, x_NF: Tensor, x_MF: Tensor, items: tuple[_Items, _Items, Rows], shuffled: bool
    ) -> tuple[NDArray[np.bool_], Rows]:
        """Whether each test item is answered rightly [M], and the answers [M]."""
        train, test, options = items
        truth = train.truth
        if shuffled:
            truth = np.random.default_rng((self.config.seed, 3)).permutation(truth)
        logits_MK = self._logits(x_NF, truth, x_MF).numpy()
        place = np.take_along_axis(logits_MK, options, axis=1).argmax(axis=1)
        said = np.take_along_axis(options, place[:, None], axis=1)[:, 0]
        return said == test.truth, said

    def _logits(self, x_NF: Tensor, truth_N: Rows, x_MF: Tensor) -> Tensor:
        """Of all categories [M, K], by a logistic classifier of cross-validated strength; lowest for one that nobody learnt."""
        config = self.config
        learnt, label_N = np.unique(truth_N, return_inverse=True)
        labels_N = torch.from_numpy(label_N)
        mean_F, scale_F = standardisation(x_NF)
        space = row_space((x_NF - mean_F) / scale_F)
        folds = stratified_folds(label_N, config.folds, config.seed)
        best = len(config.strengths) // 2
        if folds:
            best, _ = cross_validate(space, labels_N, len(learnt), config.strengths, folds, tolerance=0.1)
        strength = config.strengths[best] * space.squared_length
        solved = fit_logistic_ladder(space, labels_N, len(learnt), [strength], tolerance=0.01)
        weight_KF, bias_K = solved.coefficients(split=0, strength=0)
        logits_MK = x_NF.new_full((len(x_MF), len(self.categories)), -torch.inf)
        logits_MK[:, torch.from_numpy(learnt)] = ((x_MF - mean_F) / scale_F) @ weight_KF.T + bias_K
        return logits_MK


def deep_blocks(depth: int) -> tuple[int, ...]:
    """The blocks that are read by default.

    Example:
        >>> deep_blocks(12), deep_blocks(4)
        ((8, 9, 10), (-1,))
    """
    if depth < 12:
        return (-1,)
    return tuple(round(depth * share) for share in (2 / 3, 3 / 4, 5 / 6))


def _objects(dataset: SceneDataset, rows: Rows, smallest: float) -> _Items:
    """Single objects of these images that are large enough."""
    images, boxes, truth = [], [], []
    for row in rows.tolist():
        height, width = dataset.sizes[row].tolist()
        objects = dataset.objects[row]
        for box, label, crowd in zip(objects.boxes.astype(np.float64), objects.classes, objects.crowd, strict=True):
            left, top, right, bottom = box / (width, height, width, height)
            if not crowd and (right - left) * (bottom - top) >= smallest:
                images.append(row)
                boxes.append((left, top, right, bottom))
                truth.append(int(label))
    return _Items(
        np.array(images, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(truth, dtype=np.int64),
    )


def _renumbered(items: _Items, rows: Rows, first: int) -> _Items:
    """Rows of the data set as rows of the probe's list, in which `rows` (ascending) begin at `first`."""
    return _Items(first + np.searchsorted(rows, items.rows), items.boxes, items.truth)


def _one_each(items: _Items, seed: int) -> _Items:
    """One object of each image."""
    order = np.random.default_rng((seed, 4)).permutation(len(items.rows))
    _, first = np.unique(items.rows[order], return_index=True)
    return items.only(order[first])


def _box(box: NDArray[np.float64]) -> Box:
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def whole_means(view: View, rows: Rows, blocks: tuple[int, ...]) -> Tensor:
    """Means [B, C] of the maps of images."""
    some = np.array_split(rows, -(-len(rows) // AT_ONCE))
    return torch.cat([view.maps(each, blocks).mean(dim=(2, 3)) for each in some])


def _regions(view: View, items: _Items, blocks: tuple[int, ...]) -> Tensor:
    """Vectors [M, C] of objects: the mean of the map over the box."""
    found = []
    for start in range(0, len(items.rows), AT_ONCE):
        some = items.only(np.arange(start, min(start + AT_ONCE, len(items.rows))))
        rows, place = np.unique(some.rows, return_inverse=True)
        maps = view.maps(rows, blocks)
        found.append(region_means(maps, torch.from_numpy(place), torch.from_numpy(some.boxes).to(maps)))
    return torch.cat(found)


def region_means(maps_BChw: Tensor, image_M: Tensor, boxes_M4: Tensor) -> Tensor:
    """Means [M, C] of maps over boxes: each cell counts by the share of it that the box covers.

    Args:
        maps_BChw: Maps.
        image_M: Which map each box is in.
        boxes_M4: Left, top, right, bottom in shares of the sides.

    Example:
        >>> maps = torch.tensor([[[[1.0, 3.0]]]])
        >>> region_means(maps, torch.tensor([0, 0]), torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0]]))
        tensor([[1.],
                [2.]])
    """
    h, w = maps_BChw.shape[2:]
    cover_Mh, cover_Mw = _cover(boxes_M4[:, 1], boxes_M4[:, 3], h), _cover(boxes_M4[:, 0], boxes_M4[:, 2], w)
    rows = [  # one by one: the maps of all boxes together may be gigabytes
        torch.einsum("chw,h,w->c", maps_BChw[image], down_h, across_w)
        for image, down_h, across_w in zip(image_M.tolist(), cover_Mh, cover_Mw, strict=True)
    ]
    return torch.stack(rows)


def _cover(low_M: Tensor, high_M: Tensor, cells: int) -> Tensor:
    """Shares [M, cells] of the intervals that lie in each cell; they sum to 1."""
    edge = torch.arange(cells, dtype=low_M.dtype)
    low, high = (low_M * cells)[:, None], (high_M * cells)[:, None]
    cover = (torch.minimum(high, edge + 1) - torch.maximum(low, edge)).clamp(min=0)
    return cover / cover.sum(dim=1, keepdim=True).clamp(min=1e-9)
