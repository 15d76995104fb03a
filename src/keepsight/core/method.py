"""What is trained by steps (`Trainable`, and `Method` where it predicts classes), and what is solved in closed form on features
(`FeatureMethod`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from keepsight.core.batch import Batch
from keepsight.core.head import Head
from keepsight.core.token import Token


class Trainable(nn.Module, ABC):
    """What the trainer trains: it owns its backbone and heads, and says its losses; the trainer owns the loop.

    Attributes:
        phases: One optimizer step each per training step, in this order; ("critic", "model") for adversarial methods.
        uses_unlabelled: Whether batches carry unlabelled inputs.
    """

    phases: tuple[str, ...] = ("model",)
    uses_unlabelled: bool = False

    @abstractmethod
    def losses(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """Weighted, named scalars, each a mean over the batch; their sum is minimised in this phase."""

    def after_first_step(self) -> None:
        """Called once, after the last phase's first backward pass and before its optimizer step: the place to check gradients."""

    def before_update(self, phase: str) -> None:
        """Called in every step after the phase's gradients are complete (and clipped), before its optimizer's step."""

    def after_update(self, phase: str) -> None:
        """Called after the phase's optimizer step, while its gradients are still there: the place to project weights."""

    def parameters_of(self, phase: str) -> list[nn.Parameter]:
        """What the optimizer of this phase updates; all trainable parameters by default."""
        del phase
        return [p for p in self.parameters() if p.requires_grad]

    def lr_scales(self) -> Mapping[nn.Parameter, float]:
        """Factors on the learning rate of single parameters (layer-wise decay); 1 for those that are not in it."""
        return {}

    def forward(self, batch: Batch, phase: str, step: int) -> dict[str, Tensor]:
        """`losses`, reached through the module call, which is what distributed wrappers hook into."""
        return self.losses(batch, phase, step)


class Method(Trainable):
    """A method that predicts classes."""

    @abstractmethod
    def logits(self, inputs: Tensor) -> Tensor:
        """Class logits [B, K] for inputs of the kind that `losses` gets."""


class FeatureMethod(ABC):
    """A method solved on the features of a frozen backbone.

    Attributes:
        multilabel: Whether it also takes the targets [N, K] of multi-label data in place of class indices.
    """

    multilabel: bool = False

    @abstractmethod
    def fit(
        self,
        x_NF: Tensor,
        labels_N: Tensor,
        unlabelled_MF: Tensor,
        num_classes: int,
        seed: int,
        token: Token | None = None,
    ) -> Head:
        """Fit and return the head that predicts. Every class must have at least one label.

        Args:
            x_NF: Labelled features [N, F].
            labels_N: Their class indices [N]; targets [N, K] of 0 and 1 in multi-label data, where `multilabel` says so.
            unlabelled_MF: Unlabelled features [M, F]; M may be 0.
            num_classes: K.
            seed: Of whatever is drawn.
            token: Tokens of the same N + M images, labelled ones first, with as many views as the method's settings ask for. A
                method that works on tokens makes them of the plain features where it gets none.
        """
