"""The readout's choice finds the informative candidate with many, few and no usable labels, and never by luck."""

import numpy as np
import pytest
import torch
from torch import Tensor

from keepsight.core import Pool, Readout
from keepsight.features import auto_readout
from keepsight.features.auto_readout import ReadoutChoice, candidate_readouts, choose_readout, cluster_score
from keepsight.heads.graph import neighbour_graph

CANDIDATES = tuple(Readout(blocks=(block,), pools=("mean",)) for block in range(1, 6))
CLASSES = 4


class World:
    """Features whose block 3 separates the classes; the others by less and less with the distance from it."""

    def __init__(self, labelled: int, unlabelled: int, seed: int, classes: int = CLASSES) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(labelled) % classes
        truth = torch.cat([self.labels, torch.randint(classes, (unlabelled,), generator=self.generator)])
        self.x: dict[int, Tensor] = {}
        for block in range(1, 6):
            centres = torch.randn(classes, 16, generator=self.generator)
            noise = torch.randn(len(truth), 16, generator=self.generator)
            self.x[block] = centres[truth] + (0.35 + 0.6 * abs(block - 3)) * noise
        self.labelled = labelled

    def part(self, block: int, pool: Pool) -> tuple[Tensor, Tensor]:
        assert pool == "mean"
        return self.x[block][: self.labelled], self.x[block][self.labelled :]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("labelled", "unlabelled", "terms"),
    [(4, 300, 1), (8, 300, 3), (40, 300, 3), (40, 0, 3), (500, 50, 3)],
    ids=["one-label", "two-labels", "ten-labels", "no-unlabelled", "many-labels"],
)
def test_finds_the_block_that_separates(labelled: int, unlabelled: int, terms: int, seed: int) -> None:
    world = World(labelled, unlabelled, seed)
    choice = choose_readout(CANDIDATES, world.part, world.labels, CLASSES, seed)
    assert choice.readout == Readout(blocks=(3,), pools=("mean",))
    assert choice.criterion.count(",") == terms - 1
    assert choice.criterion.endswith("(no label used)")
    assert max(choice.scores, key=lambda name: choice.scores[name]) == "3:mean"
    assert len(choice.scores) == len(CANDIDATES)


def test_order_of_candidates_and_names_of_classes_do_not_matter() -> None:
    world = World(12, 200, seed=5)
    plain = choose_readout(CANDIDATES, world.part, world.labels, CLASSES, seed=0)
    turned = choose_readout(CANDIDATES[::-1], world.part, world.labels, CLASSES, seed=0)
    assert plain.scores == turned.scores
    renamed = choose_readout(CANDIDATES, world.part, (world.labels + 1) % CLASSES, CLASSES, seed=0)
    assert renamed.readout == plain.readout


def test_only_the_readouts_that_the_labels_need_win() -> None:
    """Clusters that are not the classes: the label-free term alone is misled, the labels overrule it."""
    generator = torch.Generator().manual_seed(0)
    labels, nuisance = torch.arange(400) % 2, torch.randint(2, (400,), generator=generator)
    centre = torch.randn(1, 8, generator=generator)
    noise = torch.randn(2, 400, 8, generator=generator)
    x = {
        1: torch.where(nuisance[:, None] > 0, centre, -centre) + 0.05 * noise[0],
        2: torch.where(labels[:, None] > 0, centre, -centre) + 0.8 * noise[1],
    }
    for labelled, expected in ((2, 1), (40, 2)):
        choice = choose_readout(
            CANDIDATES[:2], lambda b, _, n=labelled: (x[b][:n], x[b][n:]), labels[:labelled], 2, seed=0
        )
        assert choice.readout.blocks == (expected,)


def test_too_few_images_give_the_documented_default() -> None:
    world = World(4, 0, seed=0)
    candidates = (*CANDIDATES, Readout(blocks=(5,), pools=("cls",)))
    choice = choose_readout(
        candidates, lambda block, _: (world.x[block][:4], world.x[block][:0]), world.labels, CLASSES, seed=0
    )
    assert choice.readout == Readout(blocks=(5,), pools=("cls",))
    assert choice.criterion.startswith("default")
    assert choice.scores == {}


def test_cluster_score_is_the_mean_of_the_largest_eigenvalues() -> None:
    x = torch.nn.functional.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    graph = neighbour_graph(x, 5)
    values = np.sort(np.linalg.eigvalsh(graph.toarray()))[::-1]
    assert cluster_score(graph, 4) == pytest.approx(values[1:4].mean(), abs=1e-4)
    apart = torch.eye(3).repeat(20, 1) + 0.01 * torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    assert cluster_score(neighbour_graph(torch.nn.functional.normalize(apart, dim=1), 5), 3) == pytest.approx(1.0)


def test_a_large_labelled_set_is_thinned_without_losing_rare_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.array([0] * 500 + [1] * 3 + [2] * 50)
    kept = auto_readout._stratified_subset(labels, 60, seed=1)
    assert len(kept) == 60
    assert (np.diff(kept) > 0).all()
    assert np.bincount(labels[kept]).tolist() == [29, 3, 28] or np.bincount(labels[kept]).tolist() == [28, 3, 29]
    monkeypatch.setattr(auto_readout, "LABELLED_AT_MOST", 30)
    world = World(200, 0, seed=2)
    assert choose_readout(CANDIDATES, world.part, world.labels, CLASSES, seed=0).readout.blocks == (3,)


@pytest.mark.parametrize("depth", [1, 2, 5, 12, 24, 40])
def test_candidates_exist_in_the_backbone_and_differ(depth: int) -> None:
    candidates = candidate_readouts(depth)
    assert len({str(c) for c in candidates}) == len(candidates)
    assert all(1 <= block <= depth for c in candidates for block in c.blocks)
    assert Readout(blocks=(depth,), pools=("cls",)) in candidates


def test_a_choice_survives_being_written() -> None:
    choice = ReadoutChoice(readout=CANDIDATES[0], criterion="c", scores={"1:mean": 0.5})
    assert ReadoutChoice.model_validate_json(choice.model_dump_json()) == choice
