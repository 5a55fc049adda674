"""FGSM: one step of the whole size along the steepest direction."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import GradientAttack
from calipers.attacks.geometry import unblocked
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.threat.norms import steepest
from calipers.threat.objectives import OBJECTIVES
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["FGSM"]


@final
@dataclass(frozen=True)
class FGSM(GradientAttack):
    r"""Goes one step of size eps from the clean input.

    .. math:: x' = x + \varepsilon\, s(\nabla L(f(x), y))

    with :math:`s` the steepest step of size 1 in the norm: the sign in linf. It costs one gradient and is weak: its use
    is to show what a single step finds, and that a network which resists it does not resist more.

    Reference: Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572, section 4.

    Differs from the paper: l2 and l1 besides linf; a coordinate at the edge of the box is no direction to go in.

    Args:
        loss: the objective: cross_entropy, margin or dlr.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    loss: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in OBJECTIVES:
            raise UsageError(f"loss is {self.loss!r}: use {', '.join(OBJECTIVES)}")

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        found = view.estimate(OBJECTIVES[self.loss], x, y, threat.goal, draws)
        gradient = unblocked(found.gradient, x, view.bounds)
        return (x + (threat.eps or 0.0) * steepest(gradient, threat.norm)).clamp(*view.bounds)
