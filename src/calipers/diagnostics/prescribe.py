"""prescribe: from the findings to an adaptive attack, with no knowledge of the defense but what was measured.

1. A module that shatters, explodes or vanishes the gradient gets a stand-in for its backward: the identity where it
   keeps the shape, the slope over a finite width where it treats each pixel by itself, a learned surrogate.
2. Where a module draws at random, the gradient is averaged over as many draws as its measured variance asks for.
3. Where nothing stands in for a module, so for those around it; then the gradient is had from scores.
4. The loss is the margin, which no softmax and no temperature flattens.
5. What remains is tried on a few inputs, and the best goes into the prescription together with the plain attack, so
   that nothing is lost by it.

Reference: the recipes are those of Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 4.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.combine import worst_of
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square
from calipers.attacks.standard import Standard
from calipers.diagnostics.case import Case, make_case
from calipers.diagnostics.diagnose import Diagnosis
from calipers.diagnostics.substitutes import Substitute, ancestors, learned_for, substitutes_for
from calipers.errors import CalipersError
from calipers.gradients.bpda import BPDA
from calipers.gradients.double import Double
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimator, goal_of_rows
from calipers.gradients.finite_differences import NES
from calipers.gradients.transformations import AdditiveNoise
from calipers.target import Access, Target
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["Prescription", "Trial", "prescribe"]

_FEW = 12
_STEPS, _FINAL = 20, 40
_PROBES = 12
_NOISE = 0.5
_DRAWS = (8, 40)
_RATIO = 4.0
_CHEAP = 0.005
_MEMBERS = 3
_MOST = 12


@final
@dataclass(frozen=True)
class Trial:
    """A candidate that was tried on a few inputs.

    Args:
        what: the candidate in words.
        attack: its repr; empty where it holds a function that cannot be stored.
        fell: how many inputs fell to it.
        tried: on how many it was tried.
        seconds: the time it took.
        refused: why it could not be run; empty if it could.
    """

    what: str
    attack: str
    fell: int
    tried: int
    seconds: float
    refused: str = ""


@final
@dataclass(frozen=True)
class Prescription:
    """An adaptive attack, and why it is this one.

    Args:
        attack: the attack, to be run and judged like any other.
        why: the reasons, a sentence each.
        trials: the candidates that were tried, in order.
        seconds: the time that the choice took.
    """

    attack: Attack
    why: tuple[str, ...]
    trials: tuple[Trial, ...]
    seconds: float

    def text(self) -> str:
        """Write the prescription as a person reads it.

        Returns:
            Several lines.
        """
        lines = [f"prescribed: {self.attack!r}", *(f"  {reason}" for reason in self.why)]
        for each in self.trials:
            said = each.refused or f"{each.fell} of {each.tried} fall"
            lines.append(f"  tried: {each.what}: {said}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain values for JSON.

        Returns:
            A mapping.
        """
        return {
            "attack": repr(self.attack),
            "why": list(self.why),
            "trials": [dict(vars(each)) for each in self.trials],
            "seconds": self.seconds,
        }


@dataclass(frozen=True, eq=False)
class _Candidate:
    what: str
    view: GradientEstimator
    reasons: tuple[str, ...] = ()


def prescribe(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    y: Int[Tensor, " batch"],
    threat: ThreatModel,
    diagnosis: Diagnosis,
    *,
    seed: int = 0,
    budget: float = 60.0,
    tell: Callable[[str], None] | None = None,
) -> Prescription:
    """Choose an attack from the findings.

    Args:
        target: the classifier.
        x: inputs, of which a few are tried.
        y: their classes.
        threat: norm, size and goal of the adversary.
        diagnosis: what the checks said of this classifier.
        seed: of every draw.
        budget: seconds that fits and trials may take, about.
        tell: told in words what is being done.

    Returns:
        The attack: the best of what was tried together with the plain one, each on what still stands.
    """
    began, told = perf_counter(), tell or _silent
    plain: Attack = PGD(steps=_FINAL, loss="margin")
    hiding = {each.module for each in diagnosis.red if each.module and each.check != "stochastic"}
    noisy = {each.module for each in diagnosis.red if each.module and each.check == "stochastic"}
    suspect = any(each.check in _SUSPECT for each in diagnosis.red)
    if target.access < Access.SCORES:
        return Prescription(plain, ("The classifier gives decisions alone.",), (), perf_counter() - began)
    case = make_case(target, x, y, threat, plain, seed=seed)
    if not hiding and not noisy and not target.stochastic and not suspect:
        why = "No module hides the gradient: the plain attacks are the adaptive ones."
        return Prescription(worst_of(plain, Standard()), (why,), (), perf_counter() - began)
    rows = _rows(case, diagnosis)
    trials: list[Trial] = []
    ranked: list[tuple[float, int, _Candidate, set[int], float]] = []
    for place, candidate in enumerate(
        _candidates(case, hiding, noisy, diagnosis, rows, seconds=0.2 * budget, told=told)
    ):
        spare = budget - (perf_counter() - began)
        if place > 1 and (spare <= 0 or place >= _MOST):
            break
        told(f"trying {candidate.what}")
        trial, fell, rate = _try(case, candidate, rows, seconds=max(0.3 * spare, 1.0))
        trials.append(trial)
        if not trial.refused:
            score = rate * trial.tried / len(rows)
            ranked.append((-score, place, candidate, fell, trial.seconds / max(trial.tried, 1) / _STEPS))
        if place and trial.fell == trial.tried and 2 * trial.tried >= len(rows):
            break
    ranked.sort(key=lambda each: each[:2])
    members: list[Attack] = []
    reasons: list[str] = []
    covered: set[int] = set()
    best = -ranked[0][0] if ranked else 0.0
    for negative, _, candidate, fell, cost in ranked[:4]:
        score = -negative
        if not members or fell - covered or (score > 0 and 2 * score >= best):
            members.append(_attack(case, candidate.view, cost))
            reasons += [
                *candidate.reasons,
                f"{candidate.what}: {len(fell)} of {len(rows)} inputs fell in the trial.",
            ]
            covered |= fell
        if len(members) == _MEMBERS:
            break
    if members and plain not in members and _runs(case, rows):
        members.insert(0, plain)
    if threat.norm in Square.norms and len(covered) < len(rows):
        square = case.within(Square(queries=500), 0.2 * budget, rows=[r for r in rows if r not in covered])
        trials.append(
            Trial(
                "scores alone",
                repr(Square(queries=500)),
                int(square.success.sum()),
                len(square.rows),
                square.seconds,
            )
        )
        if int(square.success.sum()):
            members.append(Square(queries=2000))
            reasons.append("A search that sees scores alone found more on the inputs that stood.")
    if not members:
        members = [plain]
    found = members[0] if len(members) == 1 else worst_of(*members)
    return Prescription(found, tuple(dict.fromkeys(reasons)), tuple(trials), perf_counter() - began)


_SUSPECT = (
    "black-box-beats-white-box",
    "random-search-finds-more",
    "one-step-beats-iterative",
    "unbounded-attack-fails",
    "success-falls-with-size",
    "unavailable-gradients",
    "zero-gradient",
    "softmax-output",
    "unstable-predictions",
)


def _rows(case: Case, diagnosis: Diagnosis) -> list[int]:
    # among the inputs that are answered rightly, those that stood first; attempts are in the order of the case
    standing = [
        place for place, each in enumerate(diagnosis.attempts) if not each.success and place < len(case.x)
    ]
    others = [place for place in range(len(case.x)) if place not in standing]
    return sorted((standing + others)[:_FEW])


def _runs(case: Case, rows: list[int]) -> bool:
    """Say whether the plain gradient is there at all."""
    try:
        _gradient(case, Autograd(), rows[:1], 0)
    except CalipersError:
        return False
    return True


def _gradient(case: Case, view: GradientEstimator, rows: list[int], turn: int) -> Tensor:
    draws = case.draws(rows).fold(turn)
    goal = goal_of_rows(case.threat.goal, rows)
    found = view.estimate(case.target, margin, case.x[rows], case.y[rows], goal, draws=draws)
    return found.gradient.flatten(1).double()


def _candidates(
    case: Case,
    hiding: set[str],
    noisy: set[str],
    diagnosis: Diagnosis,
    rows: list[int],
    *,
    seconds: float,
    told: Callable[[str], None],
) -> Iterator[_Candidate]:
    """Give the views that the findings suggest, the likeliest first; the plain one before all."""
    random = bool(noisy) or case.target.stochastic

    def averaged(what: str, view: GradientEstimator, reasons: tuple[str, ...]) -> _Candidate:
        if not random:
            return _Candidate(what, view, reasons)
        count, told_why = _draws_needed(case, view, rows)
        return _Candidate(
            f"{what}, averaged over {count} draws", EOT(count, inner=view), (*reasons, told_why)
        )

    yield averaged("the plain gradient", Autograd(), ("The margin is the loss: it does not saturate.",))
    if case.target.access is Access.GRADIENTS:
        yield from _replaced(case, hiding, noisy, averaged, rows, seconds, told)
    size = _coordinate(case)
    if not random:
        if case.target.access is Access.GRADIENTS:
            yield _Candidate(
                "the plain gradient in float64",
                Double(),
                ("The gradient is computed in float64, which rounds less of it to 0.",),
            )
        yield _Candidate(
            "the gradient averaged over neighbours",
            EOT(20, over=AdditiveNoise("gaussian", _NOISE * size)),
            ("The gradient is averaged over neighbours, so that jumps do not matter.",),
        )
    yield _Candidate(
        "differences of scores",
        NES(64, sigma=size / 2),
        ("The gradient is had from differences of scores, which nothing hides.",),
    )


def _replaced(
    case: Case,
    hiding: set[str],
    noisy: set[str],
    averaged: Callable[[str, GradientEstimator, tuple[str, ...]], _Candidate],
    rows: list[int],
    seconds: float,
    told: Callable[[str], None],
) -> Iterator[_Candidate]:
    net = case.target.module
    known = [path.removeprefix("net.") for path, _ in net.named_modules() if path]
    images, draws, size = case.x[rows], case.draws(rows), _coordinate(case)
    hidden, both = sorted(hiding), sorted(hiding | noisy)
    options = {path: substitutes_for(net, path, images, draws, eps=size) for path in both}

    def learned(path: str) -> list[Substitute]:
        told(f"learning what {path} does")
        share = seconds / len(both)
        found = learned_for(net, path, images, draws, eps=size, seconds=share)
        return [] if found is None else [found]

    firsts = [options[path][0] for path in hidden if options[path]]
    if len(firsts) == len(hidden) and firsts:
        yield _with(firsts, averaged)
    for path in hidden:
        rest = [options[each][0] for each in hidden if each != path and options[each]]
        if len(rest) == len(hidden) - 1:
            for other in options[path][1:]:
                yield _with([*rest, other], averaged)
    bare = [options[path][0] for path in both if options[path]]
    if noisy - hiding and len(bare) == len(both):
        yield _with(bare, averaged)
    for path in hidden:
        rest = [options[each][0] for each in hidden if each != path and options[each]]
        if len(rest) == len(hidden) - 1:
            for other in learned(path):
                yield _with([*rest, other], averaged)
    yield from _around(case, hidden, known, images, averaged, learned)


def _around(
    case: Case,
    hidden: list[str],
    known: list[str],
    images: Tensor,
    averaged: Callable[[str, GradientEstimator, tuple[str, ...]], _Candidate],
    learned: Callable[[str], list[Substitute]],
) -> Iterator[_Candidate]:
    """Give the views that replace the modules around those that hide the gradient."""
    draws, size = case.draws(range(len(images))), _coordinate(case)
    nearest = [ancestors(path, known)[:1] for path in hidden]
    if not hidden or not all(nearest):
        return
    places = sorted({each[0] for each in nearest})
    outer = [
        place
        for place in places
        if not any(place.startswith(f"{other}.") for other in places if other != place)
    ]
    quick = [substitutes_for(case.target.module, place, images, draws, eps=size) for place in outer]
    if all(quick):
        yield _with([each[0] for each in quick], averaged)
    fitted = [learned(place) for place in outer]
    if all(fitted):
        yield _with([each[0] for each in fitted], averaged)


def _with(
    chosen: list[Substitute],
    averaged: Callable[[str, GradientEstimator, tuple[str, ...]], _Candidate],
) -> _Candidate:
    view = BPDA({each.path: each.function for each in chosen})
    what = "BPDA with " + ", ".join(f"{each.what} for {each.path}" for each in chosen)
    reasons = tuple(f"{each.path} gets {each.what} as backward: {each.why}." for each in chosen)
    return averaged(what, view, reasons)


def _draws_needed(case: Case, view: GradientEstimator, rows: list[int]) -> tuple[int, str]:
    """Choose how many draws, so that a quarter of the mean gradient's square is noise, or less."""
    part = rows[:4]
    try:
        drawn = torch.stack([_gradient(case, view, part, turn) for turn in range(_PROBES)])
    except CalipersError:
        return _DRAWS[0], "The variance of the gradient could not be measured."
    drawn = torch.nan_to_num(drawn, nan=0.0, posinf=0.0, neginf=0.0)
    mean = drawn.mean(0)
    noise = (drawn - mean).square().sum(2).mean(0) * _PROBES / (_PROBES - 1)
    signal = (mean.square().sum(1) - noise / _PROBES).clamp_min(1e-3 * noise + 1e-30)
    needed = float((_RATIO * noise / signal).median())
    count = min(max(math.ceil(needed), _DRAWS[0]), _DRAWS[1])
    return (
        count,
        f"A single gradient has {needed / _RATIO:.1f} times as much noise as signal (in squares): {count} draws.",
    )


def _try(
    case: Case, candidate: _Candidate, rows: list[int], *, seconds: float
) -> tuple[Trial, set[int], float]:
    attack = PGD(candidate.view, steps=_STEPS, loss="margin")
    try:
        text = repr(attack)
        ran = case.within(attack, seconds, rows=rows)
    except (CalipersError, RuntimeError) as problem:
        line = " ".join(str(problem).split())
        return Trial(candidate.what, "", 0, 0, 0.0, line), set(), 0.0
    fell = {row for row, one in zip(ran.rows, ran.success.tolist(), strict=True) if one}
    rate = float(sum(each.rate for each in ran.attempts)) / max(len(ran.attempts), 1)
    return Trial(candidate.what, text, len(fell), len(ran.rows), ran.seconds, ran.refused), fell, rate


def _attack(case: Case, view: GradientEstimator, cost: float) -> Attack:
    """Follow a view: with the targets and steps of the standard attack where a gradient costs little."""
    if cost < _CHEAP and not case.target.stochastic:
        return Standard(view)
    return PGD(view, steps=_FINAL, loss="margin")


def _coordinate(case: Case) -> float:
    """Give the size of the perturbation as a root mean square a coordinate."""
    eps, count = case.threat.eps or 0.0, case.target.dimension
    parts = {Norm.LINF: 1.0, Norm.L2: math.sqrt(count), Norm.L1: float(count), Norm.L0: float(count)}
    return eps / parts[case.threat.norm]


def _silent(_: str) -> None:
    pass
