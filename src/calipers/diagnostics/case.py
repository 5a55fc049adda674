"""Case: a classifier, its inputs and the attack under diagnosis, with the runs that several checks share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.box import told_already
from calipers.attacks.judge import Judge
from calipers.attacks.view import OutOfTime, Trace
from calipers.diagnostics.pace import Pace, measure_pace
from calipers.diagnostics.texts import TEXTS
from calipers.errors import GradientsUnavailable
from calipers.evidence.records import Answer, Attempt, Finding
from calipers.gradients.estimator import Autograd, GradientEstimator, goal_of_rows
from calipers.randomness import Draws, Role
from calipers.statistics.intervals import clopper_pearson_interval
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Case", "Ran", "given_up_at"]

_FIRST = 2
_PATIENCE, _AT_LEAST = 3.0, 1.0
_SAFE = 0.7
JUDGE = Judge(draws=20, alpha=0.01)
_SHARE = 0.002
_LEAST = 10


@final
@dataclass(eq=False)
class Ran:
    """What an attack found on the first inputs of a case.

    Args:
        rows: which inputs of the case these are.
        success: whether each fell, by the judge.
        adversarial: the candidates.
        traces: what the search saw, a trace for each block of inputs, with the place of the block's first one.
        attempts: the records.
        seconds: the time it took.
        refused: why there was no gradient to search by; empty if there was one.
    """

    rows: list[int]
    success: Bool[Tensor, " rows"]
    adversarial: Float[Tensor, "rows *dims"]
    traces: list[tuple[int, Trace]]
    attempts: tuple[Attempt, ...]
    seconds: float
    refused: str = ""

    def fell(self, row: int) -> bool:
        """Say whether an input of the case fell."""
        return row in self.rows and bool(self.success[self.rows.index(row)])


@final
@dataclass(eq=False)
class Case:
    """What the checks look at: the inputs that are answered rightly.

    Args:
        target: the classifier.
        x: its inputs, all answered rightly.
        y: their classes.
        threat: norm, size and goal.
        attack: the attack under diagnosis.
        seed: of every draw.
        rows: which of the inputs that were given these are.
        looked: how many of those were asked; the others were left out for want of time.
        judge: how success is judged here.
        main: what that attack found, once it has run.
        pace: the time of a forward pass, once it was measured.
        given: how many inputs there were, those left out as well.
    """

    target: Target
    x: Float[Tensor, "batch *dims"]
    y: Int[Tensor, " batch"]
    threat: ThreatModel
    attack: Attack
    seed: int
    rows: tuple[int, ...] = ()
    looked: int = 0
    judge: Judge = JUDGE
    main: Ran | None = field(default=None)
    pace: Pace | None = field(default=None)
    given: int = 0

    @property
    def gradient(self) -> GradientEstimator:
        """How the attack under diagnosis has its gradient."""
        return self.attack._estimator or Autograd()

    @property
    def coordinate(self) -> float:
        """The size of the perturbations, as a root mean square a coordinate."""
        eps, count = self.threat.eps or 0.0, self.target.dimension
        parts: dict[Norm, float] = {
            Norm.LINF: 1.0,
            Norm.L2: math.sqrt(count),
            Norm.L1: float(count),
            Norm.L0: float(count),
        }
        return eps / parts[self.threat.norm]

    def draws(self, rows: Sequence[int]) -> Draws:
        """Give the streams of some inputs.

        Args:
            rows: which.

        Returns:
            Their streams.
        """
        return Draws(self.seed, Role.ESTIMATE, tuple(rows))

    def within(
        self,
        attack: Attack,
        seconds: float,
        *,
        rows: Sequence[int] | None = None,
        threat: ThreatModel | None = None,
        turn: int = 0,
        surely: bool = False,
    ) -> Ran:
        """Run an attack on as many inputs as some seconds suffice for; it begins with 2 of them.

        Args:
            attack: the attack.
            seconds: how long it may take, about; it is given up after three times as long.
            rows: on which inputs; all of them if None.
            threat: for which threat model; that of the case if None.
            turn: other draws for another turn.
            surely: whether the first 2 inputs are finished however long they take.

        Returns:
            What it found.

        Raises:
            OutOfTime: if it was given up on the first inputs.
        """
        began, todo = perf_counter(), list(range(len(self.x)) if rows is None else rows)
        done: list[int] = []
        found, images, attempts, traces = [], [], list[Attempt](), list[tuple[int, Trace]]()
        for limit in (_FIRST, len(todo)):
            size = min(limit, len(todo))
            if done:
                spent = perf_counter() - began
                size = min(size, self._rows_in(seconds - spent, spent, len(done)))
            if size < 1:
                break
            part = todo[:size]
            until = None if surely and not done else given_up_at(began, seconds)
            trace = Trace(until=until)
            asked = threat or self.threat
            try:
                with told_already():
                    result = attack(
                        self.target,
                        self.x[part],
                        self.y[part],
                        replace(asked, goal=goal_of_rows(asked.goal, part)),
                        seed=self.seed + turn,
                        indices=part,
                        judge=self.judge,
                        trace=trace,
                    )
            except OutOfTime:
                if not done:
                    raise
                break  # what was finished is known
            except GradientsUnavailable as problem:  # an attack without a gradient finds nothing
                every = list(range(len(self.x)) if rows is None else rows)
                failed = torch.zeros(len(every), dtype=torch.bool)
                return Ran(every, failed, self.x[every].cpu(), [], (), perf_counter() - began, str(problem))
            traces.append((len(done), trace))
            done, todo = done + part, todo[size:]
            found.append(result.success)
            images.append(result.adversarial.cpu())
            attempts += result.records()
        success = torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
        kept = torch.cat(images) if images else self.x[:0].cpu()
        return Ran(done, success, kept, traces, tuple(attempts), perf_counter() - began)

    def measured_pace(self) -> Pace:
        """Time forward passes, unless that was done before.

        Returns:
            The time of a forward pass.
        """
        if self.pace is None:
            self.pace = measure_pace(self.target, self.x, self.draws(range(len(self.x))))
        return self.pace

    def _rows_in(self, seconds: float, spent: float, done: int) -> int:
        """Say how many inputs fit into some seconds, if a batch of the first ones took so long."""
        pace = self.measured_pace()
        scale = spent / pace.seconds(done)
        return int((_SAFE * seconds / max(scale, 1e-12) - pace.fixed) / pace.each)

    def standing(self) -> list[int]:
        """List the inputs that the attack under diagnosis did not bring down."""
        assert self.main is not None, "the attack runs before any check"
        return [row for row, fell in zip(self.main.rows, self.main.success.tolist(), strict=True) if not fell]

    def scant(self, tried: int) -> bool:
        """Say whether too few inputs were tried to call a check green: fewer than 10, and than there are.

        Args:
            tried: how many were tried.

        Returns:
            The answer.
        """
        return tried < (_LEAST if self.looked < self.given else min(len(self.x), _LEAST))

    def more(
        self,
        check: str,
        ran: Ran,
        *,
        what: str,
        others: str = "the attack does not",
        exact: bool = False,
        weak: bool = False,
    ) -> Finding:
        """Judge by how many inputs another search brings down what the attack under diagnosis did not.

        Args:
            check: the name of the check.
            ran: what the other search found among the inputs that stand.
            what: the other search, in a few words.
            others: which searches do not bring these down, in a few words.
            weak: whether the other search had too little time to say anything by finding nothing.
            exact: whether the share itself is compared with the threshold, as AutoAttack does, and not the lower end
                of its interval.

        Returns:
            The finding.
        """
        assert self.main is not None, "the attack runs before any check"
        left = len(self.standing())
        asked = len(self.main.rows) if len(ran.rows) == left else len(ran.rows)
        count = int(ran.success.sum())
        if not asked:
            return self.finding(check, 0.0, _SHARE, False, "no input stands", seconds=ran.seconds)
        interval = clopper_pearson_interval([count], asked, confidence=0.95)
        low, high = float(interval.lower[0]), float(interval.upper[0])
        share = count / asked
        red: bool | None = (share if exact else low) > _SHARE
        if not red and (weak or len(ran.rows) < min(left, _LEAST) or self.scant(len(self.main.rows))):
            red = None  # too little was tried to call it green
        found = self.finding(
            check,
            share,
            _SHARE,
            red,
            f"share of inputs that {what} brings down and {others}: {count} of {asked}, "
            f"between {low:.3f} and {high:.3f} (95 %)",
            power=f"a share of {1 - 0.05 ** (1 / asked):.3f} is missed at most one time in 20",
            seconds=ran.seconds,
        )
        if found.verdict == "green" and count:  # its text says that there is nothing
            few = f"It finds {count} more, which is not shown to be above {_SHARE} of all."
            return replace(found, explanation=few)
        return found

    def finding(
        self,
        check: str,
        statistic: float,
        threshold: float,
        red: bool | None,
        measured: str,
        *,
        power: str = "",
        seconds: float = 0.0,
    ) -> Finding:
        """Write a finding with the texts of its check.

        Args:
            check: the name of the check.
            statistic: what was measured.
            threshold: where red begins.
            red: the verdict; None where the check could not be made.
            measured: the statistic in words, or why there is none.
            power: what the check could have seen.
            seconds: the time it took.

        Returns:
            The finding.
        """
        text = TEXTS[check]
        verdict: Answer = "open" if red is None else "red" if red else "green"
        explanation = {"open": f"Not decided: {measured}.", "red": text.red, "green": text.green}[verdict]
        remedy = text.remedy if verdict == "red" else ""
        return Finding(
            check, statistic, threshold, verdict, measured, explanation, remedy, power=power, seconds=seconds
        )


def given_up_at(began: float, seconds: float) -> float:
    """Say when a search is given up: after three times the time that it was to take, and no sooner than in a second.

    Args:
        began: when it began, by ``time.perf_counter()``.
        seconds: how long it was to take.

    Returns:
        A time of the same clock.
    """
    return began + max(_PATIENCE * seconds, _AT_LEAST)
