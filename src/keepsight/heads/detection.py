"""A detection transformer on one map of features: classes and boxes of a fixed number of queries. Tensors in, tensors out; no loss.

DETR (Carion et al. 2020) with options that make it learn in minutes: queries from the encoder's best places and boxes refined layer
by layer (Deformable DETR, Zhu et al. 2021; DINO, Zhang et al. 2022), positions of queries from their boxes (DAB-DETR, Liu et al.
2022), attention drawn to the box (SMCA, Gao et al. 2021), and noised boxes as extra queries (DN-DETR, Li et al. 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.heads.attention import DecoderLayer, EncoderLayer, LayerConfig
from keepsight.heads.position import cell_centres, sine_embedding, sine_positions


class DetrNetConfig(Config):
    """The network. The defaults learn on a CPU in minutes.

    Attributes:
        width: Of the encoder; a multiple of 4 and of the heads.
        encoder_layers: Layers of self-attention over the map.
        task_token: Put one learned token in front of the map, as ViSFT does.
        decoder_width: Of the decoder; a linear layer leads there where it differs.
        decoder_layers: Each gives classes and boxes.
        queries: Objects that can be answered; at most the map's cells where they are proposed.
        proposed: Start queries from the encoder's best places and refine their boxes in every layer; else they are learned, and
            every layer gives its boxes anew, as in DETR.
        drawn: Draw attention to the query's box, more or less in each attention head; only where queries are proposed.
        glimpse: Before each decoder layer, look at so many points a side in and around the query's box; 0 for none; only where
            queries are proposed.
        background: One more logit, the last, for "no object"; else every class is judged by its own sigmoid.
        layer: Of encoder and decoder.
    """

    width: int = 128
    encoder_layers: int = 1
    task_token: bool = False
    decoder_width: int = 128
    decoder_layers: int = 2
    queries: int = 10
    proposed: bool = True
    drawn: bool = True
    glimpse: int = 5
    background: bool = False
    layer: LayerConfig = LayerConfig()

    @model_validator(mode="after")
    def _widths(self) -> DetrNetConfig:
        if any(width % 4 or width % self.layer.heads for width in (self.width, self.decoder_width)):
            raise ValueError(f"widths must be multiples of 4 and of the {self.layer.heads} attention heads")
        if min(self.queries, self.decoder_layers) < 1 or self.encoder_layers < 0:
            raise ValueError("queries and decoder_layers must be at least 1, encoder_layers at least 0")
        return self


@dataclass(frozen=True, slots=True)
class NoisedQueries:
    """Objects with noise on them, as extra queries. Groups stand one behind the other, each of M/groups places.

    Attributes:
        boxes: [B, M, 4] centre x, centre y, width, height.
        classes: [B, M] int64.
        present: [B, M] bool; False where a place is empty because another image has more objects.
        groups: Number of groups; queries of one do not see those of another, and the ordinary ones see none of them.
    """

    boxes: Tensor
    classes: Tensor
    present: Tensor
    groups: int


@dataclass(frozen=True, slots=True)
class DetrOutput:
    """What a `DetrNet` says. Boxes are centre x, centre y, width, height, in (0, 1); J = K classes, and one more with a background.

    Attributes:
        logits: [L, B, Q, J] of each decoder layer.
        boxes: [L, B, Q, 4].
        proposal_logits: [B, N, J] of every cell of the map; [0] without proposals.
        proposal_boxes: [B, N, 4]; [0] without.
        noised_logits: [L, B, M, J] of the noised queries; [0] without.
        noised_boxes: [L, B, M, 4]; [0] without.
    """

    logits: Tensor
    boxes: Tensor
    proposal_logits: Tensor
    proposal_boxes: Tensor
    noised_logits: Tensor
    noised_boxes: Tensor


class Judge(nn.Module):
    """Classes [.., J] and a box [.., 4] (in logits) from vectors [.., D]: a norm, a linear layer, and two hidden layers.

    With `refines`, boxes begin as those that are refined.
    """

    def __init__(self, width: int, outputs: int, background: bool, refines: bool) -> None:
        super().__init__()
        self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, outputs)
        self.box = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )
        if not background:
            # Every class begins at a probability of 0.01, so that the many empty places do not outweigh objects (focal loss, 3.3).
            nn.init.constant_(self.classes.bias, -math.log(99.0))
        if refines:
            last = self.box[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and box logits, in full precision."""
        x_BND = self.norm(x_BND)
        return self.classes(x_BND).float(), self.box(x_BND).float()


class Glimpse(nn.Module):
    """What the map shows in a box and around it: side x side points over 1.5 times the box, read by one linear layer."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        narrow = width // 4
        self.side = side
        self.narrow, self.read = nn.Linear(width, narrow), nn.Linear(narrow * side * side, width)

    def forward(self, cells_BPD: Tensor, hw: tuple[int, int], boxes_BQ4: Tensor) -> Tensor:
        """[B, Q, D]; nothing lies outside the map."""
        narrow_BPD = self.narrow(cells_BPD)
        map_BDhw = narrow_BPD.transpose(1, 2).unflatten(2, hw).float()
        points_S2 = 1.5 * (cell_centres(self.side, self.side, boxes_BQ4.device) - 0.5)
        points_BQS2 = boxes_BQ4[:, :, None, :2] + points_S2 * boxes_BQ4[:, :, None, 2:]
        seen_BDQS = F.grid_sample(map_BDhw, 2 * points_BQS2 - 1, align_corners=False)
        out: Tensor = self.read(seen_BDQS.permute(0, 2, 3, 1).flatten(2).to(narrow_BPD.dtype))
        return out


class DetrNet(nn.Module):
    """A map [B, C, h, w] -> `DetrOutput`.

    Args:
        channels: C.
        classes: K.
        config: The network.
        denoises: Whether noised queries will come along; a network that is not told so has no names for them.
    """

    def __init__(self, channels: int, classes: int, config: DetrNetConfig, denoises: bool = False) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        outputs = classes + config.background
        width, d = config.width, config.decoder_width
        self.project = nn.Conv2d(channels, width, 1)
        self.task_token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if config.task_token else None
        self.encoder = nn.ModuleList(EncoderLayer(width, config.layer) for _ in range(config.encoder_layers))
        self.between = nn.Linear(width, d) if width != d else nn.Identity()
        self.memory_norm = nn.LayerNorm(d)
        self.decoder = nn.ModuleList(DecoderLayer(d, config.layer) for _ in range(config.decoder_layers))
        self.judge = Judge(d, outputs, config.background, refines=config.proposed)
        if config.proposed:
            self.propose = Judge(d, outputs, config.background, refines=True)
            self.content = nn.Linear(d, d)
            self.place = nn.Sequential(nn.Linear(2 * d, d), nn.ReLU(), nn.Linear(d, d))
            self.names = nn.Embedding(classes, d) if denoises else None
            # Heads begin with different reaches: the weight at a box's edge is exp(-0.25 r), r = 0.5 to 8.
            reach_H = torch.logspace(-1, 3, config.layer.heads, base=2.0).log()
            self.reach = nn.Parameter(reach_H.expand(config.decoder_layers, -1).clone()) if config.drawn else None
            glimpses = config.decoder_layers if config.glimpse else 0
            self.glimpses = nn.ModuleList(Glimpse(d, config.glimpse) for _ in range(glimpses))
        else:
            self.query_places = nn.Parameter(torch.randn(config.queries, d))

    def forward(self, map_BChw: Tensor, noised: NoisedQueries | None = None) -> DetrOutput:
        """`noised` only to a network that denoises."""
        h, w = map_BChw.shape[-2:]
        memory_BND, position_ND = self._encode(map_BChw)
        if self.config.proposed:
            return self._refine(memory_BND, position_ND, (h, w), noised)
        return self._decode(memory_BND, position_ND)

    def _encode(self, map_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """The memory [B, N, D] and its positions [N, D]; with a task token, N is one more than the cells, and it comes first."""
        h, w = map_BChw.shape[-2:]
        x_BND = self.project(map_BChw).flatten(2).transpose(1, 2)
        position_ND = sine_positions(h, w, self.config.width, map_BChw.device)
        decoder_ND = sine_positions(h, w, self.config.decoder_width, map_BChw.device)
        if self.task_token is not None:
            x_BND = torch.cat([self.task_token.expand(len(x_BND), -1, -1).to(x_BND.dtype), x_BND], dim=1)
            position_ND, decoder_ND = (F.pad(each, (0, 0, 1, 0)) for each in (position_ND, decoder_ND))
        for layer in self.encoder:
            x_BND = layer(x_BND, position_ND)
        return self.memory_norm(self.between(x_BND)), decoder_ND

    def _decode(self, memory_BND: Tensor, position_ND: Tensor) -> DetrOutput:
        """DETR's decoder: learned queries, boxes anew in every layer."""
        place_BQD = self.query_places.expand(len(memory_BND), -1, -1)
        x_BQD = torch.zeros_like(place_BQD)
        found = []
        for layer in self.decoder:
            x_BQD = layer(x_BQD, place_BQD, memory_BND, position_ND)
            found.append(self.judge(x_BQD))
        none = memory_BND.new_empty(0)
        logits, boxes = (torch.stack(each) for each in zip(*found, strict=True))
        return DetrOutput(logits, boxes.sigmoid(), none, none, none, none)

    def _refine(
        self, memory_BND: Tensor, position_ND: Tensor, hw: tuple[int, int], noised: NoisedQueries | None
    ) -> DetrOutput:
        """The encoder's best places as queries, whose boxes every layer refines."""
        places_P2 = cell_centres(*hw, memory_BND.device)
        cells_BPD = memory_BND[:, -len(places_P2) :]
        proposal_logits, offsets = self.propose(cells_BPD)
        start_P4 = torch.cat([places_P2, torch.full_like(places_P2, 0.25)], dim=1)
        proposal_boxes = (offsets + start_P4.logit()).sigmoid()
        judged_BP = proposal_logits[..., : self.classes].detach().amax(dim=2)
        if self.config.background:
            judged_BP = judged_BP - proposal_logits[..., -1].detach()
        best_BQ = judged_BP.topk(min(self.config.queries, len(places_P2)), dim=1).indices
        x_BQD = self.content(_taken(cells_BPD, best_BQ))
        boxes_BQ4 = _taken(proposal_boxes, best_BQ).detach()
        extra, among = 0, None
        if noised is not None:
            assert self.names is not None
            extra = noised.boxes.shape[1]
            x_BQD = torch.cat([self.names(noised.classes).to(x_BQD.dtype), x_BQD], dim=1)
            boxes_BQ4 = torch.cat([noised.boxes.to(boxes_BQ4.dtype), boxes_BQ4], dim=1)
            among = sees(noised, best_BQ.shape[1])
        found = []
        for number, layer in enumerate(self.decoder):
            # Each layer is told the box before it and learns its own correction alone (Deformable DETR, appendix A.4).
            place_BQD = self.place(sine_embedding(boxes_BQ4, self.config.decoder_width // 2).to(x_BQD.dtype))
            across = (
                None if self.reach is None else drawn(self.reach[number], boxes_BQ4, places_P2, memory_BND.shape[1])
            )
            if self.glimpses:
                x_BQD = x_BQD + self.glimpses[number](cells_BPD, hw, boxes_BQ4)
            x_BQD = layer(x_BQD, place_BQD, memory_BND, position_ND, among, across)
            logits_BQJ, offsets = self.judge(x_BQD)
            found_BQ4 = (offsets + boxes_BQ4.logit(1e-4)).sigmoid()
            found.append((logits_BQJ, found_BQ4))
            boxes_BQ4 = found_BQ4.detach()
        logits, boxes = (torch.stack(each) for each in zip(*found, strict=True))
        none = memory_BND.new_empty(0)
        return DetrOutput(
            logits[:, :, extra:],
            boxes[:, :, extra:],
            proposal_logits,
            proposal_boxes,
            logits[:, :, :extra] if extra else none,
            boxes[:, :, :extra] if extra else none,
        )


def drawn(reach_H: Tensor, boxes_BQ4: Tensor, places_P2: Tensor, cells: int) -> Tensor:
    """What is added to attention [B, heads, Q, cells]: -exp(reach) ((dx/w)^2 + (dy/h)^2) from the box's centre.

    Whatever stands before the places in the memory is free: `cells` may be more than P.
    """
    away_BQP2 = (places_P2 - boxes_BQ4[:, :, None, :2]) / boxes_BQ4[:, :, None, 2:].clamp(min=0.02)
    far_BQP = away_BQP2.square().sum(dim=3)
    return F.pad(-reach_H.exp()[:, None, None] * far_BQP[:, None], (cells - len(places_P2), 0))


def _taken(rows_BND: Tensor, index_BQ: Tensor) -> Tensor:
    return rows_BND.gather(1, index_BQ[..., None].expand(-1, -1, rows_BND.shape[2]))


def sees(noised: NoisedQueries, queries: int) -> Tensor:
    """Which query sees which [B, 1, M + Q, M + Q], noised ones first: ordinary queries see each other; noised ones see those and
    what is present in their own group. So nothing true leaks, and no image depends on how many objects another one has.
    """
    m = noised.boxes.shape[1]
    group_M = torch.arange(m, device=noised.boxes.device) // max(m // noised.groups, 1)
    own_BMM = (group_M[:, None] == group_M) & noised.present[:, None]
    return F.pad(F.pad(own_BMM, (0, 0, 0, queries), value=False), (0, queries), value=True)[:, None]
