"""Ray: moves another attack's candidate along its own direction to where the judged classifier changes its answer."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.tracker import Nearest
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import GradientEstimator
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import ABSTAIN, Norm, Targeted, ThreatModel

__all__ = ["Ray"]


@final
@dataclass(frozen=True)
class Ray(Attack):
    """Searches by another attack, then along the ray from the input through what that one found.

    An attack that sees soft scores of a base classifier under noise ends near the boundary of the smoothed classifier,
    and may end just before it. Here the ray is followed outwards in equal steps until the judged classifier answers
    otherwise, and the crossing is then halved to and fro. Only classes of the judged classifier are asked for; an
    answer that it withholds counts as no crossing.

    Args:
        attack: the attack that finds the direction; it looks for the least size.
        reach: how far the ray is followed, as a multiple of the distance that the attack found.
        steps: points of the ray that are tried, and halvings after that.
    """

    norms: ClassVar[tuple[Norm, ...]] = tuple(Norm)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    attack: Attack
    reach: float = 2.0
    steps: int = 4

    def __post_init__(self) -> None:
        if not self.reach >= 1 or self.steps < 1:
            raise UsageError(f"reach is {self.reach} and steps {self.steps}: give at least 1 of each")
        if self.attack.sized:
            raise UsageError(
                f"{type(self.attack).__name__} searches within a size: put one here that looks for the least"
            )
        object.__setattr__(self, "revision", self.revision + self.attack.revision - 1)

    @property
    def access(self) -> Access:
        """What the inner attack needs."""
        return self.attack.access

    @property
    def _estimator(self) -> GradientEstimator | None:
        return self.attack._estimator

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        candidate = self.attack._search(view, x, y, threat, draws)
        best = Nearest(x, threat.norm)
        rows = torch.arange(len(x), device=x.device)
        low, high = view.bounds
        shape = (-1, *[1] * (x.ndim - 1))

        def crosses(share: Tensor, which: Tensor) -> Bool[Tensor, " rows"]:
            point = (x[which] + share[which].view(shape) * (candidate - x)[which]).clamp(low, high)
            answers = view.of(which.cpu()).predict(point, draws.of(which.tolist())).to(x.device)
            reached = _reached(answers, y[which], threat, which)
            best.offer(which, point, reached)
            return reached

        share = torch.ones(len(x), device=x.device)
        inner = torch.zeros_like(share)
        outer = torch.full_like(share, torch.inf)
        for step in range(self.steps + 1):
            if not len(rows):
                break
            share[rows] = 1 + (self.reach - 1) * step / self.steps
            reached = crosses(share, rows)
            outer[rows[reached]] = share[rows[reached]]
            inner[rows[~reached]] = share[rows[~reached]]
            rows = rows[~reached]
        rows = torch.isfinite(outer).nonzero()[:, 0]
        for _ in range(self.steps):
            if not len(rows):
                break
            share = (inner + outer) / 2
            reached = crosses(share, rows)
            outer[rows[reached]] = share[rows[reached]]
            inner[rows[~reached]] = share[rows[~reached]]
        return torch.where(best.found.view(shape), best.point, candidate)


def _reached(answers: Tensor, labels: Tensor, threat: ThreatModel, rows: Tensor) -> Tensor:
    if isinstance(threat.goal, Targeted):
        wanted = torch.tensor(threat.goal.classes, device=answers.device)[rows]
        return answers == wanted
    return (answers != labels) & (answers != ABSTAIN)
