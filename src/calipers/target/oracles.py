"""Oracles: views of a target that give no more than an attack may see, and count what it asks."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calipers.errors import GradientsUnavailable, ScoresUnavailable
from calipers.randomness import Draws
from calipers.target.target import Access, Target

__all__ = ["Counts", "Oracle"]

_REMEDY = {
    Access.SCORES: "have gradients from scores, by nes or spsa, or use an attack that asks for none, such as square or "
    "hop-skip-jump",
    Access.DECISIONS: "use an attack on decisions, such as boundary or hop-skip-jump",
}


@dataclass
class Counts:
    """What has been asked so far, in inputs.

    Args:
        queries: inputs answered, by scores or by decisions.
        forwards: inputs passed forward through the network.
        backwards: inputs passed backward through it.
    """

    queries: int = 0
    forwards: int = 0
    backwards: int = 0


@final
class Oracle:
    """A view of a target that gives no more than one kind of access, and counts.

    Args:
        target: the classifier.
        access: the most that may be seen: GRADIENTS, SCORES or DECISIONS.

    Raises:
        GradientsUnavailable: if the target does not give gradients and they are asked for.
        ScoresUnavailable: if it does not give scores and they are asked for.
    """

    def __init__(self, target: Target, access: Access) -> None:
        if target.access < access:
            error = GradientsUnavailable if access is Access.GRADIENTS else ScoresUnavailable
            given, asked = target.access.name.lower(), access.name.lower()
            raise error(f"{target.name} gives {given} and not {asked}: {_REMEDY[target.access]}")
        self._target = target
        self.access = access
        self.counts = Counts()

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self._target.num_classes

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the largest value of a valid input."""
        return self._target.bounds

    @property
    def device(self) -> torch.device:
        """Where the classifier runs."""
        return self._target.device

    @property
    def stochastic(self) -> bool:
        """Whether the classifier draws randomness of its own."""
        return self._target.stochastic

    @property
    def module(self) -> nn.Module:
        """The network, of which a white-box view may name the parts; what is run on it directly is not counted.

        Raises:
            GradientsUnavailable: if the view gives no gradients.
        """
        if self.access < Access.GRADIENTS:
            raise GradientsUnavailable(f"this view gives {self.access.name.lower()} and not the network")
        return self._target.module

    def logits(
        self, x: Float[Tensor, "batch *dims"], *, draws: Draws | None = None
    ) -> Float[Tensor, "batch columns"]:
        """Answer with scores, differentiable only if the view gives gradients.

        Args:
            x: raw inputs.
            draws: where a stochastic target's randomness comes from.

        Returns:
            Scores.

        Raises:
            ScoresUnavailable: if the view gives decisions only.
        """
        if self.access < Access.SCORES:
            raise ScoresUnavailable("this view gives decisions only")
        self._count(len(x))
        if self.access < Access.GRADIENTS:
            return self._target.logits(x.detach(), draws=draws)
        scores = self._target.logits(x, draws=draws)
        if scores.requires_grad:
            scores.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return scores

    def predict(
        self, x: Float[Tensor, "batch *dims"], *, draws: Draws | None = None
    ) -> Int[Tensor, " batch"]:
        """Answer with classes.

        Args:
            x: raw inputs.
            draws: where a stochastic target's randomness comes from.

        Returns:
            One class an input, or ABSTAIN.
        """
        self._count(len(x))
        return self._target.predict(x.detach(), draws=draws)

    def _count(self, inputs: int) -> None:
        self.counts.queries += inputs
        self.counts.forwards += inputs

    def _count_backward(self, gradient: Tensor) -> None:
        self.counts.backwards += len(gradient)
