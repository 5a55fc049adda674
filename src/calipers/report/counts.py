"""Counts: a number with its noun, in the singular where there is one."""

from __future__ import annotations

__all__ = ["counted"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Write a number and what it counts.

    Args:
        count: the number.
        noun: what is counted, in the singular.
        plural: its plural; the noun with an s if empty.

    Returns:
        The two.

    Example:
        >>> counted(1, "image"), counted(0, "image"), counted(2, "class", "classes")
        ('1 image', '0 images', '2 classes')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
