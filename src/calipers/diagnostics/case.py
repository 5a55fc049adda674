"""Case: a classifier, its inputs and the attack under diagnosis, with the runs that several checks share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.judge import Judge
from calipers.attacks.view import Trace
from calipers.diagnostics.texts import TEXTS
from calipers.errors import GradientsUnavailable, UsageError
from calipers.evidence.records import Answer, Attempt, Finding
from calipers.gradients.estimator import Autograd, GradientEstimator, goal_of_rows
from calipers.randomness import Draws, Role
from calipers.statistics.intervals import clopper_pearson_interval
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Case", "Ran", "make_case", "span_of"]

_FIRST, _MORE = 2, 16
_SAFE = 0.7
_JUDGE = Judge(draws=20, alpha=0.01)
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
        main: what that attack found, once it has run.
        pace: seconds that a forward pass costs by itself, and that each input adds, once they were measured.
    """

    target: Target
    x: Float[Tensor, "batch *dims"]
    y: Int[Tensor, " batch"]
    threat: ThreatModel
    attack: Attack
    seed: int
    main: Ran | None = field(default=None)
    pace: tuple[float, float] | None = field(default=None)

    @property
    def gradient(self) -> GradientEstimator:
        """How the attack under diagnosis has its gradient."""
        return self.attack._estimator or Autograd()

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
    ) -> Ran:
        """Run an attack on as many inputs as some seconds suffice for; on 2 of them in any case.

        Args:
            attack: the attack.
            seconds: how long it may take, about.
            rows: on which inputs; all of them if None.
            threat: for which threat model; that of the case if None.
            turn: other draws for another turn.

        Returns:
            What it found.
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
            part, todo = todo[:size], todo[size:]
            trace = Trace()
            asked = threat or self.threat
            try:
                result = attack(
                    self.target,
                    self.x[part],
                    self.y[part],
                    replace(asked, goal=goal_of_rows(asked.goal, part)),
                    seed=self.seed + turn,
                    indices=part,
                    judge=_JUDGE,
                    trace=trace,
                )
            except GradientsUnavailable as problem:  # an attack without a gradient finds nothing
                every = list(range(len(self.x)) if rows is None else rows)
                failed = torch.zeros(len(every), dtype=torch.bool)
                return Ran(every, failed, self.x[every].cpu(), [], (), perf_counter() - began, str(problem))
            traces.append((len(done), trace))
            done += part
            found.append(result.success)
            images.append(result.adversarial.cpu())
            attempts += result.records()
        success = torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)
        kept = torch.cat(images) if images else self.x[:0].cpu()
        return Ran(done, success, kept, traces, tuple(attempts), perf_counter() - began)

    def _rows_in(self, seconds: float, spent: float, done: int) -> int:
        """Say how many inputs fit into some seconds, if a batch of the first ones took so long."""
        if self.pace is None:
            self.pace = self._measured_pace()
        fixed, each = self.pace
        scale = spent / (fixed + each * done)
        return int((_SAFE * seconds / max(scale, 1e-12) - fixed) / each)

    def _measured_pace(self) -> tuple[float, float]:
        """Time forward passes of two batches: what a pass costs by itself, and what each input adds."""
        times = []
        for count in (_FIRST, min(_MORE, len(self.x))):
            rows = list(range(count))
            taken = []
            for turn in range(3):
                began = perf_counter()
                self.target.outcomes(self.x[rows], draws=self.draws(rows).fold(turn))
                taken.append(perf_counter() - began)
            times.append((count, min(taken)))
        (few, short), (many, long) = times
        each = max((long - short) / max(many - few, 1), 0.02 * short / few, 1e-9)
        return max(short - few * each, 0.0), each

    def standing(self) -> list[int]:
        """List the inputs that the attack under diagnosis did not bring down."""
        assert self.main is not None, "the attack runs before any check"
        return [row for row, fell in zip(self.main.rows, self.main.success.tolist(), strict=True) if not fell]

    def more(self, check: str, ran: Ran, *, what: str, exact: bool = False, weak: bool = False) -> Finding:
        """Judge by how many inputs another search brings down what the attack under diagnosis did not.

        Args:
            check: the name of the check.
            ran: what the other search found among the inputs that stand.
            what: the other search, in a few words.
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
        if not red and (weak or len(ran.rows) < min(left, _LEAST)):
            red = None  # too little was tried to call it green
        return self.finding(
            check,
            share,
            _SHARE,
            red,
            f"share of inputs that {what} brings down and the attack does not: {count} of {asked}, "
            f"between {low:.3f} and {high:.3f} (95 %)",
            power=f"a share of {1 - 0.05 ** (1 / asked):.3f} is missed at most one time in 20",
            seconds=ran.seconds,
        )

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


def make_case(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    threat: ThreatModel,
    attack: Attack,
    *,
    seed: int,
) -> Case:
    """Make a case of the inputs that are answered rightly.

    Args:
        target: the classifier.
        x: inputs.
        y: their classes.
        threat: norm, size and goal.
        attack: the attack under diagnosis.
        seed: of every draw.

    Returns:
        The case.

    Raises:
        UsageError: if the attack or the threat model has no size, or no input is answered rightly.
    """
    if threat.eps is None or not attack.sized:
        raise UsageError(
            "a diagnosis asks what an attack finds within a size: give eps, and an attack such as PGD"
        )
    target.check_inputs(x, y)
    images, labels = x.detach().to(target.device).float(), y.detach().to(target.device)
    draws = Draws(seed, Role.JUDGE, tuple(range(len(x))))
    answers = _JUDGE.answers(target, images, draws)
    wrong = _JUDGE.rule_on(answers, labels, threat.goal, stochastic=target.stochastic)
    rows = (~wrong).nonzero()[:, 0]
    if not len(rows):
        raise UsageError(
            f"{target.name} answers none of {len(x)} inputs rightly: give others, or other labels"
        )
    part = rows.to(images.device)
    goal = goal_of_rows(threat.goal, rows.tolist())
    return Case(target, images[part], labels[part], replace(threat, goal=goal), attack, seed)


def span_of(target: Target, norm: Norm) -> float:
    """Give the size at which a ball holds the whole box.

    Args:
        target: the classifier, whose bounds are the box.
        norm: the norm.

    Returns:
        The size, in input units.
    """
    width, count = target.bounds[1] - target.bounds[0], target.dimension
    return float(
        {Norm.LINF: width, Norm.L2: width * count**0.5, Norm.L1: width * count, Norm.L0: count}[norm]
    )
