"""Both jaws of a run: its brackets, what they say together, and its contradictions, as data and as plain text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from calipers.evidence.bracket import Bracket, BracketSummary, bracket, summarize_brackets
from calipers.evidence.contradictions import Contradictions, contradictions
from calipers.evidence.records import AnyRecord
from calipers.report.brackets import bracket_text, bracket_values

__all__ = ["Jaws", "close_jaws"]


@final
@dataclass(frozen=True)
class Jaws:
    """What certificates and attempts of one classifier say together.

    Args:
        brackets: one an input.
        summary: their medians and the share of narrow ones.
        found: the contradictions.
    """

    brackets: tuple[Bracket, ...]
    summary: BracketSummary
    found: Contradictions

    def text(self, *, most: int = 40) -> str:
        """Draw the brackets and write what they say.

        Args:
            most: lines of bars at most.

        Returns:
            Lines without a final newline.
        """
        return bracket_text(self.brackets, self.summary, self.found, most=most)

    def to_dict(self) -> dict[str, Any]:
        """Give the same as plain values for JSON.

        Returns:
            A mapping.
        """
        return bracket_values(self.summary, self.found)


def close_jaws(records: Iterable[AnyRecord], *, width: float = 0.25) -> Jaws:
    """Join the records of a run.

    Args:
        records: certificates and attempts of one classifier and norm.
        width: the gap, in input units, up to which a bracket counts as narrow.

    Returns:
        Both jaws.
    """
    rows = list(records)
    joined = bracket(rows)
    return Jaws(tuple(joined), summarize_brackets(joined, width=width), contradictions(rows))
