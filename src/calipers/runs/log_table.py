"""The lines of a log in the format of Cohen et al.: columns by their names, each cell checked and named by its line."""

from __future__ import annotations

import gzip
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import final

from calipers.errors import InvalidInput
from calipers.threat.threat_model import ABSTAIN

__all__ = ["LogRow", "read_table"]

_COLUMNS = {
    "idx": "index",
    "index": "index",
    "label": "label",
    "predict": "prediction",
    "prediction": "prediction",
    "radius": "radius",
    "correct": "correct",
    "time": "time",
}
_CLOCK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_GZIP = b"\x1f\x8b"


@final
@dataclass(frozen=True, slots=True)
class LogRow:
    """One line of a log.

    Args:
        place: the file and the number of the line, from 1, for messages.
        cells: its texts by the name of the column.
    """

    place: str
    cells: dict[str, str]

    def whole(self, column: str, *, least: int) -> int:
        """Read a whole number.

        Args:
            column: the column.
            least: the least value that makes sense.

        Returns:
            The number.

        Raises:
            InvalidInput: if it is none, or is below ``least``.
        """
        text = self.cells[column]
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise InvalidInput(f"{self.place}: {column} is {text!r}: expected a whole number from {least} on")
        return int(text)

    def number(self, column: str) -> float:
        """Read a finite number of at least 0.

        Args:
            column: the column.

        Returns:
            The number.

        Raises:
            InvalidInput: if it is none.
        """
        text = self.cells[column]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise InvalidInput(f"{self.place}: {column} is {text!r}: expected a finite number of at least 0")
        return value

    def seconds(self) -> float:
        """Read the time that the line took.

        Returns:
            Seconds, written as such or as a clock does; 0 where the log has no such column.
        """
        found = _CLOCK.fullmatch(self.cells.get("time", "0"))
        if not found:
            return self.number("time") if "time" in self.cells else 0.0
        days, hours, minutes, seconds = found.groups()
        return int(days or 0) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(seconds)

    def answer(self) -> tuple[int, int, int]:
        """Read what was answered for which input.

        Returns:
            The index of the input, the class (or ABSTAIN) and the label, -1 where the log has none.

        Raises:
            InvalidInput: if one of them is no such number, or the column ``correct`` contradicts them.
        """
        index = self.whole("index", least=0)
        prediction = self.whole("prediction", least=ABSTAIN)
        label = self.whole("label", least=-1) if "label" in self.cells else -1
        if "correct" in self.cells and "label" in self.cells:
            said = self.cells["correct"].lower() in ("1", "true", "1.0")
            if said != (prediction == label and prediction != ABSTAIN):
                raise InvalidInput(
                    f"{self.place}: correct is {self.cells['correct']!r} for label {label} and predict {prediction}, "
                    "which contradict it"
                )
        return index, prediction, label


def read_table(path: Path, content: bytes) -> tuple[list[str], list[LogRow]]:
    """Read the columns and the lines of a log.

    Args:
        path: the file, for messages.
        content: what it holds, plain or compressed by gzip.

    Returns:
        The names of the columns as this module calls them (others as they are), and the lines below the header.

    Raises:
        InvalidInput: if it is no text, has no header with the index and the prediction, or a line is not whole.
    """
    try:
        text = (gzip.decompress(content) if content[:2] == _GZIP else content).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as problem:
        raise InvalidInput(
            f"{path} cannot be read as text, plain or gzip ({problem}): is it complete?"
        ) from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InvalidInput(
            f"{path} is empty: expected a header such as idx, label, predict, radius, correct, time"
        )
    columns = [_COLUMNS.get(name.strip().lower(), name.strip()) for name in lines[0][1].split("\t")]
    missing = {"index", "prediction"} - set(columns)
    if missing or len(set(columns)) < len(columns):
        raise InvalidInput(
            f"{path} has the columns {', '.join(columns)}: expected idx, predict and (for certificates) radius, each "
            "once, separated by tabs"
        )
    rows = []
    for number, line in lines[1:]:
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise InvalidInput(
                f"{path}, line {number}: {len(cells)} columns and not {len(columns)}: was the file cut off?"
            )
        named = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
        rows.append(LogRow(f"{path}, line {number}", named))
    if not rows:
        raise InvalidInput(f"{path} has a header and no lines below it")
    return columns, rows
