"""Retention: penalties and weight rules attached to any method that tunes a backbone. Knows no penalty by name.

The method's own losses are what they are without it; each penalty adds one named loss, lambda * max(0, penalty - margin).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keepsight.core import Batch, Method, Penalty, Seen, Trainable
from keepsight.methods.encoder import Pass, TunedBackbone
from keepsight.methods.reference import Reference
from keepsight.methods.weight_rules import Rule


@dataclass(frozen=True, slots=True)
class Attached:
    """A penalty with its name, its weight lambda and its margin."""

    name: str
    penalty: Penalty
    weight: float
    margin: float = 0.0


class Retained(Method):
    """A method with penalties on what it does to its backbone.

    Penalties look at all images of the step that the method passed with gradients, or, where the batch brings some, at
    reference images in their place. Images and features are those of this micro-batch: nothing is accumulated.

    Args:
        method: Anything trained that tunes a backbone.
        encoder: Its backbone.
        head: From read-out features [B, F] to its class logits [B, K].
        attached: The penalties; those of weight zero are left out.
        reference: The untouched network; None where no penalty looks at it.
        rules: What moves weights back after an update, in this order.
    """

    def __init__(
        self,
        method: Trainable,
        encoder: TunedBackbone,
        head: Callable[[Tensor], Tensor],
        attached: Sequence[Attached],
        reference: Reference | None,
        rules: Sequence[Rule] = (),
    ) -> None:
        super().__init__()
        self.method, self.reference, self.rules = method, reference, nn.ModuleList(rules)
        # Lists hide these from nn.Module: they are the method's, and a checkpoint holds every weight once.
        self._encoder, self._head = [encoder], [head]
        self._attached = [one for one in attached if one.weight]
        self.penalties = nn.ModuleList(one.penalty for one in self._attached)
        self.phases, self.uses_unlabelled = method.phases, method.uses_unlabelled
        self._blocks = tuple(sorted({block for one in self._attached for block in one.penalty.blocks}))
        if self._attached:
            encoder.watch(self._blocks)

    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """The method's losses and, in its last phase, `retain_NAME` of every penalty."""
        losses = dict(self.method.losses(batch, phase, step))
        encoder = self._encoder[0]
        passes = encoder.passes()
        if not self._attached or phase != self.phases[-1]:
            return losses
        if batch.reference.numel():
            encoder(batch.reference)
            passes = encoder.passes()
        seen = self._seen(passes, step)
        for one in self._attached:
            excess = torch.relu(one.penalty(seen) - one.margin) if one.margin else one.penalty(seen)
            losses[f"retain_{one.name}"] = one.weight * excess
        encoder.passes()  # what penalties passed themselves is not kept
        return losses

    def _seen(self, passes: Sequence[Pass], step: int) -> Seen:
        inputs = torch.cat([p.inputs for p in passes])
        layers0, x0_BF = {}, inputs.new_empty(0)
        if self.reference is not None and any(one.penalty.uses_reference for one in self._attached):
            layers0 = self.reference.layers(inputs, self._blocks)
            x0_BF = self.reference.read(layers0)
        layers = {
            block: type(passes[0].layers[block])(
                torch.cat([p.layers[block].cls for p in passes]),
                torch.cat([p.layers[block].patches for p in passes]),
                passes[0].layers[block].grid,
            )
            for block in self._blocks
        }
        return Seen(
            inputs=inputs,
            x_BF=torch.cat([p.x_BF for p in passes]),
            x0_BF=x0_BF,
            layers=layers,
            layers0=layers0,
            now=self._encoder[0],
            before=self._before,
            logits=self._head[0],
            step=step,
        )

    def _before(self, inputs: Tensor) -> Tensor:
        assert self.reference is not None
        return self.reference.features(inputs)

    def logits(self, inputs: Tensor) -> Tensor:
        """The method's.

        Raises:
            TypeError: It predicts no classes.
        """
        if not isinstance(self.method, Method):
            raise TypeError(f"{type(self.method).__name__} predicts no classes")
        return self.method.logits(inputs)

    def after_first_step(self) -> None:
        """The method's own checks."""
        self.method.after_first_step()

    def before_update(self, phase: str) -> None:
        """The method's, and in its last phase the rules'."""
        self.method.before_update(phase)
        for rule in self._rules(phase):
            rule.before()

    def after_update(self, phase: str) -> None:
        """The method's, and in its last phase the rules'."""
        self.method.after_update(phase)
        for rule in self._rules(phase):
            rule.after()

    def _rules(self, phase: str) -> list[Rule]:
        return [rule for rule in self.rules if isinstance(rule, Rule) and phase == self.phases[-1]]

    def parameters_of(self, phase: str) -> list[nn.Parameter]:
        """The method's; in its last phase those of the penalties, too (a learned rotation)."""
        own = self.method.parameters_of(phase)
        if phase != self.phases[-1]:
            return own
        return own + [p for p in self.penalties.parameters() if p.requires_grad]

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """The method's."""
        return self.method.lr_scales()
