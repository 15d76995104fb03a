"""A mask transformer on one map of features: classes and masks of a fixed number of queries. Tensors in, tensors out; no loss.

Mask2Former (Cheng et al. 2022, arXiv 2112.01527) on one level, with options that make it learn in minutes: queries that start from
the places where objects' centres are believed (CenterNet, Zhou et al. 2019), and masks finer than the map (by the transposed
convolutions of SAM's decoder, Kirillov et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from keepsight.core import Config
from keepsight.heads.attention import Attention, EncoderLayer, LayerConfig, Part, feedforward
from keepsight.heads.position import sine_positions


class MaskNetConfig(Config):
    """The network. The defaults learn on a CPU in minutes.

    Attributes:
        width: Of encoder and decoder; a multiple of 4 and of the attention heads.
        mask_width: Channels in which a query and a place of the map are compared.
        encoder_layers: Layers of self-attention over the map.
        decoder_layers: Each gives classes and masks, and so do the queries before the first.
        queries: Objects that can be answered; at most the map's cells where they are proposed.
        proposed: Start queries from the map's most likely centres of objects; else they are learned, as in Mask2Former.
        upsample: Masks are so many times finer than the map, a power of 2. At 1, as in ViSFT, small objects have a few cells.
        encoder: Its layers.
        decoder: Its layers.
    """

    width: int = 128
    mask_width: int = 64
    encoder_layers: int = 1
    decoder_layers: int = 2
    queries: int = 20
    proposed: bool = True
    upsample: int = 4
    encoder: LayerConfig = LayerConfig()
    decoder: LayerConfig = LayerConfig()

    @model_validator(mode="after")
    def _numbers(self) -> MaskNetConfig:
        if self.width % 4 or self.width % self.encoder.heads or self.width % self.decoder.heads:
            raise ValueError("width must be a multiple of 4 and of the attention heads")
        if self.upsample < 1 or self.upsample & (self.upsample - 1):
            raise ValueError("upsample must be a power of 2")
        if min(self.queries, self.mask_width) < 1 or min(self.encoder_layers, self.decoder_layers) < 0:
            raise ValueError("queries and mask_width must be at least 1, layers at least 0")
        return self


PAPER = MaskNetConfig(
    width=256,
    mask_width=256,
    encoder_layers=6,
    decoder_layers=9,
    queries=100,
    proposed=False,
    upsample=1,
    encoder=LayerConfig(feedforward=512, norm_first=False),
    decoder=LayerConfig(feedforward=1024, norm_first=False),
)
"""ViSFT's segmentation head."""


@dataclass(frozen=True, slots=True)
class MaskOutput:
    """What a `MaskNet` says, L = 1 + decoder layers times; the last is its answer.

    Attributes:
        logits: [L, B, Q, K + 1] of classes; the last is "no object".
        masks: [L, B, Q, upsample h, upsample w], logits.
        centres: [B, h, w], logits of being an object's centre; [0] without proposals.
    """

    logits: Tensor
    masks: Tensor
    centres: Tensor


class MaskedLayer(nn.Module):
    """A decoder layer of Mask2Former: what the query's mask covers is looked at first, then the other queries."""

    def __init__(self, width: int, config: LayerConfig) -> None:
        super().__init__()
        self.across, self.among = Attention(width, config.heads), Attention(width, config.heads)
        self.forwards = feedforward(width, config)
        self.across_part, self.among_part, self.forwards_part = (Part(width, config) for _ in range(3))

    def forward(
        self, x_BQD: Tensor, place_BQD: Tensor, memory_BND: Tensor, position_ND: Tensor, seen_B1QN: Tensor
    ) -> Tensor:
        """One layer; a query attends where `seen_B1QN` is true."""

        def look_across(x: Tensor) -> Tensor:
            out: Tensor = self.across(x + place_BQD, memory_BND + position_ND, memory_BND, seen_B1QN)
            return out

        def look_among(x: Tensor) -> Tensor:
            out: Tensor = self.among(x + place_BQD, x + place_BQD, x)
            return out

        x_BQD = self.among_part(self.across_part(x_BQD, look_across), look_among)
        out: Tensor = self.forwards_part(x_BQD, self.forwards)
        return out


class MaskFeatures(nn.Module):
    """A map [B, D, h, w] -> what masks are made of [B, M, u h, u w]."""

    def __init__(self, width: int, mask_width: int, upsample: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(width, mask_width, 3, padding=1)]
        for _ in range(int(math.log2(upsample))):
            layers += [nn.GroupNorm(1, mask_width), nn.GELU(), nn.ConvTranspose2d(mask_width, mask_width, 2, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """Upsampled."""
        out: Tensor = self.layers(map_BDhw)
        return out


class MaskNet(nn.Module):
    """A map [B, C, h, w] -> `MaskOutput`."""

    def __init__(self, channels: int, classes: int, config: MaskNetConfig) -> None:
        super().__init__()
        self.config, d, m = config, config.width, config.mask_width
        self.project = nn.Conv2d(channels, d, 1)
        self.encoder = nn.ModuleList(EncoderLayer(d, config.encoder) for _ in range(config.encoder_layers))
        self.memory_norm = nn.LayerNorm(d)
        self.features = MaskFeatures(d, m, config.upsample)
        self.decoder = nn.ModuleList(MaskedLayer(d, config.decoder) for _ in range(config.decoder_layers))
        self.judge_norm, self.classes = nn.LayerNorm(d), nn.Linear(d, classes + 1)
        self.mask = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, m))
        if config.proposed:
            self.centre, self.content = nn.Linear(d, 1), nn.Linear(d, d)
            # Cells begin at a probability of 0.1, as in CenterNet, so that the many empty ones do not outweigh the centres.
            nn.init.constant_(self.centre.bias, -math.log(9.0))
        else:
            self.query_content = nn.Parameter(torch.randn(config.queries, d) * 0.02)
            self.query_places = nn.Parameter(torch.randn(config.queries, d))

    def forward(self, map_BChw: Tensor) -> MaskOutput:
        """All layers' classes and masks."""
        b, _, h, w = map_BChw.shape
        position_ND = sine_positions(h, w, self.config.width, map_BChw.device)
        memory_BND = self.project(map_BChw).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory_BND = layer(memory_BND, position_ND)
        memory_BND = self.memory_norm(memory_BND)
        # With positions, masks of equal things in different places can differ.
        features_BMHW = self.features((memory_BND + position_ND).transpose(1, 2).reshape(b, -1, h, w))
        x_BQD, place_BQD, centres = self._queries(memory_BND, position_ND, h, w)
        found = [self._judge(x_BQD, place_BQD, features_BMHW)]
        for layer in self.decoder:
            x_BQD = layer(x_BQD, place_BQD, memory_BND, position_ND, seen(found[-1][1], h, w))
            found.append(self._judge(x_BQD, place_BQD, features_BMHW))
        logits, masks = (torch.stack(each) for each in zip(*found, strict=True))
        return MaskOutput(logits, masks, centres)

    def _judge(self, x_BQD: Tensor, place_BQD: Tensor, features_BMHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BQD = self.judge_norm(x_BQD)
        masks_BQHW = torch.einsum("bqm,bmhw->bqhw", self.mask(x_BQD + place_BQD), features_BMHW)
        return self.classes(x_BQD).float(), masks_BQHW.float() / math.sqrt(self.config.mask_width)

    def _queries(self, memory_BND: Tensor, position_ND: Tensor, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
        """What queries start from [B, Q, D], their places [B, Q, D], and the centres [B, h, w]."""
        b, n, d = memory_BND.shape
        if not self.config.proposed:
            content_BQD, place_BQD = (each.expand(b, -1, -1) for each in (self.query_content, self.query_places))
            return content_BQD, place_BQD, memory_BND.new_empty(0)
        centres_Bhw = self.centre(memory_BND).float().reshape(b, h, w)
        best_BQ1 = peaks(centres_Bhw.detach(), min(self.config.queries, n))[..., None].expand(-1, -1, d)
        place_BQD = position_ND.expand(b, -1, -1).gather(1, best_BQ1)
        return self.content(memory_BND.gather(1, best_BQ1)), place_BQD, centres_Bhw


def peaks(values_Bhw: Tensor, count: int) -> Tensor:
    """Cells [B, count], those that exceed their eight neighbours first, then the others, each by their values.

    Example:
        >>> peaks(torch.tensor([[[3.0, 2.0, 0.0, 1.0]]]), 3).tolist()
        [[0, 3, 1]]
    """
    highest_Bhw = F.max_pool2d(values_Bhw[:, None], 3, stride=1, padding=1)[:, 0]
    order_BN = torch.where(values_Bhw == highest_Bhw, values_Bhw, values_Bhw - 1e4).flatten(1)
    return order_BN.topk(count, dim=1).indices


@torch.no_grad()
def seen(masks_BQHW: Tensor, h: int, w: int) -> Tensor:
    """Where queries attend [B, 1, Q, h w]: the cells that a mask covers on average; everywhere for a mask that covers none.

    Example:
        >>> seen(torch.tensor([[[[1.0, -1.0]], [[-1.0, -1.0]]]]), 1, 2).tolist()
        [[[[True, False], [True, True]]]]
    """
    covered_BQN = F.adaptive_avg_pool2d(masks_BQHW, (h, w)).flatten(2) >= 0
    return (covered_BQN | ~covered_BQN.any(dim=2, keepdim=True))[:, None]
