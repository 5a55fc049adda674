"""Composition: from what the trials showed to one attack, as strong as a time for its run allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.attacks.combine import worst_of
from calipers.attacks.pgd import PGD
from calipers.attacks.square import Square
from calipers.attacks.standard import Standard
from calipers.diagnostics.candidates import Candidate
from calipers.diagnostics.pace import Pace
from calipers.diagnostics.trials import ASKED, Tried, halved

__all__ = ["PLAIN", "Composed", "compose"]

PLAIN = PGD(steps=40, loss="margin")
"""The attack that is run beside whatever was found."""

_STANDARD = 10 + 3 * 20 + 3 * 40 + 3 * 40 + 3 * 40
_MEMBERS = 3
_RANKED = 4
_FIRST_SHARE, _SHARE_OF_STANDARD = 0.7, 0.4
_QUERIES, _LEAST_QUERIES = 2000, 200


@final
@dataclass(frozen=True, eq=False)
class Composed:
    """An attack that was put together.

    Args:
        attack: the attack.
        why: the reasons, a sentence each.
        cut: what was left out for want of time, a sentence each.
        expected: seconds that it is expected to take.
    """

    attack: Attack
    why: tuple[str, ...]
    cut: tuple[str, ...]
    expected: float


class _Form(NamedTuple):
    """An attack that follows a view, the gradients that it takes, and of the time the share that it may take."""

    attack: Attack
    gradients: int
    draws: int
    share: float = 1.0


@final
@dataclass(eq=False)
class _Plan:
    """What is in the attack so far, and what remains of the time."""

    left: float
    members: list[Attack] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def take(self, attack: Attack, seconds: float, reasons: Sequence[str] = ()) -> None:
        self.members.append(attack)
        self.left -= seconds
        self.why += reasons


def compose(
    ranked: Sequence[Tried],
    *,
    pace: Pace,
    stochastic: bool,
    inputs: int,
    tried: int,
    seconds: float,
    plain: Tried | None,
    scores: bool,
) -> Composed:
    """Put an attack together of the candidates that brought down most, so that its run fits a time.

    Args:
        ranked: the candidates, the best first.
        pace: the time of a forward pass.
        stochastic: whether the classifier draws at random.
        inputs: on how many inputs the attack is to run.
        tried: on how many the candidates were tried.
        seconds: how long it may take on them, about, if none falls early.
        plain: the plain gradient, where it leads somewhere.
        scores: whether a search by scores found something that the candidates did not.

    Returns:
        The attack: the best candidate with as many steps and draws as fit, then what else does; each on what still
        stands.
    """
    plan = _Plan(seconds)
    asked = (ASKED if stochastic else 1) * pace.seconds(inputs)
    covered: set[int] = set()
    best = ranked[0].rate if ranked else 0.0
    for place, each in enumerate(ranked[:_RANKED]):
        if len(plan.members) == _MEMBERS:
            break
        if plan.members and not each.fell - covered and not (each.rate > 0 and 2 * each.rate >= best):
            continue
        left = _left(inputs, covered, tried)
        share = plan.left * (_FIRST_SHARE if place == 0 and len(ranked) > 1 else 1.0)
        _add(plan, each, pace, left, share - (asked if plan.members else 0.0), stochastic=stochastic)
        covered |= each.fell
    if plain is not None and PLAIN not in plan.members:
        cost = (PLAIN.steps + 1) * plain.scale * pace.seconds(inputs) + asked
        if not plan.members or cost <= plan.left:
            plan.members.insert(0, PLAIN)
            plan.left -= cost
        else:
            plan.cut.append(f"the plain attack beside it ({cost:.2g} s)")
    if scores:
        _add_scores(plan, pace, _left(inputs, covered, tried), asked, stochastic=stochastic)
    members = plan.members or [PLAIN]
    attack = members[0] if len(members) == 1 else worst_of(*members)
    return Composed(attack, tuple(dict.fromkeys(plan.why)), tuple(plan.cut), max(seconds - plan.left, 0.0))


def _left(inputs: int, covered: set[int], tried: int) -> float:
    """Expect how many inputs still stand for the next member."""
    return max(inputs * (1 - len(covered) / max(tried, 1)), 1.0)


def _add(plan: _Plan, each: Tried, pace: Pace, inputs: float, seconds: float, *, stochastic: bool) -> None:
    """Add a candidate in the strongest form that fits; the first one in its weakest form even if that does not."""
    candidate = each.candidate
    costs = [
        (form, form.gradients * each.scale * pace.seconds(inputs * candidate.rows(form.draws)))
        for form in _forms(candidate, each.draws, stochastic=stochastic)
    ]
    whole, longest = costs[0]
    fitting = [(form, cost) for form, cost in costs if cost <= seconds * form.share]
    form, cost = fitting[0] if fitting else costs[-1]
    if not fitting and plan.members:
        plan.cut.append(f"{candidate.words(form.draws)}, {_said(form)}, which would take {cost:.2g} s")
        return
    told = f"{candidate.words(form.draws)}: {each.trial.fell} of {each.trial.tried} inputs fell in the trial."
    if not each.trial.tried:
        told = f"{candidate.words(form.draws)}: not tried, {each.trial.refused}."
    plan.take(form.attack, cost, [*candidate.reasons, told])
    if form is not whole:
        plan.cut.append(
            f"{candidate.what} takes {_said(form)} in place of {_said(whole)}, which would take {longest:.2g} s"
        )


def _said(form: _Form) -> str:
    draws = f" over {form.draws} draws" if form.draws > 1 else ""
    return f"{form.gradients} gradients{draws}"


def _forms(candidate: Candidate, draws: int, *, stochastic: bool) -> Iterator[_Form]:
    """Give the attacks that follow a view, the strongest first."""
    wanted = max(draws, 0)
    if not stochastic and not wanted:
        view = candidate.view(0)
        yield _Form(Standard(view), _STANDARD, 0, _SHARE_OF_STANDARD)
        for steps in (60, 40, 20, 10):
            yield _Form(APGD(view, steps=steps, loss=candidate.loss), steps, 0)
        return
    plans = [(40, count) for count in halved(wanted, max(wanted // 4, candidate.least))]
    plans += [(20, count) for count in halved(wanted, candidate.least) if count <= plans[-1][1]]
    plans.append((10, candidate.least))
    for steps, count in plans:
        yield _Form(PGD(candidate.view(count), steps=steps, loss=candidate.loss), steps + 1, count)


def _add_scores(plan: _Plan, pace: Pace, inputs: float, asked: float, *, stochastic: bool) -> None:
    votes = Square().votes if stochastic else 1
    each = pace.seconds(votes * inputs)
    queries = min(int((plan.left - asked) / each), _QUERIES)
    if queries < _LEAST_QUERIES:
        plan.cut.append(f"a search by scores alone, which found something ({_QUERIES * each:.2g} s)")
        return
    reason = "A search that sees scores alone found more on the inputs that stood."
    plan.take(Square(queries=queries), queries * each + asked, [reason])
    if queries < _QUERIES:
        plan.cut.append(f"the search by scores takes {queries} queries in place of {_QUERIES}")
