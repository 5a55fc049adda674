"""The five characteristic behaviours of obfuscated gradients, each tested on single inputs and not on averages.

They are flags: a classifier that shows none of them may still hide its gradient.

Reference: Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3.1.

Differs from the paper: each behaviour is an exact test or an interval on what happened to each input.
"""

import math
from dataclasses import replace
from itertools import pairwise
from time import perf_counter

import torch

from calipers.attacks.box import span_of
from calipers.attacks.fgsm import FGSM
from calipers.attacks.random_search import RandomSearch
from calipers.attacks.square import Square
from calipers.diagnostics.case import Case, Ran
from calipers.evidence.records import Finding
from calipers.statistics.tests import binomial_upper_tail
from calipers.target import Access

__all__ = [
    "black_box_beats_white_box",
    "one_step_beats_iterative",
    "random_search_finds_more",
    "success_falls_with_size",
    "unbounded_attack_fails",
]

_LEVEL = 0.01
_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)
_MOST_QUERIES = 5000
_FEW = 100
_MOST_POINTS = 100_000


def one_step_beats_iterative(case: Case, *, seconds: float) -> Finding:
    """Compare one step with the attack by McNemar's exact test on the inputs where they differ.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding; its statistic is the probability that as many of the differing inputs or more fall to the single
        step alone, if both attacks are alike.
    """
    assert case.main is not None, "the attack runs before any check"
    name = "one-step-beats-iterative"
    if case.threat.norm not in FGSM.norms or case.attack.access < Access.SCORES:
        return case.finding(name, math.nan, _LEVEL, None, f"FGSM does not search in {case.threat.norm}")
    ran = case.within(FGSM(case.gradient), seconds, rows=case.main.rows)
    if ran.refused:
        return case.finding(
            name, math.nan, _LEVEL, None, f"one step has no gradient to follow: {ran.refused}"
        )
    alone = sum(
        one and not case.main.fell(row) for row, one in zip(ran.rows, ran.success.tolist(), strict=True)
    )
    other = sum(
        case.main.fell(row) and not one for row, one in zip(ran.rows, ran.success.tolist(), strict=True)
    )
    value = float(binomial_upper_tail(alone, alone + other, 0.5))
    return case.finding(
        name,
        value,
        _LEVEL,
        True if value < _LEVEL else None if case.scant(len(ran.rows)) else False,
        f"p of McNemar's exact test: of {len(ran.rows)} inputs {alone} fall to one step alone, {other} to the attack "
        "alone",
        power=f"red needs 7 such inputs of one kind at least; {len(ran.rows)} were tried",
        seconds=ran.seconds,
    )


def black_box_beats_white_box(case: Case, *, seconds: float) -> tuple[Finding, Ran | None]:
    """Count the inputs that Square brings down by scores alone and the attack did not.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding, and what Square found.
    """
    name = "black-box-beats-white-box"
    if case.threat.norm not in Square.norms or case.target.access < Access.SCORES:
        reason = f"Square needs scores and linf or l2, and this is {case.threat.norm}"
        return case.finding(name, math.nan, 0.002, None, reason), None
    rows = case.standing()
    queries = _afford(case, rows, seconds, each=5 if case.target.stochastic else 1, most=_MOST_QUERIES)
    ran = case.within(Square(queries=queries), seconds, rows=rows)
    return case.more(name, ran, what=f"Square with {queries} queries", weak=queries < _FEW), ran


def random_search_finds_more(case: Case, *, seconds: float) -> Finding:
    """Count the inputs for which points drawn from the ball are adversarial and the attack found none.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding. The paper draws 100 000 points an input; how many were drawn here is said.
    """
    rows = case.standing()
    points = _afford(case, rows, seconds, each=12 if case.target.stochastic else 1, most=_MOST_POINTS)
    ran = case.within(RandomSearch(queries=points), seconds, rows=rows)
    return case.more(
        "random-search-finds-more", ran, what=f"one of {points} random points", weak=points < _FEW
    )


def unbounded_attack_fails(case: Case, *, seconds: float) -> tuple[Finding, Ran]:
    """Run the attack in a ball that holds the whole box, where it must succeed always.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding, and what the attack found.
    """
    threat = replace(case.threat, eps=span_of(case.target, case.threat.norm))
    ran = case.within(case.attack, seconds, threat=threat, turn=1)
    rate = float(ran.success.float().mean())
    found = case.finding(
        "unbounded-attack-fails",
        rate,
        1.0,
        True if rate < 1 else None if case.scant(len(ran.rows)) else False,
        f"success in a ball of {threat.norm} size {threat.eps:g}: {int(ran.success.sum())} of {len(ran.rows)} inputs",
        power=f"{len(ran.rows)} inputs",
        seconds=ran.seconds,
    )
    return found, ran


def success_falls_with_size(case: Case, *, seconds: float) -> Finding:
    """Attack at a quarter, a half, twice and four times the size, and test each step up on the inputs that differ.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding: red where a larger size loses inputs beyond chance, or where the largest wins none beyond chance
        and does not bring down nine tenths.
    """
    assert case.main is not None and case.threat.eps is not None, "the attack runs before any check"
    most = span_of(case.target, case.threat.norm)
    shares = [share for share in _SIZES if share * case.threat.eps < most]
    if len(shares) < 2:
        words = f"a quarter of the size is no smaller than the whole box, {most:g}: there are no two sizes to compare"
        return case.finding("success-falls-with-size", math.nan, _LEVEL, None, words)
    spent, fallen, rows = 0.0, list[dict[int, bool]](), case.main.rows
    for place, share in enumerate(shares):
        if share == 1.0:
            ran = case.main
        else:
            threat = replace(case.threat, eps=share * case.threat.eps)
            ran = case.within(
                case.attack, (seconds - spent) / (len(shares) - place), rows=rows, threat=threat
            )
            spent += ran.seconds
            rows = ran.rows
        fallen.append(dict(zip(ran.rows, ran.success.tolist(), strict=True)))
    outcomes = torch.tensor([[each[row] for row in rows] for each in fallen])
    curve = outcomes.float().mean(1)
    value = 1.0
    for small, large in pairwise(outcomes):
        lost, won = int((small & ~large).sum()), int((large & ~small).sum())
        value = min(value, float(binomial_upper_tail(lost, lost + won, 0.5)) * (len(shares) - 1))
    lost, won = int((outcomes[0] & ~outcomes[-1]).sum()), int((outcomes[-1] & ~outcomes[0]).sum())
    flat = float(binomial_upper_tail(won, lost + won, 0.5)) >= 0.05 and float(curve[-1]) < 0.9
    told = ", ".join(f"{share:g} eps {rate:.2f}" for share, rate in zip(shares, curve.tolist(), strict=True))
    return case.finding(
        "success-falls-with-size",
        0.0 if flat else value,
        _LEVEL,
        True if flat or value < _LEVEL else None if case.scant(len(rows)) else False,
        f"p of McNemar's exact test for a fall{', or 0 where it does not rise' if flat else ''}; success: {told}",
        power=f"{len(rows)} inputs at {len(shares)} sizes",
        seconds=spent,
    )


def _afford(case: Case, rows: list[int], seconds: float, *, each: int, most: int) -> int:
    """Say how many points an input can be asked about in the time, for all rows together."""
    if not rows:
        return 1
    part = rows[: min(len(rows), 32)]
    case.target.outcomes(case.x[part[:2]], draws=case.draws(part[:2]))
    began = perf_counter()
    case.target.outcomes(case.x[part], draws=case.draws(part))
    cost = (perf_counter() - began) / len(part) * len(rows) * each
    return max(10, min(most, int(0.7 * seconds / max(cost, 1e-7))))
