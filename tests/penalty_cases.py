"""One step of a small network as retention penalties see it, and a case of every penalty: what several tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conftest import TinyBackbone
from keepsight.core import Penalty, Readout, Seen, processes
from keepsight.heads.linear import LinearHead
from keepsight.methods.penalties import About, make_penalty, parse_penalty

READOUT = Readout(blocks=(2,), pools=("mean", "grid2"))
FEATURES, CLASSES = 40, 3


class Divided(nn.Module):
    """A head that sees its features divided: what makes predictions blind to their scale."""

    def __init__(self, head: nn.Module, by: float) -> None:
        super().__init__()
        self.head, self.by = head, by

    def forward(self, x_BF: Tensor) -> Tensor:
        logits: Tensor = self.head(x_BF / self.by)
        return logits


class World:
    """A network now (its weights a little moved, or not at all), the network before, a head, and images.

    Args:
        moved: Standard deviation of what was added to the weights.
        scale: All features of both networks are multiplied by it, and the head divides by it.
    """

    def __init__(self, moved: float = 0.05, images: int = 6, scale: float = 1.0) -> None:
        self.network, self.untouched = TinyBackbone(), TinyBackbone()
        self.untouched.requires_grad_(False)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in self.network.parameters():
                p += moved * torch.randn(p.shape, generator=generator)
        head = LinearHead(FEATURES, CLASSES)
        with torch.no_grad():
            head.weight_KF.copy_(torch.randn(CLASSES, FEATURES, generator=generator))
        self.head, self.scale = Divided(head, scale), scale
        self.images = torch.randn(images, 3, 16, 16, generator=generator)

    def read(self, backbone: TinyBackbone, images: Tensor) -> Tensor:
        return self.scale * READOUT.read(backbone(images, READOUT.blocks))

    def about(self) -> About:
        before = dict(self.untouched.named_parameters())
        generator = torch.Generator().manual_seed(9)
        pool = torch.randn(50, 3, 16, 16, generator=generator)
        return About(
            features=FEATURES,
            depth=2,
            classes=CLASSES,
            seed=3,
            head=self.head,
            pairs={name: (p, before[name]) for name, p in self.network.named_parameters()},
            pool_NF=self.read(self.untouched, pool),
        )

    def layers(self, backbone: TinyBackbone, images: Tensor) -> dict[int, object]:
        found = {}
        for block, features in zip((1, 2), backbone(images, (1, 2)), strict=True):
            found[block] = type(features)(self.scale * features.cls, self.scale * features.patches, features.grid)
        return found

    def seen(self, step: int = 0) -> Seen:
        """The step; this process's share of the images is every count()-th one."""
        images = self.images[processes.index() :: processes.count()]
        return Seen(
            inputs=images,
            x_BF=self.read(self.network, images),
            x0_BF=self.read(self.untouched, images),
            layers=self.layers(self.network, images),
            layers0=self.layers(self.untouched, images),
            now=lambda images: self.read(self.network, images),
            before=lambda images: self.read(self.untouched, images).detach(),
            logits=self.head,
            step=step,
        )

    def gradient(self, value: Tensor) -> Tensor:
        """Of all weights of the network, in one vector."""
        parts = torch.autograd.grad(value, list(self.network.parameters()), allow_unused=True, retain_graph=True)
        zipped = zip(parts, self.network.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zipped])


@dataclass(frozen=True)
class Case:
    """A penalty as it is written, and what it promises.

    Attributes:
        zero: Nothing changed gives zero.
        least: Fewest images.
    """

    text: str
    zero: bool = True
    least: int = 1

    def penalty(self, world: World) -> Penalty:
        return make_penalty(parse_penalty(self.text), world.about())


CASES = [
    Case("rift-cov", least=2),
    Case("rift-cov:q=free", least=2),
    Case("rift-cov:q=learned", least=2),
    Case("rift-cov:source=running", least=2),
    Case("rift-cov:source=running:q=free", least=2),
    Case("rift-cov:source=running:q=learned", least=2),
    Case("rift-cov:source=cached", zero=False, least=2),
    Case("rift-cov:source=cached:q=free", zero=False, least=2),
    Case("rift-cov:source=cached:q=learned", zero=False, least=2),
    Case("cka", least=4),
    Case("cka:debiased=false", least=3),
    Case("procrustes", least=2),
    Case("l2-sp"),
    Case("distill", least=2),
    Case("ldifs"),
    Case("ldifs:blocks=1+-1:tokens=cls"),
    Case("lwf"),
    Case("delta"),
    Case("delta:attention=uniform:blocks=1"),
    Case("bss:k=2", zero=False, least=2),
    Case("r3f", zero=False),
    Case("r3f:distribution=uniform", zero=False),
    Case("r4f", zero=False),
    Case("r4f:power_steps=20", zero=False),
    Case("pdr", zero=False),
    Case("pdr:divergence=hellinger", zero=False),
    Case("pdr:divergence=kl", zero=False),
    Case("masked-counterfactual", least=2),
]
