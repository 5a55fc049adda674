"""The tables of the case study's pages, from what `calipers reproduce iclr2018 --json` answered.

    python docs/case_study_pictures/tables.py benchmarks/results/iclr2018.json
    python docs/case_study_pictures/tables.py benchmarks/results/iclr2018-cifar10.json --marker cifar10

Each page has a comment `<!-- rows -->`; the table behind it is replaced. The overview's is behind `<!-- table -->`.
Those of the defenses around a network for CIFAR-10 are behind `<!-- cifar10 -->`.
"""

from __future__ import annotations

import argparse
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from calipers.report.tables import ceiled_percent, floored_percent

PAGES = Path(__file__).resolve().parent.parent / "case-study"
ROLES = ("undefended", "naive", "matched", "adaptive", "prescribed")

Line = dict[str, Any]


def readings(share: float, undetermined: int, inputs: int) -> str:
    """Say a share in percent: a range where of some images neither reading was shown."""
    least = ceiled_percent(share, places=1)
    if not undetermined:
        return least
    return f"{least} to {ceiled_percent((round(share * inputs) + undetermined) / inputs, places=1)}"


def accuracy(line: Line) -> str:
    """Say the accuracy under attack."""
    return readings(line["robust"], line["undetermined"], line["inputs"])


def clean(line: Line) -> str:
    """Say the accuracy with no attack."""
    return readings(line["clean"], line["clean_undetermined"], line["inputs"])


def bare(size: str) -> str:
    """Leave the other unit of a size out."""
    return size.partition(" (")[0]


def strongest(lines: list[Line], size: str) -> str:
    """Take the strongest attack of this size; where there is none, the strongest of all, with its size."""
    if not lines:
        return ""
    alike = [line for line in lines if bare(line["size"]) == size]
    found = min(alike or lines, key=lambda line: line["robust"])
    return accuracy(found) + ("" if alike else f" ({bare(found['size'])})")


def rows(lines: list[Line]) -> list[str]:
    """Write the measurements of one defense as a table."""
    random = any(line["rate"] is not None for line in lines)
    head = ["role", "attack", "size", "clean %", "accuracy %", "95 % interval"]
    head += ["draws that fail % (with no attack)"] if random else []
    found = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for family, group in groupby(lines, key=lambda line: line["family"]):
        if family:
            found.append(f"| *{family}* |" + " |" * (len(head) - 1))
        for line in group:
            told = accuracy(line)
            cells = [line["role"], line["what"], line["size"], clean(line)]
            cells += [f"**{told}**" if line["role"] == "adaptive" else told]
            cells += [
                f"{floored_percent(line['lower'], places=1)} to {ceiled_percent(line['upper'], places=1)}"
            ]
            if random:
                rate = line["rate"]
                cells.append("" if rate is None else f"{100 * rate:.1f} ({100 * line['flips']:.1f})")
            found.append("| " + " | ".join(cells) + " |")
    return found


def overview(lines: list[Line]) -> list[str]:
    """Write one row for each mechanism, with the strongest attack of each role."""
    head = ["defense", "size", "clean %", *ROLES[: 5 if any(x["role"] == "prescribed" for x in lines) else 4]]
    head += ["in the literature, adaptive"]
    found = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (name, family), group in groupby(lines, key=lambda line: (line["defense"], line["family"])):
        measured = list(group)
        judged = [line for line in measured if line["role"] != "undefended"]
        cells = [f"[{name}]({name}.md)" + (f", {family}" if family else "")]
        size = next((x for x in judged if x["role"] == "adaptive"), judged[0])["size"]
        cells += [size, clean(judged[0])]
        cells += [strongest([x for x in measured if x["role"] == role], bare(size)) for role in head[3:-1]]
        published = judged[0]["published"]
        alike = published["threat"].replace(",", " ").split()[0] == size.split()[0]
        found.append("| " + " | ".join([*cells, published["adaptive"] if alike else ""]) + " |")
    return found


def put(page: Path, marker: str, table: list[str]) -> None:
    """Replace the table behind a comment, or put one there."""
    before, found, after = page.read_text(encoding="utf-8").partition(f"<!-- {marker} -->\n")
    if not found:
        return
    rest = re.sub(r"\A\s*(\|[^\n]*\n)*\n*", "", after)
    page.write_text(before + found + "\n" + "\n".join(table) + "\n\n" + rest, encoding="utf-8")


def main() -> None:
    """Write every table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("answer", type=Path, help="what `calipers reproduce iclr2018 --json` answered")
    parser.add_argument("--marker", choices=("rows", "cifar10"), default="rows", help="which tables")
    options = parser.parse_args()
    lines = json.loads(options.answer.read_text(encoding="utf-8"))["rows"]
    put(PAGES / "index.md", "table" if options.marker == "rows" else options.marker, overview(lines))
    for name, group in groupby(lines, key=lambda line: line["defense"]):
        put(PAGES / f"{name}.md", options.marker, rows(list(group)))


if __name__ == "__main__":
    main()
