"""Fields: the checks of a recipe's numbers and words, the same for every recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from calipers.errors import UsageError
from calipers.randomness import check_seed

__all__ = ["check_fields"]


def check_fields(
    recipe: object,
    *,
    not_negative: Sequence[str],
    counts: Sequence[str],
    positive: Sequence[str],
    choices: Mapping[str, Sequence[str]],
) -> None:
    """Check the fields of a recipe, its seed among them.

    Args:
        recipe: a frozen dataclass with a field ``seed``.
        not_negative: names of its finite numbers of 0 or more.
        counts: names of its whole numbers of 1 or more.
        positive: names of its finite numbers above 0.
        choices: the words that are understood, by the name of the field.

    Raises:
        UsageError: if one of them is out of its range; the message names the first one.
    """
    values = vars(recipe)
    check_seed(values["seed"])
    for name in not_negative:
        if not (math.isfinite(values[name]) and values[name] >= 0):
            raise UsageError(f"{name} is {values[name]}: give a number of 0 or more")
    for name in counts:
        if values[name] < 1:
            raise UsageError(f"{name} is {values[name]}: give a whole number of 1 or more")
    for name in positive:
        if not (math.isfinite(values[name]) and values[name] > 0):
            raise UsageError(f"{name} is {values[name]}: give a number above 0")
    for name, known in choices.items():
        if values[name] not in known:
            raise UsageError(f"{name} is {values[name]!r}: choose one of {', '.join(known)}")
