"""localize: which named module shatters, randomizes, explodes or vanishes the gradient, each with its statistic.

Every module is run by itself, between what it was given at two points of the ball around each input:

- **stochastic**: it gives another output when it is called again with the same input.
- **shattered**: autograd refuses it or gives no derivative while its output changes; or the derivative disagrees with
  small finite differences; or its output jumps, which halving the way between the two inputs shows, however steep a
  continuous function is. The jumps of a random module may be those of its own choices, so they count there only where
  its derivative is 0; around several random modules the same holds of finite differences.
- **exploding, vanishing**: the derivative predicts a change of the output that is larger, or smaller, by orders of
  magnitude than the change between the two inputs; or a change that the module makes smaller by orders of magnitude
  against what tells inputs apart.
- a module that runs backward passes of its own, or uses the same weights over and over in one pass, and gives no
  derivative, is a deep computation whose gradient is lost: vanishing.

A module is named where no module inside it explains the same.

Reference: Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3.
"""

import math
import time
from collections.abc import Sequence
from typing import Final

from jaxtyping import Float
from torch import Tensor

from calipers.diagnostics.measured import (
    EXPLODES,
    JUMP,
    KINDS,
    MISMATCH,
    RANDOM,
    REUSED,
    VANISHES,
    Kind,
    Measured,
    measure_modules,
)
from calipers.evidence.records import Answer, Finding
from calipers.target import Target
from calipers.threat.threat_model import ThreatModel

__all__ = ["localize"]

_LISTED = 6


def localize(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    threat: ThreatModel,
    *,
    seed: int = 0,
    budget: float = 20.0,
) -> tuple[Finding, ...]:
    """Name the modules that hide the gradient.

    Args:
        target: the classifier; of a smoothed one, a draw is looked at.
        x: inputs, of which the first 8 are used.
        threat: norm and size of the perturbations; a twentieth of the box if it has no size.
        seed: of every draw.
        budget: seconds; modules that are not reached are left open.

    Returns:
        One red finding for each way of each module; one green finding for each way that no module shows, or an open
        one where modules were left out.
    """
    began = time.perf_counter()
    measured, left = measure_modules(target, x, threat, seed=seed, budget=budget)
    seconds = time.perf_counter() - began
    found: list[Finding] = []
    for kind in KINDS:
        blamed = _blamed(measured, kind)
        found += [_red(kind, each) for each in blamed]
        if not blamed:
            found.append(_calm(kind, measured, left, seconds))
    return tuple(found)


def _blamed(measured: Sequence[Measured], kind: Kind) -> list[Measured]:
    guilty = [each for each in measured if kind in each.hides()]
    return [each for each in guilty if not any(other.within(each.place) for other in guilty)]


_EXPLAINED: Final[dict[Kind, tuple[str, str]]] = {
    "shattered": (
        "Its gradient is absent or wrong: an attack that believes it goes nowhere.",
        "Replace its backward: BPDA with the identity where it changes its input little, with a smooth stand-in "
        "otherwise.",
    ),
    "stochastic": (
        "The same input gives another output, and another gradient, at each call: one of them says little.",
        "Average the gradient over many draws (EOT), and judge by many fresh draws.",
    ),
    "exploding": (
        "Its derivative promises changes that do not happen: a long computation of which each step feeds the next.",
        "Replace its backward by the identity where it projects (BPDA), or search another variable.",
    ),
    "vanishing": (
        "Its derivative is lost on the way, though the output changes: saturation, or a long computation.",
        "Replace its backward (BPDA), take a loss that does not saturate, or search another variable.",
    ),
}


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_LISTED]) + (", ..." if len(paths) > _LISTED else "")


def _red(kind: Kind, each: Measured) -> Finding:
    statistic, threshold, words = _statistic(kind, each)
    explanation, remedy = _EXPLAINED[kind]
    return Finding(kind, statistic, threshold, "red", words, explanation, remedy, module=each.path)


def _statistic(kind: Kind, each: Measured) -> tuple[float, float, str]:
    match kind:
        case "stochastic":
            return each.differs, RANDOM, "change of the output between two calls, over its size"
        case "exploding":
            return each.ratio, EXPLODES, "predicted change of the output over the change that happens"
        case "vanishing" if each.deep and (not each.present or each.ratio == 0):
            deep = f"{each.reuse} uses of one weight, {each.backwards} backward operations in one forward"
            return float(each.reuse), float(REUSED), f"no derivative through a long computation ({deep})"
        case "vanishing" if each.ratio < VANISHES:
            return each.ratio, VANISHES, "predicted change of the output over the change that happens"
        case "vanishing":
            return each.gain, VANISHES, "change of the output over its spread, over the same of the input"
    if not each.present:
        why = f": {each.why}" if each.why else ""
        return 0.0, 1.0, f"derivatives that autograd gives{why}"
    if not each.wrong and each.jump > JUMP[each.double]:
        return each.jump, JUMP[each.double], "share of the output's change that is a jump"
    if not each.wrong and each.silent:
        return 0.0, VANISHES, "predicted change of the output over the change that happens"
    return each.mismatch, MISMATCH[each.double], "disagreement of autograd and finite differences"


def _calm(kind: Kind, measured: Sequence[Measured], left: Sequence[str], seconds: float) -> Finding:
    if not measured and not left:
        return Finding(
            kind,
            math.nan,
            math.nan,
            "open",
            "nothing",
            "The classifier shows no modules: ask for the network itself, or attack by scores or decisions alone.",
            "",
            seconds=seconds,
        )
    if kind == "shattered":
        left = [*left, *(each.path for each in measured if each.open)]
    fewest = min((each.rows for each in measured if each.rows), default=0)
    power = f"{len(measured)} modules, each at two points of the ball of {fewest} inputs at least"
    verdict: Answer = "green"
    explanation = "No module shows it."
    if left:
        verdict, explanation = (
            "open",
            f"No module shows it, but {len(left)} could not be measured, for want of time or since torch.jit compiled "
            f"them: {_listed(left)}.",
        )
    words = "modules that show it"
    return Finding(kind, 0.0, 1.0, verdict, words, explanation, "", power=power, seconds=seconds)
