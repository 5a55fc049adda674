"""Standard: an ensemble without parameters that orders its members by cost and drops what has fallen."""

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack, GradientAttack
from calipers.attacks.combine import WorstOf
from calipers.attacks.pgd import PGD
from calipers.attacks.view import View
from calipers.randomness import Draws
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Standard"]


@final
@dataclass(frozen=True)
class Standard(GradientAttack):
    """Attacks with more and more effort, each time what still stands.

    1. PGD on the margin: 10 steps from the clean input.
    2. APGD on the margin to each of the 3 most likely other classes: 20 steps.
    3. APGD on the margin to each of the 9 most likely other classes: 50 steps.

    The only setting is how gradients are had, since no number of steps helps where they are wrong.

    Reference: the order of cost and the dropping are those of AutoAttack (Croce and Hein 2020, arXiv:2003.01690).

    Differs from the paper: most inputs of a network that is not robust fall in the first ten steps, so the cheap
    searches come first.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    def plan(self) -> WorstOf:
        """Write the members out.

        Returns:
            The same ensemble as a combination.
        """
        how = self.gradient
        members: tuple[Attack, ...] = (
            PGD(how, steps=10, loss="margin", random_start=False),
            APGD(how, steps=20, loss="margin", targets=3),
            APGD(how, steps=50, loss="margin", targets=9),
        )
        return WorstOf(members)

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        return self.plan()._search(view, x, y, threat, draws)
