"""Convergence by doubling: neither twice the steps nor twice the restarts may change what an attack finds.

Reference: Carlini et al. 2019, arXiv:1902.06705, section 4.
"""

import math
from dataclasses import fields, replace

from calipers.attacks.base import Attack
from calipers.diagnostics.case import Case
from calipers.evidence.records import Finding

__all__ = ["more_restarts_help", "more_steps_help"]


def more_steps_help(case: Case, *, seconds: float) -> Finding:
    """Run the attack with twice the steps on the inputs that stand.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding.
    """
    return _doubled(case, "steps", "more-steps-help", seconds)


def more_restarts_help(case: Case, *, seconds: float) -> Finding:
    """Run the attack with twice the restarts on the inputs that stand.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding.
    """
    return _doubled(case, "restarts", "more-restarts-help", seconds)


def _doubled(case: Case, field: str, name: str, seconds: float) -> Finding:
    if not any(each.name == field for each in fields(case.attack)):
        return case.finding(name, math.nan, 0.002, None, f"{type(case.attack).__name__} has no {field}")
    count = int(vars(case.attack)[field])
    more: Attack = replace(case.attack, **{field: 2 * count})
    ran = case.within(more, seconds, rows=case.standing(), turn=2)
    if ran.refused:
        return case.finding(
            name, math.nan, 0.002, None, f"the attack has no gradient to follow: {ran.refused}"
        )
    return case.more(name, ran, what=f"{2 * count} {field} instead of {count}")
