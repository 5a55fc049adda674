"""What the tests of runs share: a specification and certificates made of plain values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from calipers.evidence.records import Certificate
from calipers.runs.spec import RunSpec
from made_records import made_certificate

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import toy_measure by this name


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec(
        kind="certify",
        model="bundled:fashion-noise-0.25",
        data="bundled:fashion-mnist",
        method="VoteCertifier(n0=100, n=1000, alpha=0.001, bound='two-sided', stopping=FixedBudget())",
        norm="l2",
        noise="Gaussian(sigma=0.25)",
        votes="hard",
        limit=200,
    )


@pytest.fixture
def certificate() -> Callable[..., Certificate]:
    def make(index: int = 0, **changes: object) -> Certificate:
        fields: dict[str, object] = {
            "index": index,
            "label": index % 10,
            "prediction": index % 10,
            "method": "VoteCertifier(n0=100, n=1000, alpha=0.001, bound='two-sided', stopping=FixedBudget())",
            "target": "t" * 64,
            "input_digest": f"{index:064x}",
            "seconds": 0.123,
            "radius": 0.25 + index / 1e4,
            "theorem": "Cohen et al. 2019, Theorem 1",
            "selected": index % 10,
            "counts": (0, 0, 0, 900, 50, 50, 0, 0, 0, 0, 0),
            "selection": (0, 0, 0, 90, 5, 5, 0, 0, 0, 0, 0),
            "p_lower": 0.85,
            "p_upper": 0.08,
        }
        return made_certificate(**(fields | changes))

    return make
