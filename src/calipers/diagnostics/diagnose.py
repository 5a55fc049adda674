"""diagnose: every check of a classifier under an attack, each within its share of the time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.box import warn_beyond
from calipers.attacks.pgd import PGD
from calipers.attacks.view import OutOfTime
from calipers.diagnostics import behaviours, flags, indicators
from calipers.diagnostics.binarization import binarization
from calipers.diagnostics.case import Case, Ran
from calipers.diagnostics.convergence import more_restarts_help, more_steps_help
from calipers.diagnostics.localize import localize
from calipers.diagnostics.making import check_question, make_case
from calipers.evidence.records import Attempt, Finding
from calipers.target import Target
from calipers.threat.threat_model import ThreatModel

__all__ = ["Diagnosis", "diagnose"]


@final
@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What all checks say.

    Args:
        findings: one or more a check; the modules' first.
        attempts: what the attack under diagnosis found, one record an input that is answered rightly.
        attack: the repr of that attack.
        target: the fingerprint of the classifier.
        inputs: how many inputs were looked at.
        right: how many of them are answered rightly.
        attacked: how many of those were attacked in the time.
        seconds: the time all of it took.
        rows: which of the inputs are answered rightly; the attempts are those of the first of them.
        searched: that attack itself, for what follows from the diagnosis.
    """

    findings: tuple[Finding, ...]
    attempts: tuple[Attempt, ...]
    attack: str
    target: str
    inputs: int
    right: int
    attacked: int
    seconds: float
    rows: tuple[int, ...] = ()
    searched: Attack | None = None

    def __repr__(self) -> str:
        left = sum(each.verdict == "open" for each in self.findings)
        return (
            f"Diagnosis({self.fell} of {self.attacked} inputs fall; "
            f"{len(self.red)} of {len(self.findings)} findings red, {left} open)"
        )

    @property
    def red(self) -> tuple[Finding, ...]:
        """What speaks against the gradient, or against the attack."""
        return tuple(each for each in self.findings if each.verdict == "red")

    @property
    def fell(self) -> int:
        """How many of the inputs that were attacked fell."""
        return sum(each.success for each in self.attempts)

    def modules(self, check: str) -> tuple[str, ...]:
        """Name the modules that hide the gradient in one way.

        Args:
            check: shattered, stochastic, exploding or vanishing.

        Returns:
            Their paths.
        """
        return tuple(each.module for each in self.red if each.check == check)

    def records(self) -> list[Attempt]:
        """Cross the border from results to stored rows.

        Returns:
            The records of the attack under diagnosis.
        """
        return list(self.attempts)

    def text(self) -> str:
        """Write the diagnosis as a person reads it, what is red first.

        Returns:
            Several lines.
        """
        lines = [f"{self.fell} of {self.attacked} inputs fall to {self.attack}"]
        for word in ("red", "open", "green"):
            for each in self.findings:
                if each.verdict == word:
                    place = f" {each.module}" if each.module else ""
                    lines.append(f"{word:<6}{each.check}{place}: {each.statistic:.3g} ({each.measured})")
                    if word == "red":
                        lines.append(f"      {each.explanation} {each.remedy}")
        lines.append("That none is red proves nothing." if not self.red else "")
        return "\n".join(line for line in lines if line)

    def to_dict(self) -> dict[str, Any]:
        """Give everything but the records as plain values for JSON.

        Returns:
            A mapping.
        """
        return {
            "attack": self.attack,
            "target": self.target,
            "inputs": self.inputs,
            "right": self.right,
            "attacked": self.attacked,
            "fell": self.fell,
            "seconds": self.seconds,
            "findings": [each.to_dict() for each in self.findings],
        }


def diagnose(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    threat: ThreatModel,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    budget: float = 60.0,
    tell: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Ask whether the gradient of a classifier is honest, and whether an attack is strong enough.

    Args:
        target: the classifier.
        x: inputs.
        y: their classes.
        threat: norm, size and goal of the adversary.
        attack: the attack under diagnosis; PGD with 40 steps and 2 restarts if None.
        seed: of every draw.
        budget: seconds that all checks may take together, about: each runs on as many inputs as its share suffices
            for, and says how many that were.
        tell: told in words what is being done.

    Returns:
        The diagnosis.

    Raises:
        UsageError: if the target is none, the inputs or labels are no tensors or not one each, or the attack or the
            threat model has no size.
        InvalidInput: if an input cannot be measured.
    """
    began = perf_counter()
    named = attack or PGD(steps=40, restarts=2)
    check_question(target, x, y, threat, named)
    warn_beyond(target, threat)
    told = tell or _silent
    told("which modules hide the gradient")
    found = list(localize(target, x, threat, seed=seed, budget=0.2 * budget))
    case = make_case(target, x, y, threat, named, seed=seed, seconds=0.1 * budget)
    told("the attack itself")
    case.main = case.within(case.attack, 0.15 * budget, surely=True)
    found += _checks(case, budget, told)
    return Diagnosis(
        tuple(found),
        case.main.attempts,
        repr(case.attack),
        target.fingerprint,
        case.looked,
        len(case.x),
        len(case.main.rows),
        perf_counter() - began,
        case.rows,
        case.attack,
    )


def _checks(case: Case, budget: float, told: Callable[[str], None]) -> list[Finding]:
    assert case.main is not None, "the attack runs before any check"

    def checked(name: str, share: float, check: Callable[..., Finding]) -> Finding:
        return ran(name, share, lambda case, seconds: (check(case, seconds=seconds), None))[0]

    def ran(
        name: str, share: float, check: Callable[..., tuple[Finding, Ran | None]]
    ) -> tuple[Finding, Ran | None]:
        began = perf_counter()
        try:
            return check(case, seconds=share * budget)
        except OutOfTime:
            words = f"its share of {budget:g} seconds does not suffice for 2 inputs"
            return case.finding(name, math.nan, math.nan, None, words, seconds=perf_counter() - began), None

    told("the five behaviours")
    found = [checked("one-step-beats-iterative", 0.03, behaviours.one_step_beats_iterative)]
    square, blind = ran("black-box-beats-white-box", 0.1, behaviours.black_box_beats_white_box)
    unbounded, whole = ran("unbounded-attack-fails", 0.08, behaviours.unbounded_attack_fails)
    found += [square, unbounded]
    found.append(checked("random-search-finds-more", 0.08, behaviours.random_search_finds_more))
    found.append(checked("success-falls-with-size", 0.14, behaviours.success_falls_with_size))
    told("the indicators of attack failure")
    found.append(indicators.unavailable_gradients(case))
    found.append(indicators.unstable_predictions(case, seconds=0.03 * budget))
    found.append(indicators.silent_success(case))
    found.append(indicators.incomplete_optimization(case))
    found.append(indicators.transfer_failure(case))
    found.append(indicators.unconstrained_attack_fails(case, whole))
    found += _flags(case, blind, seconds=0.05 * budget, weak=square.verdict == "open")
    told("the binarization test")
    found.append(checked("binarization", 0.12, binarization))
    told("convergence by doubling")
    found.append(checked("more-steps-help", 0.1, more_steps_help))
    found.append(checked("more-restarts-help", 0.1, more_restarts_help))
    return found


def _flags(case: Case, square: Ran | None, *, seconds: float, weak: bool) -> list[Finding]:
    return [
        flags.randomized(case),
        flags.softmax_output(case),
        flags.zero_gradient(case),
        flags.square_better(case, square, seconds=seconds, weak=weak),
        flags.optimization_at_inference(case),
        flags.few_classes(case),
    ]


def _silent(_: str) -> None:
    pass
