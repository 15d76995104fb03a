"""The detection transformer: shapes, what noised queries may see, and that images of a batch do not touch one another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from keepsight.heads.attention import LayerConfig
from keepsight.heads.detection import DetrNet, DetrNetConfig, Glimpse, NoisedQueries, drawn, sees
from keepsight.heads.position import cell_centres

SMALL = DetrNetConfig(width=16, decoder_width=16, queries=5, layer=LayerConfig(heads=2, feedforward=16))
LEARNED = SMALL.model_copy(update={"proposed": False, "drawn": False, "glimpse": 0})


def net(config: DetrNetConfig = SMALL, denoises: bool = False) -> DetrNet:
    """Random weights, those that begin at zero included: nothing may hide behind a zero."""
    torch.manual_seed(0)
    made = DetrNet(6, 3, config, denoises).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made


def features(batch: int = 2, h: int = 4, w: int = 5) -> Tensor:
    return torch.randn(batch, 6, h, w, generator=torch.Generator().manual_seed(1))


def noise(present: list[list[bool]], groups: int) -> NoisedQueries:
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor(present)
    boxes = 0.3 + 0.2 * torch.rand(*mask.shape, 4, generator=generator)
    return NoisedQueries(boxes, torch.randint(3, mask.shape, generator=generator), mask, groups)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("task_token", [False, True])
@pytest.mark.parametrize("base", [SMALL, LEARNED])
def test_shapes(base: DetrNetConfig, task_token: bool, background: bool) -> None:
    config = base.model_copy(update={"background": background, "task_token": task_token, "decoder_width": 24})
    out = net(config)(features())
    assert out.logits.shape == (2, 2, 5, 3 + background)
    assert out.boxes.shape == (2, 2, 5, 4)
    assert ((out.boxes > 0) & (out.boxes < 1)).all()
    assert out.proposal_logits.shape == ((2, 20, 3 + background) if config.proposed else (0,))
    assert out.noised_logits.shape == (0,)


def test_a_map_with_fewer_cells_than_queries_gives_one_query_a_cell() -> None:
    assert net()(features(h=2, w=2)).logits.shape == (2, 2, 4, 3)


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"task_token": True}), LEARNED])
def test_images_of_a_batch_do_not_touch(config: DetrNetConfig) -> None:
    model, maps = net(config), features(3)
    together, alone = model(maps), model(maps[1:2])
    torch.testing.assert_close(together.logits[:, 1:2], alone.logits)
    torch.testing.assert_close(together.boxes[:, 1:2], alone.boxes)


def test_ordinary_queries_see_nothing_of_noised_ones() -> None:
    model = net(denoises=True)
    plain, noised = model(features()), model(features(), noise([[True] * 6] * 2, 3))
    torch.testing.assert_close(noised.logits, plain.logits)
    torch.testing.assert_close(noised.boxes, plain.boxes)
    assert noised.noised_logits.shape == (2, 2, 6, 3)


def test_groups_do_not_see_each_other_and_absent_places_are_seen_by_none() -> None:
    model, queries = net(denoises=True), noise([[True, False] * 2, [True, True] * 2], 2)
    before = model(features(), queries)
    other = replace(queries, boxes=queries.boxes.clone(), classes=queries.classes.clone())
    other.boxes[:, 3] = 0.9  # the second place of the second group, absent in the first image
    other.classes[:, 3] = (other.classes[:, 3] + 1) % 3
    after = model(features(), other)
    close = torch.isclose(after.noised_logits, before.noised_logits, atol=1e-6).all(dim=3).all(dim=0)
    assert close.tolist() == [[True, True, True, False], [True, True, False, False]]


def test_who_sees_whom() -> None:
    mask = sees(noise([[True, False, True, False]], 2), 1)[0, 0].int()
    assert mask.tolist() == [[1, 0, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 1, 0, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1]]


def test_attention_is_drawn_to_the_box_and_a_token_in_front_is_free() -> None:
    added = drawn(torch.tensor([0.0, 1.0]), torch.tensor([[[0.125, 0.5, 0.25, 1.0]]]), cell_centres(1, 4), 5)
    assert added.shape == (1, 2, 1, 5)
    torch.testing.assert_close(added[0, 0, 0], torch.tensor([0.0, 0.0, -1.0, -4.0, -9.0]))
    torch.testing.assert_close(added[0, 1, 0], torch.tensor(1.0).exp() * added[0, 0, 0])


def test_a_glimpse_sees_the_box_and_a_quarter_of_it_around() -> None:
    torch.manual_seed(0)
    cells = torch.randn(1, 100, 8, requires_grad=True)
    Glimpse(8, 6)(cells, (10, 10), torch.tensor([[[0.42, 0.6, 0.4, 0.2]]])).sum().backward()
    assert cells.grad is not None
    seen = cells.grad.abs().sum(dim=2).view(10, 10) > 0
    rows, columns = seen.any(dim=1).nonzero().flatten(), seen.any(dim=0).nonzero().flatten()
    assert (rows.min(), rows.max()) == (
        4,
        7,
    )  # 0.475 to 0.725 at the outermost points, half a cell further by interpolation
    assert (columns.min(), columns.max()) == (1, 7)


@pytest.mark.parametrize("config", [SMALL, LEARNED])
def test_half_precision(config: DetrNetConfig) -> None:
    model = net(config)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(features())
    assert out.logits.dtype == out.boxes.dtype == torch.float32
    # Rounding may choose other proposals, so that the decoder's boxes need not be of the same queries.
    part = "proposal_boxes" if config.proposed else "boxes"
    torch.testing.assert_close(getattr(out, part), getattr(model(features()), part), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("config", [SMALL, LEARNED])
def test_every_weight_takes_part_and_the_map_gets_a_gradient(config: DetrNetConfig) -> None:
    model, maps = net(config, denoises=config.proposed), features().requires_grad_()
    out = model(maps, noise([[True, False]] * 2, 1) if config.proposed else None)
    parts = (out.logits, out.boxes, out.proposal_logits, out.proposal_boxes, out.noised_logits, out.noised_boxes)
    sum((part * torch.randn_like(part)).sum() for part in parts if part.numel()).backward()
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        DetrNetConfig(width=30)
