"""Making a case: which inputs are answered rightly, each asked as often as the time allows."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.judge import Judge
from calipers.diagnostics.case import JUDGE, Case
from calipers.diagnostics.pace import measure_pace
from calipers.errors import UsageError
from calipers.gradients.estimator import goal_of_rows
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.target.arguments import check_arguments
from calipers.threat.threat_model import ThreatModel

__all__ = ["case_of", "check_question", "make_case"]

_BLOCK = 8
_FEWEST = 5


def check_question(target: Target, x: Tensor, y: Tensor, threat: ThreatModel, attack: Attack) -> None:
    """Check what a diagnosis is asked, before any of it is measured.

    Args:
        target: the classifier.
        x: inputs.
        y: their classes.
        threat: norm, size and goal.
        attack: the attack under diagnosis.

    Raises:
        UsageError: if one is of another type, the attack or the threat model has no size, or that is 0.
        InvalidInput: if an input cannot be measured.
    """
    check_arguments(target, x, y)
    if threat.eps is None:
        raise UsageError("a diagnosis asks what an attack finds within a size: give eps")
    if not attack.sized:
        raise UsageError(
            f"{type(attack).__name__} looks for the least size, and a diagnosis asks what an attack finds within one: "
            "give an attack such as PGD"
        )
    if threat.eps == 0:
        raise UsageError("eps is 0: no attack can move there; give a size above 0, such as 8/255")
    target.check_inputs(x, y)


def make_case(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    threat: ThreatModel,
    attack: Attack,
    *,
    seed: int,
    seconds: float | None = None,
) -> Case:
    """Make a case of the inputs that are answered rightly.

    Args:
        target: the classifier.
        x: inputs.
        y: their classes.
        threat: norm, size and goal.
        attack: the attack under diagnosis.
        seed: of every draw.
        seconds: how long asking may take, about; None asks every input. One whose answer is shown to be neither right
            nor wrong is left out as a wrong one is. Where the time does not suffice, the last
            inputs are left out, and a randomized classifier is asked less often, 5 times at least.

    Returns:
        The case.

    Raises:
        UsageError: if the attack or the threat model has no size, or that is 0, or no input is answered rightly.
    """
    check_question(target, x, y, threat, attack)
    images, labels = x.detach().to(target.device).float(), y.detach().to(target.device)
    draws = Draws(seed, Role.JUDGE, tuple(range(len(x))))
    judge, block = _affordable(target, images, draws, seconds)
    rows: list[int] = []
    looked, began = 0, perf_counter()
    while looked < len(x):
        part = list(range(looked, min(looked + block, len(x))))
        answers = judge.answers(target, images[part], draws.of(part))
        goal = goal_of_rows(threat.goal, part)
        wrong = judge.rule_on(answers, labels[part], goal, stochastic=target.stochastic)
        wrong |= judge.open_at(answers, labels[part], goal, stochastic=target.stochastic)
        rows += [row for row, one in zip(part, wrong.tolist(), strict=True) if not one]
        looked += len(part)
        if seconds is not None and rows and perf_counter() - began >= seconds:
            break
    if not rows:
        raise UsageError(
            f"{target.name} answers none of {len(x)} inputs rightly: give others, or other labels"
        )
    case = case_of(target, images, labels, threat, attack, rows, seed=seed, judge=judge, looked=looked)
    return replace(case, given=len(x))


def case_of(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    threat: ThreatModel,
    attack: Attack,
    rows: Sequence[int],
    *,
    seed: int,
    judge: Judge = JUDGE,
    looked: int = 0,
) -> Case:
    """Make a case of inputs that are known to be answered rightly.

    Args:
        target: the classifier.
        x: inputs.
        y: their classes.
        threat: norm, size and goal.
        attack: the attack under diagnosis.
        rows: which of them are taken.
        seed: of every draw.
        judge: how success is judged.
        looked: how many inputs were asked; all of them if 0.

    Returns:
        The case.
    """
    part = torch.tensor(list(rows), dtype=torch.int64)
    images, labels = x.detach().to(target.device).float(), y.detach().to(target.device)
    asked = replace(threat, goal=goal_of_rows(threat.goal, list(rows)))
    where = part.to(images.device)
    return Case(
        target, images[where], labels[where], asked, attack, seed, tuple(rows), looked or len(x), judge
    )


def _affordable(target: Target, x: Tensor, draws: Draws, seconds: float | None) -> tuple[Judge, int]:
    """Choose how often a randomized classifier is asked, and how many inputs at a time."""
    if seconds is None or not target.stochastic:
        return JUDGE, 100
    pace = measure_pace(target, x[:_BLOCK], draws.of(range(len(x[:_BLOCK]))))
    whole = pace.seconds(len(x))
    if JUDGE.draws * whole <= seconds:
        return JUDGE, len(x)
    return Judge(draws=max(int(seconds / whole), _FEWEST), rule="average"), _BLOCK
