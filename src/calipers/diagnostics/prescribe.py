"""prescribe: from the findings to an adaptive attack, with no knowledge of the defense but what was measured.

1. A module that shatters, explodes or vanishes the gradient gets a stand-in for its backward: itself with nothing
   detached where it takes itself out of the graph, the identity where it keeps the shape, the slope over a finite width
   where it treats each pixel by itself, a learned surrogate.
2. Where a module draws at random, the gradient is averaged over as many draws as its measured variance asks for.
3. Where nothing stands in for a module, so for those around it; then the gradient is had from scores.
4. The loss is the margin, which no softmax and no temperature flattens.
5. What remains is tried on a few inputs, and the best goes into the prescription together with the plain attack, and
   with the one under diagnosis where that found what no trial did, so that nothing is lost by it.

Time is bounded: a forward pass and one gradient of each candidate are measured, a trial has as many inputs, steps and
draws as fit, and so has the attack itself. What was left out for want of time is said.

Reference: the recipes are those of Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 4.
"""

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from jaxtyping import Float, Int
from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.box import warn_beyond
from calipers.attacks.combine import WorstOf, worst_of
from calipers.attacks.hop_skip_jump import HopSkipJump
from calipers.attacks.random_search import RandomSearch
from calipers.attacks.square import Square
from calipers.diagnostics.candidates import Candidate, Suspects, candidates
from calipers.diagnostics.case import Case
from calipers.diagnostics.composition import PLAIN, Composed, compose
from calipers.diagnostics.diagnose import Diagnosis
from calipers.diagnostics.localize import localize
from calipers.diagnostics.making import case_of, make_case
from calipers.diagnostics.prescription import Prescription, Trial
from calipers.diagnostics.trials import Tried, try_candidate, try_scores
from calipers.evidence.records import Finding
from calipers.gradients.bpda import BPDA
from calipers.gradients.estimator import Autograd
from calipers.target import Access, Target
from calipers.target.arguments import check_arguments
from calipers.threat.threat_model import ThreatModel

__all__ = ["RUN", "prescribe"]

RUN = 10.0
"""How many times the budget the prescribed attack may take on all inputs, about."""

_FEW = 12
_MOST = 12
_ASKING, _LOOKING, _FITTING, _BLIND = 0.1, 0.5, 0.2, 0.2
_PLAIN, _TRIAL = 0.2, 0.4
_MODULES = ("shattered", "stochastic", "exploding", "vanishing")
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
        budget: seconds that fits and trials may take, about, and half as many to look at modules again that the
            diagnosis had no time for; the attack that is chosen may take ten times as long on all inputs, its judge
            left out.
        tell: told in words what is being done.

    Returns:
        The attack: the best of what was tried together with the plain one, each on what still stands; and what there
        was no time for.
    """
    start, told = perf_counter(), tell or _silent
    check_arguments(target, x, y)
    target.check_inputs(x, y)
    warn_beyond(target, threat)
    if target.access < Access.SCORES:
        unseeing: Attack = HopSkipJump() if threat.norm in HopSkipJump.norms else RandomSearch()
        return Prescription(unseeing, ("The classifier gives decisions alone.",), (), perf_counter() - start)
    findings, cut = _findings(target, x, threat, diagnosis, seed, budget, told)
    began = perf_counter()
    suspects = Suspects(
        frozenset(each.module for each in findings if each.module and each.check != "stochastic"),
        frozenset(each.module for each in findings if each.module and each.check == "stochastic"),
    )
    case, down = _case(target, x, y, threat, diagnosis, seed, _ASKING * budget)
    honest = not any(suspects) and not target.stochastic
    if honest and not any(each.check in _SUSPECT for each in diagnosis.red):
        seen = "No module that was measured hides" if cut else "No module hides"
        why = (f"{seen} the gradient: the plain attacks are the adaptive ones.",)
        plain = Tried(Candidate("the plain gradient", Autograd()), Trial("", "", 0, 0, 0.0, "it is honest"))
        whole = _composed(case, [plain], plain, len(x), budget)
        if "Standard(" not in repr(whole.attack):  # which has every loss
            whole = _beside(whole, diagnosis, down, len(x), budget)
        return _prescription(whole, (*why, *whole.why[1:]), (), cut, start)
    trials, unfinished = _trials(case, suspects, budget - (perf_counter() - began), told)
    ran = [each for each in trials if each.trial.tried]
    order = sorted(range(len(ran)), key=lambda place: (-ran[place].rate, place))
    ranked = [ran[place] for place in order] or _untried(trials)
    fell = frozenset[int]().union(*(each.fell for each in ranked))
    told_of, found = [each.trial for each in trials], False
    rows = [row for row in range(max((each.trial.tried for each in ran), default=0)) if row not in fell]
    if threat.norm in Square.norms and rows:
        blind = try_scores(case, rows, seconds=_BLIND * budget)
        told_of.append(blind)
        found = blind.fell > 0
    beside = next((each for each in trials[:1] if each.trial.tried or each.late), None)
    composed = _composed(case, ranked, beside, len(x), budget, scores=found)
    composed = _beside(composed, diagnosis, down - fell, len(x), budget)
    return _prescription(composed, (), tuple(told_of), (*cut, *unfinished), start)


def _findings(
    target: Target,
    x: Tensor,
    threat: ThreatModel,
    diagnosis: Diagnosis,
    seed: int,
    budget: float,
    told: Callable[[str], None],
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Take the findings of the modules; where the diagnosis had no time for some of them, look again."""
    open_before = any(each.check in _MODULES and each.verdict == "open" for each in diagnosis.findings)
    if target.access < Access.GRADIENTS or not open_before:
        return diagnosis.red, ()
    told("which modules hide the gradient, once more")
    found = localize(target, x, threat, seed=seed, budget=_LOOKING * budget)
    left = ", ".join(each.check for each in found if each.verdict == "open")
    cut = (f"not every module could be measured ({left})",) if left else ()
    return tuple(each for each in (*diagnosis.red, *found) if each.verdict == "red"), cut


def _case(
    target: Target, x: Tensor, y: Tensor, threat: ThreatModel, diagnosis: Diagnosis, seed: int, seconds: float
) -> tuple[Case, frozenset[int]]:
    """Take a few inputs that are answered rightly, those that stood in the diagnosis first; say which fell in it."""
    known = diagnosis.rows
    if not known:
        case = make_case(target, x, y, threat, PLAIN, seed=seed, seconds=seconds)
        known = case.rows
    standing = [place for place, each in enumerate(diagnosis.attempts) if not each.success]
    standing = [place for place in standing if place < len(known)]
    others = [place for place in range(len(known)) if place not in standing]
    chosen = sorted((standing + others)[:_FEW])
    fell = {place for place, each in enumerate(diagnosis.attempts) if each.success}
    down = frozenset(number for number, place in enumerate(chosen) if place in fell)
    return case_of(target, x, y, threat, PLAIN, [known[place] for place in chosen], seed=seed), down


def _beside(
    composed: Composed, diagnosis: Diagnosis, missed: frozenset[int], inputs: int, budget: float
) -> Composed:
    """Put the attack under diagnosis in front, where it brought down what no trial did."""
    attack = diagnosis.searched
    if attack is None or not missed:
        return composed
    members = composed.attack.attacks if isinstance(composed.attack, WorstOf) else (composed.attack,)
    if attack in members:
        return composed
    spent = sum(each.seconds for each in diagnosis.attempts) / len(diagnosis.attempts) * inputs
    told = f"brought down {len(missed)} of those that were tried, which no trial did"
    if spent > RUN * budget:
        left = f"the attack under diagnosis beside it ({spent:.2g} s), which {told}"
        return replace(composed, cut=(*composed.cut, left))
    reason = f"The attack under diagnosis {told}: it goes first."
    return replace(
        composed,
        attack=worst_of(attack, *members),
        why=(*composed.why, reason),
        expected=composed.expected + spent,
    )


def _trials(
    case: Case, suspects: Suspects, budget: float, told: Callable[[str], None]
) -> tuple[list[Tried], tuple[str, ...]]:
    """Try one candidate after another, until all inputs fall or the time is over."""
    began = perf_counter()
    found: list[Tried] = []
    for place, candidate in enumerate(candidates(case, suspects, seconds=_FITTING * budget, told=told)):
        spare = budget - (perf_counter() - began)
        # the plain gradient and the likeliest stand-in come in any case, if only to be said not to have been tried
        if place == _MOST or (spare <= 0 and (place > 1 or not any(suspects))):
            return found, (f"{candidate.what}, and what would have come after it, were not tried",)
        told(f"trying {candidate.what}")
        tried = try_candidate(case, candidate, seconds=(_TRIAL if place else _PLAIN) * max(spare, 0.0))
        found.append(tried)
        if place and tried.trial.fell == tried.trial.tried and 2 * tried.trial.tried >= len(case.x):
            break
    return found, ()


def _untried(trials: list[Tried]) -> list[Tried]:
    """Take the likeliest candidate where there was no time to try one: a stand-in, if there is any."""
    left = [each for each in trials if each.late]
    return [each for each in left if isinstance(each.candidate.single, BPDA)][:1] or left[:1]


def _composed(
    case: Case, ranked: list[Tried], plain: Tried | None, inputs: int, budget: float, *, scores: bool = False
) -> Composed:
    return compose(
        ranked,
        pace=case.measured_pace(),
        stochastic=case.target.stochastic,
        inputs=inputs,
        tried=max((each.trial.tried for each in ranked), default=0) or len(case.x),
        seconds=RUN * budget,
        plain=plain,
        scores=scores,
    )


def _prescription(
    composed: Composed,
    why: tuple[str, ...],
    trials: tuple[Trial, ...],
    cut: tuple[str, ...],
    began: float,
) -> Prescription:
    reasons = why or composed.why
    seconds = perf_counter() - began
    return Prescription(composed.attack, reasons, trials, seconds, (*cut, *composed.cut), composed.expected)


def _silent(_: str) -> None:
    pass
