"""Brackets of 200 bundled images: a plain network, one trained for its Lipschitz constant, and a smoothed one.

    python benchmarks/brackets.py

Every row is one run of ``calipers bracket``, both jaws on the same classifier; the command stands beside it. The runs
are kept in the folder that ``--runs`` names, and the same call goes on with them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import environment, report

ROWS = {
    "plain, l2": "bundled:fashion-cnn28-plain bundled:fashion-mnist --norm l2",
    "plain, linf": "bundled:fashion-cnn28-plain bundled:fashion-mnist --norm linf",
    "Lipschitz-trained, l2": "bundled:fashion-lipschitz bundled:fashion-mnist --norm l2",
    "smoothed, sigma .25, l2": "bundled:fashion-cnn28-noise-0.25 bundled:fashion-mnist --sigma 0.25 --norm l2",
}


def close(words: str, limit: int, runs: Path) -> dict[str, Any]:
    """Run one bracket and keep what it says."""
    command = f"bracket {words} --limit {limit} --json --quiet"
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-m", "calipers", *shlex.split(command)],
        capture_output=True,
        text=True,
        cwd=runs,
        check=False,
    )
    if found.returncode not in (0, 1):
        raise SystemExit(found.stderr)
    told = json.loads(found.stdout.splitlines()[0])
    brackets = told["brackets"]
    brackets["contradictions"].pop("records")
    return {
        "command": f"calipers {command}",
        "exit_code": found.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "attack": told["spec"]["attack"],
        "certificate": told["spec"]["method"],
        "clean_accuracy": told["clean_accuracy"],
        "brackets": brackets,
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path())
    parser.add_argument("--only", choices=tuple(ROWS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    wanted = {name: words for name, words in ROWS.items() if args.only in (None, name)}
    report(
        {
            "what": f"brackets of the first {args.limit} bundled images",
            "rows": {name: close(words, args.limit, args.runs) for name, words in wanted.items()},
            "environment": environment(),
        },
        args.out,
    )


if __name__ == "__main__":
    main()
