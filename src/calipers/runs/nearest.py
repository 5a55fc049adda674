"""Nearest: which defense, or which variant of one, was probably meant by a name that none has."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

__all__ = ["nearest_defense"]

_CLOSE: Final = 0.8
_SHORTEST: Final = 3
_ALSO_CALLED: Final = {
    "ensemble": "input-transformations",
    "tvm": "input-transformations/total-variation",
}
"""Names that papers use, and none of ours is like."""


def nearest_defense(
    name: str, known: Sequence[str], variants: Callable[[], Mapping[str, Iterable[str]]]
) -> str:
    """Find what was probably meant by the name of a defense.

    Args:
        name: what was written, such as ``pixel_defend`` or ``jpeg``.
        known: the names of the defenses.
        variants: makes the names of the variants of each; asked only where no defense has a like name.

    Returns:
        The name of a defense, or ``DEFENSE/VARIANT``; empty if nothing is near.

    Example:
        >>> nearest_defense("Pixel_Defend", ["lid", "pixel-defend"], dict)
        'pixel-defend'
        >>> nearest_defense("jpg", ["lid", "cascade"], lambda: {"lid": ["undefended", "jpeg"]})
        'lid/jpeg'
    """
    written = _letters(name)
    if written in _ALSO_CALLED:
        return _ALSO_CALLED[written]
    found = _like(written, {each: each for each in known})
    if found:
        return found
    made = variants()
    several = [each for names in made.values() for each in names]
    if [_letters(each) for each in several].count(written) > 1:
        return ""  # a name that many have, such as undefended, says nothing
    single = {
        f"{defense}/{each}": each
        for defense, names in made.items()
        for each in names
        if each and several.count(each) == 1
    }
    return _like(written, single)


def _like(written: str, names: Mapping[str, str]) -> str:
    # The first that is the same but for hyphens and capitals, or is abbreviated, begun or continued, or is close
    spelled = {key: _letters(name) for key, name in names.items()}
    initials = {
        key: "".join(part[0] for part in name.split("-")) for key, name in names.items() if "-" in name
    }
    for key in names:
        if written in (spelled[key], initials.get(key)):
            return key
    for key, name in names.items():
        parts = {_letters(part) for part in name.split("-")}
        begun = spelled[key].startswith(written) or written.startswith(spelled[key])
        if len(written) >= _SHORTEST and (begun or written in parts):
            return key
    close = difflib.get_close_matches(written, spelled.values(), n=1, cutoff=_CLOSE)
    return next((key for key, name in spelled.items() if name in close), "")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
