"""Trials: a candidate on a few inputs, with as many draws, steps and inputs as a share of the time suffices for."""

import math
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple, final

import torch
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.geometry import settle
from calipers.attacks.judge import reaches
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square
from calipers.attacks.view import OutOfTime, Trace, View
from calipers.diagnostics.candidates import MARGIN, Candidate
from calipers.diagnostics.case import Case
from calipers.diagnostics.prescription import Trial
from calipers.errors import CalipersError
from calipers.gradients.estimator import goal_of_rows
from calipers.threat.objectives import OBJECTIVES

__all__ = ["ASKED", "Tried", "try_candidate", "try_scores"]

ASKED = 20
"""How often an ensemble asks a randomized classifier for each candidate."""
_STEPS, _ENOUGH, _FEWEST = 20, 10, 5
_INPUTS, _LEAST_INPUTS = 4, 2
_DRAWS = (8, 40)
_PROBES, _LEAST_PROBES = 12, 3
_RATIO = 4.0
_SHARE_OF_PROBES = 0.3
_PATIENCE = 2.0
_QUERIES, _LEAST_QUERIES = 500, 50
_ANSWERS = 12
_QUICK = 0.1
_OTHER_LOSS = "The cross-entropy is the loss, since the margin has a gradient of 0."
_BREAKS = (CalipersError, RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a module may raise under a view that it was not written for, such as float64."""


@final
@dataclass(frozen=True, eq=False)
class Tried:
    """A candidate, and what its trial showed.

    Args:
        candidate: the candidate.
        trial: what is told of it.
        fell: which of the inputs fell.
        rate: the mean rate of success.
        scale: the time of one gradient, in forward passes of as many rows.
        draws: how many draws it is to be averaged over.
        flat: whether its gradient was 0 wherever it was looked at.
        late: whether there was no time to try it, or to try it to the end.
    """

    candidate: Candidate
    trial: Trial
    fell: frozenset[int] = frozenset()
    rate: float = 0.0
    scale: float = 3.0
    draws: int = 0
    flat: bool = False
    late: bool = False


class _Shape(NamedTuple):
    """The size of a trial."""

    inputs: int
    steps: int
    draws: int


def try_candidate(case: Case, candidate: Candidate, *, seconds: float) -> Tried:
    """Try a candidate on the inputs of a case, or on the first of them.

    Args:
        case: the case.
        candidate: the candidate.
        seconds: how long the trial may take; it is given up after twice as long.

    Returns:
        What it showed. A candidate of which two gradients of two inputs do not fit is refused.
    """
    began, pace = perf_counter(), case.measured_pace()
    if 2 * pace.seconds(_LEAST_INPUTS * candidate.rows(candidate.least)) > seconds:
        trial = _refused(candidate.what, "left out, a gradient takes too long", began)
        return Tried(candidate, trial, draws=_DRAWS[0] if candidate.draws < 0 else candidate.draws, late=True)
    try:
        scale, flat = (1.0, 0) if candidate.sigma else _measured(case, candidate)
        if flat:
            reasons = tuple(each for each in candidate.reasons if each != MARGIN)
            other = replace(candidate, loss="cross_entropy", reasons=(*reasons, _OTHER_LOSS))
            scale, flat = _measured(case, other)
            candidate = candidate if flat else other
        if flat:
            trial = _refused(candidate.what, f"its gradient is 0 on {flat} inputs", began)
            return Tried(candidate, trial, flat=True, scale=scale)
        wanted, reason = candidate.draws, ""
        if wanted < 0:
            wanted, reason = _draws_needed(case, candidate, _SHARE_OF_PROBES * seconds / scale)
        told = replace(candidate, reasons=(*candidate.reasons, *([reason] if reason else [])))
        spare = seconds - (perf_counter() - began)
        shape = _fitting(case, candidate, scale, wanted, spare)
        if shape is None:
            words = (
                f"left out, {_FEWEST} steps on {_LEAST_INPUTS} inputs take more than {max(spare, 0):.2g} s"
            )
            return Tried(told, _refused(candidate.what, words, began), scale=scale, draws=wanted, late=True)
        attack = PGD(candidate.view(shape.draws), steps=shape.steps, loss=candidate.loss)
        rates = _rates(case, attack, shape.inputs, until=perf_counter() + _PATIENCE * max(spare, 0.5))
        text = repr(attack)
    except _BREAKS as problem:
        return Tried(candidate, _refused(candidate.what, " ".join(str(problem).split()), began))
    except OutOfTime:
        words = f"given up after {perf_counter() - began:.2g} s"
        return Tried(told, _refused(candidate.what, words, began), scale=scale, draws=wanted, late=True)
    fell = frozenset((rates > 0.5).nonzero()[:, 0].tolist())
    what = candidate.words(shape.draws) + (f", {shape.steps} steps" if shape.steps < _STEPS else "")
    trial = Trial(what, text, len(fell), len(rates), perf_counter() - began)
    return Tried(told, trial, fell, float(rates.mean()), scale, wanted)


def try_scores(case: Case, rows: list[int], *, seconds: float) -> Trial:
    """Try the search that sees scores alone on inputs that stood.

    Args:
        case: the case.
        rows: the inputs.
        seconds: how long it may take; it is given up after twice as long.

    Returns:
        What is told of it.
    """
    began, what = perf_counter(), "scores alone"
    votes = Square().votes if case.target.stochastic else 1
    queries = min(int(seconds / case.measured_pace().seconds(votes * len(rows))), _QUERIES)
    if queries < _LEAST_QUERIES:
        return _refused(what, f"left out, there is time for {queries} queries", began)
    part = replace_inputs(case, rows)
    attack = Square(queries=queries)
    try:
        rates = _rates(part, attack, len(rows), until=began + _PATIENCE * seconds)
    except OutOfTime:
        return _refused(what, f"given up after {perf_counter() - began:.2g} s", began)
    return Trial(what, repr(attack), int((rates > 0.5).sum()), len(rows), perf_counter() - began)


def replace_inputs(case: Case, rows: list[int]) -> Case:
    """Take some inputs of a case.

    Args:
        case: the case.
        rows: which.

    Returns:
        A case of these alone, with the same pace.
    """
    goal = goal_of_rows(case.threat.goal, rows)
    return replace(case, x=case.x[rows], y=case.y[rows], threat=replace(case.threat, goal=goal))


def _refused(what: str, why: str, began: float) -> Trial:
    return Trial(what, "", 0, 0, perf_counter() - began, why)


def _gradient(case: Case, candidate: Candidate, x: Tensor, turn: int) -> Tensor:
    rows = list(range(len(x)))
    draws = case.draws(rows).fold(turn)
    goal = goal_of_rows(case.threat.goal, rows)
    objective = OBJECTIVES[candidate.loss]
    found = candidate.single.estimate(case.target, objective, x, case.y[rows], goal, draws=draws)
    return found.gradient.flatten(1).double()


def _measured(case: Case, candidate: Candidate) -> tuple[float, int]:
    """Time one gradient near some inputs, in forward passes; and say on how many it is 0, if it is so on all."""
    pace = case.measured_pace()
    count = len(case.x) if pace.seconds(len(case.x)) < _QUICK else min(_INPUTS, len(case.x))
    draws = case.draws(range(count)).fold(_PROBES)
    noise = torch.stack(
        [torch.randn(case.x.shape[1:], generator=draws[row].generator(0)) for row in range(count)]
    )
    low, high = case.target.bounds
    near = (case.x[:count] + 0.5 * case.coordinate * noise.to(case.x)).clamp(low, high)
    taken = []
    for turn in range(2):
        began = perf_counter()
        gradient = _gradient(case, candidate, near, turn)
        taken.append(perf_counter() - began)
        if taken[0] > _QUICK:
            break
    flat = not bool((torch.nan_to_num(gradient, nan=0.0) != 0).any())
    return min(taken) / pace.seconds(count), count if flat else 0


def _draws_needed(case: Case, candidate: Candidate, passes: float) -> tuple[int, str]:
    """Choose how many draws, so that a quarter of the mean gradient's square is noise, or less."""
    few = case.x[:_INPUTS]
    probes = min(int(passes / case.measured_pace().seconds(len(few))), _PROBES)
    if probes < _LEAST_PROBES:
        return _DRAWS[0], f"The noise of the gradient was not measured for want of time: {_DRAWS[0]} draws."
    drawn = torch.stack([_gradient(case, candidate, few, turn) for turn in range(probes)])
    drawn = torch.nan_to_num(drawn, nan=0.0, posinf=0.0, neginf=0.0)
    mean = drawn.mean(0)
    noise = (drawn - mean).square().sum(2).mean(0) * probes / (probes - 1)
    signal = (mean.square().sum(1) - noise / probes).clamp_min(1e-3 * noise + 1e-30)
    needed = float((_RATIO * noise / signal).median())
    count = min(max(math.ceil(needed), _DRAWS[0]), _DRAWS[1])
    return (
        count,
        f"A single gradient has {needed / _RATIO:.1f} times as much noise as signal (in squares): {count} draws.",
    )


def _fitting(case: Case, candidate: Candidate, scale: float, wanted: int, seconds: float) -> _Shape | None:
    """Find the largest trial that fits: draws are given up first, then steps, then inputs."""
    pace, most = case.measured_pace(), len(case.x)
    few = min(_INPUTS, most)
    shapes = [_Shape(most, _STEPS, draws) for draws in halved(wanted, min(8, wanted))]
    shapes += [_Shape(most, _ENOUGH, draws) for draws in halved(min(8, wanted), candidate.least)]
    shapes += [_Shape(few, _ENOUGH, draws) for draws in halved(min(8, wanted), candidate.least)]
    shapes += [_Shape(min(count, most), _FEWEST, candidate.least) for count in (_INPUTS, _LEAST_INPUTS)]
    for shape in shapes:
        each = scale * pace.seconds(shape.inputs * candidate.rows(shape.draws))
        answers = _ANSWERS if case.target.stochastic else 1
        if (shape.steps + 1) * each + answers * pace.seconds(shape.inputs) <= seconds:
            return shape
    return None


def halved(most: int, least: int) -> list[int]:
    """Halve a number down to another one.

    Args:
        most: the first.
        least: the last, which no number is below.

    Returns:
        The numbers, falling.
    """
    found = [most]
    while found[-1] > least:
        found.append(max(found[-1] // 2, least))
    return found


def _rates(case: Case, attack: Attack, count: int, *, until: float) -> Tensor:
    """Run a search, and ask for what it ends with: this ranks candidates, and judges nothing."""
    rows = list(range(count))
    x, y = case.x[rows], case.y[rows]
    threat = replace(case.threat, goal=goal_of_rows(case.threat.goal, rows))
    view = View(case.target, attack.access, attack._estimator, count=count, trace=Trace(until=until))
    found = attack._search(view, x, y, threat, case.draws(rows))
    found = settle(found.detach(), x, threat.norm, threat.eps, case.target.bounds)
    times = _ANSWERS if case.target.stochastic else 1
    draws = case.draws(rows).fold(2**20)
    answers = torch.stack([case.target.predict(found, draws=draws.fold(turn)).cpu() for turn in range(times)])
    return reaches(answers, y.cpu(), threat.goal).double().mean(0)
