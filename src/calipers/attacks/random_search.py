"""Random search: points of the ball tried one after another, the baseline that every other attack has to beat."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.decisions import reaches
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.norms import sample
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["RandomSearch"]

Where = Literal["uniform", "corners"]
_CHUNK = 20


@final
@dataclass(frozen=True)
class RandomSearch(Attack):
    """Tries points of the ball at random, and takes the first that reaches the goal.

    It learns nothing from a point for the next. Where it finds what a gradient-based attack does not, the gradient of
    the classifier is not to be trusted (Athalye et al. 2018, arXiv:1802.00420, section 3.1).

    ``uniform`` points are spread over the whole ball. ``corners`` lie at its very edge: at a vertex of the ball in
    linf and l1, on the sphere in l2, and with the largest number of coordinates at the bounds of the box in l0.

    Of a randomized classifier each point is asked ``votes`` times, and counts where two thirds of the answers reach the
    goal; the number of queries grows by as much.

    Args:
        queries: points tried for each input.
        where: ``uniform`` or ``corners``.
        votes: answers of a randomized classifier for each point.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1, Norm.L0)
    sized: ClassVar[bool] = True
    revision: ClassVar[int] = 1

    queries: int = 1000
    where: Where = "uniform"
    votes: int = 12

    def __post_init__(self) -> None:
        if self.queries < 1 or self.votes < 1:
            raise UsageError(f"queries is {self.queries} and votes {self.votes}: give at least 1 of each")
        if self.where not in get_args(Where):
            raise UsageError(f"where is {self.where!r}: use {', '.join(get_args(Where))}")

    @property
    def access(self) -> Access:
        """Classes."""
        return Access.DECISIONS

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        point = x.clone()
        rows = torch.arange(len(x), device=x.device)
        for chunk, start in enumerate(range(0, self.queries, _CHUNK)):
            if not len(rows):
                break
            copies, numbers = min(_CHUNK, self.queries - start), rows.tolist()
            shape = (copies, *x.shape[1:])
            tried = torch.stack(
                [
                    self._points(x[row], shape, threat, view.bounds, draws[row].generator(chunk))
                    for row in numbers
                ]
            )
            reached = reaches(
                view.of(rows),
                tried.flatten(0, 1),
                y[rows],
                goal_of_rows(threat.goal, numbers),
                draws.fold(chunk).of(numbers),
                votes=self.votes,
            ).view(len(rows), copies)
            found, first = reached.any(1), reached.int().argmax(1)
            point[rows[found]] = tried[found, first[found]]
            rows = rows[~found]
        return point

    def _points(
        self,
        x: Tensor,
        shape: tuple[int, ...],
        threat: ThreatModel,
        bounds: tuple[float, float],
        generator: torch.Generator,
    ) -> Tensor:
        """Draw points around one input, inside the box."""
        eps, low, high = threat.eps or 0.0, *bounds
        if threat.norm is Norm.L0:
            return self._few_coordinates(x, shape, eps, bounds, generator)
        delta = sample(shape, torch.full(shape[:1], eps), threat.norm, generator).to(x)
        if self.where == "corners":
            flat = delta.flatten(1)
            match threat.norm:
                case Norm.LINF:
                    flat = flat.sign() * eps
                case Norm.L2:
                    flat = flat * (eps / flat.norm(dim=1, keepdim=True).clamp_min(1e-30))
                case _:
                    chosen = flat.abs().argmax(1, keepdim=True)
                    flat = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).sign() * eps)
            delta = flat.view(shape)
        return (x + delta).clamp(low, high)

    def _few_coordinates(
        self,
        x: Tensor,
        shape: tuple[int, ...],
        eps: float,
        bounds: tuple[float, float],
        generator: torch.Generator,
    ) -> Tensor:
        """Change the allowed number of coordinates to values of the box, which are all within the size in l0."""
        low, high = bounds
        values = torch.rand(shape, generator=generator)
        values = values.round() if self.where == "corners" else values
        order = torch.rand(shape, generator=generator).flatten(1).argsort(dim=1).argsort(dim=1).view(shape)
        return torch.where(order.to(x.device) < int(eps), low + (high - low) * values.to(x), x)
