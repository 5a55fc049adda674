"""The six indicators of attack failure: signs in the attack's own course that its failure says nothing.

Reference: Pintor et al. 2022, arXiv:2106.09947.

Differs from the paper: each indicator is a share of the inputs, with the rule of one input as in the authors' text; a
randomized classifier's single successes on the way are not silent ones.
"""

import math
from time import perf_counter

import torch
from torch import Tensor

from calipers.attacks.transfer import Transfer
from calipers.attacks.view import Trace
from calipers.diagnostics.case import Case, Ran
from calipers.errors import GradientsUnavailable
from calipers.evidence.records import Finding
from calipers.gradients.estimator import goal_of_rows
from calipers.sources.models import load_model
from calipers.statistics.intervals import clopper_pearson_interval
from calipers.target import Access
from calipers.threat.objectives import OBJECTIVES
from calipers.threat.threat_model import Untargeted

__all__ = [
    "incomplete_optimization",
    "loss_of",
    "silent_success",
    "transfer_failure",
    "unavailable_gradients",
    "unconstrained_attack_fails",
    "unstable_predictions",
    "without_gradient",
]

_RADIUS = 8 / 255 / 2
_UNSTABLE = 0.3
_RISING = 0.05
_LAST = 10
_UNFINISHED = 0.2


def unavailable_gradients(case: Case) -> Finding:
    """Ask for the gradient of the attack's loss at each input, as the attack has it.

    Args:
        case: the case.

    Returns:
        The finding; its statistic is the share of inputs without a gradient, or with one of zeros.
    """
    name, began = "unavailable-gradients", perf_counter()
    if case.target.access < case.gradient.access or case.target.access < Access.SCORES:
        return case.finding(name, 1.0, 0.0, True, "the classifier gives no gradient")
    share, words = without_gradient(case, loss_of(case), "the attack's loss")
    return case.finding(name, share, 0.0, share > 0, words, seconds=perf_counter() - began)


def loss_of(case: Case) -> str:
    """Name the loss of the attack under diagnosis.

    Args:
        case: the case.

    Returns:
        A name of an objective; the margin where the attack names none.
    """
    named = str(vars(case.attack).get("loss", "margin"))
    return named if named in OBJECTIVES else "margin"


def without_gradient(case: Case, loss: str, told: str) -> tuple[float, str]:
    """Count the inputs where a loss has no gradient, or one of zeros.

    Args:
        case: the case.
        loss: the name of the objective.
        told: whose it is, in words.

    Returns:
        The share of the inputs, and what was counted in words.
    """
    rows = list(range(len(case.x)))[:64]
    goal = goal_of_rows(case.threat.goal, rows)
    try:
        found = case.gradient.estimate(
            case.target, OBJECTIVES[loss], case.x[rows], case.y[rows], goal, draws=case.draws(rows)
        )
    except GradientsUnavailable as problem:
        return 1.0, f"autograd refuses: {problem}"
    flat = found.gradient.flatten(1)
    lost = ((flat == 0) | ~torch.isfinite(flat)).all(1)
    return float(lost.float().mean()), (
        f"share of inputs where the gradient of {told} ({loss}) is 0: {int(lost.sum())} of {len(rows)}"
    )


def unstable_predictions(case: Case, *, neighbours: int = 100, seconds: float) -> Finding:
    """Measure by how much the loss differs between an input and its neighbours within 4/255 of the box a coordinate.

    Args:
        case: the case.
        neighbours: how many.
        seconds: how long it may take, about; fewer neighbours where it does not suffice.

    Returns:
        The finding; its statistic is the mean of abs(L(x) - L(x + n)) / abs(L(x)), at most 1 each, with the loss
        averaged over as many draws as the attack averages.
    """
    name, began = "unstable-predictions", perf_counter()
    if case.target.access < Access.SCORES:
        return case.finding(name, math.nan, _UNSTABLE, None, "the classifier gives no scores")
    samples = int(vars(case.gradient).get("samples", 1)) if case.target.stochastic else 1
    rows = list(range(len(case.x)))[:32]
    half = _RADIUS * (case.target.bounds[1] - case.target.bounds[0])

    def loss(x: Tensor, turn: int) -> Tensor:
        total = torch.zeros(len(rows))
        for sample in range(samples):
            draws = case.draws(rows).fold(turn).fold(sample)
            with torch.no_grad():
                logits = case.target.logits(x, draws=draws)
            total += OBJECTIVES["cross_entropy"](logits, case.y[rows], Untargeted()).cpu()
        return total / samples

    plain = loss(case.x[rows], 0)
    apart = []
    for turn in range(1, neighbours + 1):
        noise = torch.stack(
            [
                torch.rand(case.x.shape[1:], generator=stream.generator(turn)) * 2 - 1
                for stream in (case.draws(rows)[row] for row in range(len(rows)))
            ]
        )
        moved = (case.x[rows] + half * noise.to(case.x)).clamp(*case.target.bounds)
        change = (loss(moved, turn) - plain).abs()
        apart.append((change / plain.abs().clamp_min(_floor(plain))).clamp(max=1))
        if perf_counter() - began > seconds:
            break
    value = float(torch.stack(apart).nan_to_num(1.0).mean())
    return case.finding(
        name,
        value,
        _UNSTABLE,
        value > _UNSTABLE,
        f"mean relative change of the loss to {len(apart)} neighbours of {len(rows)} inputs",
        seconds=perf_counter() - began,
    )


def _floor(plain: Tensor) -> float:
    # of a loss that is 0 to within rounding, every change is as large as itself
    return max(1e-2 * float(plain.abs().median()), 1e-3)


def silent_success(case: Case) -> Finding:
    """Count the inputs that the attack gave up though it had come across a success.

    Args:
        case: the case.

    Returns:
        The finding.
    """
    assert case.main is not None, "the attack runs before any check"
    name, rows = "silent-success", case.main.rows
    if case.target.stochastic:
        return case.finding(
            name, math.nan, 0.0, None, "a randomized classifier's single answers are no successes"
        )
    if not any(trace.rows for _, trace in case.main.traces):
        return case.finding(name, math.nan, 0.0, None, "the attack keeps no trace of its course")
    silent = 0
    for place, _, reached in _courses(case.main):
        silent += bool(reached.any()) and not bool(case.main.success[place])
    share = silent / len(rows)
    words = f"share of inputs where a success on the way was not reported: {silent} of {len(rows)}"
    red = True if share > 0 else None if case.scant(len(rows)) else False
    return case.finding(name, share, 0.0, red, words)


def incomplete_optimization(case: Case) -> Finding:
    """Count the failed inputs whose best loss was rising in the last 10 steps by more than 5 % of its whole rise.

    Of several restarts, the one that came farthest is looked at. Red begins where the interval of the share lies above
    a fifth, or the share above a half.

    Args:
        case: the case.

    Returns:
        The finding.
    """
    assert case.main is not None, "the attack runs before any check"
    name = "incomplete-optimization"
    failed = rising = 0
    restarts = int(vars(case.attack).get("restarts", 1))
    for place, values, _ in _courses(case.main):
        if bool(case.main.success[place]) or not len(values):
            continue
        if bool(values.isnan().any()):
            return case.finding(name, math.nan, _UNFINISHED, None, "the loss is not a number on the way")
        failed += 1
        rising += _still_rises(_best_start(values, restarts))
    if not failed:
        fallen = bool(case.main.success.all())
        told = "no input stands" if fallen else "the attack keeps no trace of its course"
        calm = fallen and not case.scant(len(case.main.rows))
        return case.finding(name, 0.0, _UNFINISHED, False if calm else None, told)
    interval = clopper_pearson_interval([rising], failed, confidence=0.95)
    low, high = float(interval.lower[0]), float(interval.upper[0])
    words = (
        f"share of failed searches whose loss was still rising: {rising} of {failed}, between {low:.3f} and {high:.3f} "
        "(95 %)"
    )
    many = (
        low > _UNFINISHED or 2 * rising > failed
    )  # of few the interval says nothing, and all of them may rise
    red = True if many else None if case.scant(len(case.main.rows)) else False
    return case.finding(name, rising / failed, _UNFINISHED, red, words)


def _best_start(values: Tensor, restarts: int) -> Tensor:
    # a search that failed asked equally often from each start; what one start reached is no end of another's rise
    if restarts < 2 or len(values) % restarts:
        return values
    courses = values.view(restarts, -1)
    return courses[int(courses.amax(1).argmax())]


def _still_rises(values: Tensor) -> bool:
    best = values.double().cummax(0).values
    whole = float(best[-1] - values.min())
    last = best[-min(_LAST, len(best)) :]
    return whole > 0 and float(last[-1] - last[0]) / whole > _RISING


def _courses(ran: Ran) -> list[tuple[int, Tensor, Tensor]]:
    """Give for each input its place, the loss at each estimate, and whether the goal was reached there."""
    found: list[tuple[int, Tensor, Tensor]] = []
    bounds = [start for start, _ in ran.traces] + [len(ran.rows)]
    for number, (start, trace) in enumerate(ran.traces):
        for row in range(bounds[number + 1] - start):
            found.append((start + row, *_of_row(trace, row)))
    return found


def _of_row(trace: Trace, row: int) -> tuple[Tensor, Tensor]:
    values, reached = [], []
    for rows, value, hit in zip(trace.rows, trace.value, trace.reached, strict=True):
        here = (rows == row).nonzero()[:, 0]
        if len(here):
            values.append(value[here].float())
            reached.append(hit[here])
    if not values:
        return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
    return torch.cat(values), torch.cat(reached)


def transfer_failure(case: Case) -> Finding:
    """Count the candidates that fool the classifier that was searched and not the one that is judged.

    Args:
        case: the case.

    Returns:
        The finding.
    """
    assert case.main is not None, "the attack runs before any check"
    name = "transfer-failure"
    if not isinstance(case.attack, Transfer):
        if "Transfer(" in repr(case.attack):
            words = "a part of the attack searches a substitute: diagnose that alone"
            return case.finding(name, math.nan, 0.0, None, words)
        return case.finding(name, 0.0, 0.0, False, "the classifier itself is searched")
    substitute = load_model(
        case.attack.substitute, device=case.target.device.type, input_shape=case.target.input_shape
    )
    rows, images = case.main.rows, case.main.adversarial.to(case.target.device)
    fooled = (substitute.predict(images) != case.y[rows]).cpu()
    lost = int((fooled & ~case.main.success).sum())
    share = lost / len(rows)
    words = f"share of inputs that fool the substitute alone: {lost} of {len(rows)}"
    red = True if share > 0 else None if case.scant(len(rows)) else False
    return case.finding(name, share, 0.0, red, words)


def unconstrained_attack_fails(case: Case, ran: Ran | None) -> Finding:
    """Count the inputs that stand in a ball that holds the whole box, silent successes left out.

    Args:
        case: the case.
        ran: what the attack found there; None where it was not finished.

    Returns:
        The finding.
    """
    if ran is None:
        words = "the attack was not finished there"
        return case.finding("unconstrained-attack-fails", math.nan, 0.0, None, words)
    silent: set[int] = set()
    if not case.target.stochastic:
        silent = {place for place, _, reached in _courses(ran) if bool(reached.any())}
    failed = sum(not fell and place not in silent for place, fell in enumerate(ran.success.tolist()))
    share = failed / len(ran.rows)
    words = f"share of inputs that stand though nothing limits the attack: {failed} of {len(ran.rows)}"
    red = True if share > 0 else None if case.scant(len(ran.rows)) else False
    return case.finding("unconstrained-attack-fails", share, 0.0, red, words)
