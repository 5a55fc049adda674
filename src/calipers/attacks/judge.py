"""Judge: the one place where it is decided whether a candidate is an adversarial example."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.geometry import distances, inside_box, on_grid, settle, settle_on_grid
from calipers.errors import UsageError
from calipers.randomness import Draws
from calipers.statistics.intervals import clopper_pearson_interval
from calipers.target import Access, Target
from calipers.threat.threat_model import ABSTAIN, Goal, Targeted, ThreatModel

__all__ = ["Judge", "Rule", "Verdict", "reaches"]

Rule = Literal["majority", "worst", "average"]
_RULES = ("majority", "worst", "average")
_ROWS = 100
_AT_CANDIDATE = 2**32


@final
@dataclass(frozen=True, eq=False)
class Verdict:
    """What the judge found of each candidate.

    Args:
        adversarial: the candidate as it was judged: float32, inside the box and the ball.
        success: the goal is reached, inside the box and the ball, by the judge's rule.
        undetermined: the candidate lies inside and neither success nor failure was shown: the classifier abstains
            where that counts as neither, or the interval of a randomized classifier's rate holds ½, or would if its
            abstentions reached the goal.
        prediction: the answer at the candidate; of a randomized classifier, the most frequent one.
        distance: the size of the perturbation in float64, rounded up, in input units.
        wins: the draws in which the goal was reached; of a deterministic classifier, of one draw.
        draws: the draws made of each candidate.
        flips: the draws in which the goal was reached **at the clean input**, with no attack at all.
    """

    adversarial: Float[Tensor, "batch *dims"]
    success: Bool[Tensor, " batch"]
    undetermined: Bool[Tensor, " batch"]
    prediction: Int[Tensor, " batch"]
    distance: Float[Tensor, " batch"]
    wins: Int[Tensor, " batch"]
    draws: int
    flips: Int[Tensor, " batch"]


@final
@dataclass(frozen=True)
class Judge:
    """Judges candidates on the real classifier, by fresh forward passes and fresh draws.

    What is judged is what would be saved: float32 numbers, or bytes with ``quantize``. Perturbations are measured in
    float64 and rounded up; the box and the ball are met exactly or not at all. Forwards run in one fixed batch shape,
    so that the verdict of a candidate does not depend on its neighbours.

    A randomized classifier is asked many times. By the ``majority`` rule a candidate succeeds when the interval of its
    rate of success lies above ½; by ``worst`` when one draw succeeds; by ``average`` when more than half of them do,
    while what is reported is the rate. What flips without any attack is counted beside it and never subtracted.

    Args:
        draws: the draws of a randomized classifier, for the candidate and for the clean input each.
        alpha: the probability that the interval of a rate misses it.
        rule: ``majority``, ``worst`` or ``average``.
        quantize: whether candidates are rounded to multiples of 1/255 of the box first, as an 8-bit image would be.
    """

    draws: int = 100
    alpha: float = 0.001
    rule: Rule = "majority"
    quantize: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UsageError(f"draws is {self.draws}: a judge needs at least 1")
        if not 0 < self.alpha < 1:
            raise UsageError(f"alpha is {self.alpha}: give a probability inside (0, 1)")
        if self.rule not in _RULES:
            raise UsageError(f"rule is {self.rule!r}: use {', '.join(_RULES)}")

    def settle(
        self,
        target: Target,
        candidate: Float[Tensor, "batch *dims"],
        x: Float[Tensor, "batch *dims"],
        threat: ThreatModel,
    ) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, " batch"]]:
        """Round candidates as a file would hold them, inside the box and the ball.

        Args:
            target: the classifier, whose bounds are the box.
            candidate: what a search ended with.
            x: the clean inputs, float32.
            threat: the norm and the size of the ball.

        Returns:
            Float32 inputs, and their distances, float64, rounded up.

        Raises:
            UsageError: if 8-bit images are asked for and the clean inputs are none.
        """
        if not self.quantize:
            settled = settle(candidate, x, threat.norm, threat.eps, target.bounds)
            return settled, distances(settled, x, threat.norm)
        grid = on_grid(x, target.bounds)
        if not bool(grid.all()):
            row = int((~grid).nonzero()[0])
            raise UsageError(
                f"input {row} is no 8-bit image, and candidates are to be rounded to one: leave --quantize out"
            )
        return settle_on_grid(candidate, x, threat.norm, threat.eps, target.bounds)

    def answers(
        self, target: Target, x: Float[Tensor, "batch *dims"], draws: Draws
    ) -> Int[Tensor, "draws batch"]:
        """Ask the real classifier, as often as it takes.

        Args:
            target: the classifier.
            x: inputs, float32.
            draws: the judge's streams, one an input.

        Returns:
            Its answers, ABSTAIN among them: one row where the target is deterministic.
        """
        times = self.draws if target.stochastic else 1
        with torch.no_grad():
            rows = [self._answer(target, x, draws.fold(time)) for time in range(times)]
        return torch.stack(rows)

    def __call__(
        self,
        target: Target,
        x: Float[Tensor, "batch *dims"],
        candidate: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        *,
        draws: Draws,
        clean: Int[Tensor, "draws batch"] | None = None,
    ) -> Verdict:
        """Judge candidates.

        Args:
            target: the real classifier.
            x: the clean inputs, float32.
            candidate: what a search ended with, of any number format, inside the ball or not.
            y: the true classes.
            threat: norm, size and goal of the adversary; without a size, any distance is inside.
            draws: the judge's streams, one an input, which no search sees.
            clean: the answers at the clean inputs, if they are known.

        Returns:
            The verdict of each candidate.
        """
        labels = y.cpu()
        saved, distance = self.settle(target, candidate.to(x.device), x, threat)
        inside = inside_box(saved, target.bounds).cpu()
        if threat.eps is not None:
            inside &= distance.cpu() <= threat.eps
        before = self.answers(target, x, draws) if clean is None else clean
        after = self.answers(target, saved, draws.fold(_AT_CANDIDATE))
        won, open_ = reaches(after, labels, threat.goal), _undecided(after, threat.goal)
        lost = reaches(before, labels, threat.goal)
        wins, times = (won & inside).sum(0), len(after)
        if target.stochastic:
            success, undetermined = self._by_rule(wins, wins + (open_ & inside).sum(0), times)
        else:
            success, undetermined = wins > 0, open_[0]
        return Verdict(
            adversarial=saved,
            success=success & inside,
            undetermined=undetermined & inside,
            prediction=after.mode(0).values,
            distance=distance.cpu(),
            wins=wins,
            draws=times,
            flips=lost.sum(0),
        )

    def rule_on(
        self,
        answers: Int[Tensor, "draws batch"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        stochastic: bool,
    ) -> Bool[Tensor, " batch"]:
        """Say where answers reach the goal by the rule, wherever they were asked.

        Args:
            answers: those of :meth:`answers`.
            y: the true classes.
            goal: what the adversary wants.
            stochastic: whether they are those of a randomized classifier.

        Returns:
            One answer an input.
        """
        won = reaches(answers, y.cpu(), goal)
        return self._by_rule(won.sum(0), won.sum(0), len(answers))[0] if stochastic else won[0]

    def open_at(
        self,
        answers: Int[Tensor, "draws batch"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        stochastic: bool,
    ) -> Bool[Tensor, " batch"]:
        """Say where answers show neither that the goal is reached by the rule nor that it is not.

        Args:
            answers: those of :meth:`answers`.
            y: the true classes.
            goal: what the adversary wants.
            stochastic: whether they are those of a randomized classifier.

        Returns:
            One answer an input.
        """
        won, open_ = reaches(answers, y.cpu(), goal), _undecided(answers, goal)
        if not stochastic:
            return open_[0]
        return self._by_rule(won.sum(0), (won | open_).sum(0), len(answers))[1]

    def _by_rule(self, wins: Tensor, most: Tensor, times: int) -> tuple[Tensor, Tensor]:
        # most: the wins there are if every abstention that counts as neither is one
        if self.rule == "worst":
            return wins > 0, (wins == 0) & (most > 0)
        if self.rule == "average":
            return 2 * wins > times, (2 * wins <= times) & (2 * most > times)
        confidence = 1 - self.alpha
        lower = clopper_pearson_interval(wins.numpy(), times, confidence=confidence).lower
        upper = clopper_pearson_interval(most.numpy(), times, confidence=confidence).upper
        above, below = torch.from_numpy(lower > 0.5), torch.from_numpy(upper < 0.5)
        return above, ~above & ~below

    def _answer(self, target: Target, x: Tensor, draws: Draws) -> Tensor:
        found = []
        for start in range(0, len(x), _ROWS):
            rows = x[start : start + _ROWS]
            indices = list(range(start, start + len(rows)))
            if target.access is Access.DECISIONS or target.stochastic:
                found.append(target.predict(rows, draws=draws.of(indices)).cpu())
                continue
            full = rows.new_zeros((_ROWS, *rows.shape[1:]))
            full[: len(rows)] = rows
            found.append(target.predict(full)[: len(rows)].cpu())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def reaches(
    answers: Int[Tensor, "draws batch"], y: Int[Tensor, " batch"], goal: Goal
) -> Bool[Tensor, "draws batch"]:
    """Say which answers reach the goal.

    Args:
        answers: classes, or ABSTAIN.
        y: the true classes.
        goal: what the adversary wants; an abstention is a success only where it says that it counts as wrong, and
            never the class that is wanted.

    Returns:
        One value an answer.
    """
    if isinstance(goal, Targeted):
        return answers == torch.tensor(goal.classes, device=answers.device)
    abstained = answers == ABSTAIN
    return (answers != y) & (~abstained | (goal.abstain == "wrong"))


def _undecided(answers: Tensor, goal: Goal) -> Tensor:
    return (answers == ABSTAIN) & (goal.abstain == "neither")
