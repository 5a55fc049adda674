"""Transfer: adversarial examples of a substitute, judged on the real classifier, which the search never asks."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.pgd import PGD
from calipers.attacks.view import View
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.target import Access, Target
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Transfer"]


@final
@dataclass(frozen=True)
class Transfer(Attack):
    """Searches on a substitute with another attack, and offers what that one found.

    The real classifier is asked by the judge alone: queries, forwards and backwards of the search are those of the
    substitute, and count for nothing here. Where a substitute falls and the real classifier does not, nothing is shown
    by itself; where the examples carry over and a direct attack found none, the direct attack was misled by the
    gradient (Athalye et al. 2018, arXiv:1802.00420, section 3.1).

    The inner attack should go on where the substitute has fallen already, such as ``PGD(keep=True)``: examples of a
    larger margin carry over better. One that looks for the least size ends at the boundary of the substitute, and
    carries over least.

    Reference: Papernot et al. 2017, arXiv:1602.02697; Liu et al. 2017, arXiv:1611.02770, section 3.

    Args:
        substitute: the reference of the substitute, such as ``bundled:fashion-cnn28-plain``, as
            :func:`calipers.sources.models.load_model` takes it.
        attack: the attack on the substitute.
        fingerprint: the fingerprint that the substitute must have, so that a changed file is not taken for it; any if
            empty.
    """

    norms: ClassVar[tuple[Norm, ...]] = (Norm.LINF, Norm.L2, Norm.L1, Norm.L0)
    sized: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    substitute: str = ""
    attack: Attack = field(default_factory=lambda: PGD(keep=True))
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.attack, Transfer):
            raise UsageError("the inner attack is a Transfer itself: give the last substitute and its attack")
        object.__setattr__(self, "revision", self.revision + self.attack.revision - 1)

    @property
    def access(self) -> Access:
        """Classes, and those to the judge alone."""
        return Access.DECISIONS

    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        substitute = self._loaded(view, tuple(x.shape[1:]))
        self.attack._check(substitute, x, y, threat, draws.indices)
        seen = View(substitute, self.attack.access, self.attack._estimator, count=len(x))
        return self.attack._search(seen, x, y, threat, draws)

    def _loaded(self, view: View, shape: tuple[int, ...]) -> Target:
        if not self.substitute:
            raise UsageError(
                "Transfer has no substitute: name a model, such as substitute='bundled:fashion-cnn28-plain'"
            )
        found = _load(self.substitute, view.device.type, shape)
        if found.num_classes != view.num_classes:
            raise UsageError(
                f"the substitute {self.substitute} has {found.num_classes} classes and the classifier "
                f"{view.num_classes}: give one of the same task"
            )
        if self.fingerprint and found.fingerprint != self.fingerprint:
            raise UsageError(
                f"the substitute {self.substitute} has the fingerprint {found.fingerprint} and not "
                f"{self.fingerprint}: it has changed, so begin another run"
            )
        return found


@lru_cache(maxsize=2)
def _load(reference: str, device: str, shape: tuple[int, ...]) -> Target:
    from calipers.sources.models import load_model

    return load_model(reference, device=device, input_shape=shape)
