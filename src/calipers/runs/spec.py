"""RunSpec: what a run measures, in plain values, and the hash that names it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, final, get_args

from calipers.errors import StoreCorrupt, UsageError

__all__ = ["RunSpec", "difference"]

Kind = Literal["certify", "predict", "attack", "bracket", "recertify", "import"]
Precision = Literal["fp32", "bf16", "fp16"]
Votes = Literal["", "hard", "soft"]
DeviceKind = Literal["cpu", "cuda"]
NormName = Literal["l0", "l1", "l2", "linf"]

_LATER = ("attack", "judge", "target")
_CHOICES = {"kind": Kind, "norm": NormName, "votes": Votes, "precision": Precision, "device": DeviceKind}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """The specification of a run: everything the user chose that decides a number in it.

    What does not decide a number is not here: workers, time limit, progress, where the file is. What the
    references turn out to be (fingerprints of weights and pixels, the execution plan) is stored beside the
    specification when the run first starts, and checked when it goes on.

    Args:
        kind: the verb that makes the records: certify, predict, attack, bracket, recertify or import.
        model: the model reference, as written.
        data: the data reference, as written.
        method: the repr of the method, such as ``VoteCertifier(n0=100, n=100000)``; for a bracket, the certifier.
        norm: the norm of the threat model: l0, l1, l2 or linf.
        noise: the repr of the noise, empty where a method has none.
        votes: ``hard`` or ``soft``; empty where a method has no votes.
        eps: the size allowed to the adversary as the user wrote it, empty where none is asked.
        precision: the number type in which the model runs; another precision is another classifier.
        device: the kind of device, ``cpu`` or ``cuda``; their noise differs.
        seed: the seed of the run.
        skip: how many inputs to leave out at the front.
        limit: how many inputs to take after that; None takes all.
        sample: the size of a seeded, stratified subset; None takes all.
        source: what another run or file these records were made from, empty where none.
        attack: the repr of the attack of a bracket; empty elsewhere.
        judge: the repr of the judge, where something is attacked.
        target: the name that a user gave to the classifier of an imported log; empty elsewhere.

    Raises:
        UsageError: if a number is out of its range, or a word is not one of those allowed.

    Example:
        >>> spec = RunSpec(kind="certify", model="bundled:a", data="bundled:b", method="M()", norm="l2")
        >>> RunSpec.from_json(spec.to_json()) == spec
        True
    """

    kind: Kind
    model: str
    data: str
    method: str
    norm: NormName
    noise: str = ""
    votes: Votes = ""
    eps: str = ""
    precision: Precision = "fp32"
    device: DeviceKind = "cpu"
    seed: int = 0
    skip: int = 0
    limit: int | None = None
    sample: int | None = None
    source: str = ""
    attack: str = ""
    judge: str = ""
    target: str = ""

    def __post_init__(self) -> None:
        for name, choice in _CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                allowed = ", ".join(word for word in get_args(choice) if word)
                raise UsageError(f"{name} is {getattr(self, name)!r}: use one of {allowed}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed}: give a whole number from 0 to 2^64 - 1")
        if self.skip < 0:
            raise UsageError(f"skip is {self.skip}: give a whole number of at least 0")
        for name, value in (("limit", self.limit), ("sample", self.sample)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}: give a whole number of at least 1")

    def to_json(self) -> str:
        """Write the specification canonically (sorted, no spaces): equal specifications are equal texts.

        Returns:
            One line of JSON; fields that came later than the first version are left out where they are empty, so that
            older runs keep their names.
        """
        row = asdict(self)
        kept = {name: value for name, value in row.items() if value or name not in _LATER}
        return json.dumps(kept, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Args:
            text: the JSON.

        Returns:
            The specification.

        Raises:
            StoreCorrupt: if the text is damaged or has fields that are unknown or missing.
        """
        try:
            row: dict[str, Any] = json.loads(text)
            return cls(**row)
        except (TypeError, ValueError) as problem:
            raise StoreCorrupt(f"the specification of the run cannot be read: {problem}") from None

    @property
    def hash(self) -> str:
        """The SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def jaws(self) -> tuple[RunSpec, RunSpec]:
        """Split a bracket into what it is made of.

        Returns:
            The specification of its certificates, and that of its attempts.

        Raises:
            UsageError: if this is no bracket.
        """
        if self.kind != "bracket":
            raise UsageError(f"a run of kind {self.kind!r} has one side: only a bracket has two")
        below = replace(self, kind="certify", attack="", judge="", eps="")
        above = replace(self, kind="attack", method=self.attack, attack="")
        return below, above

    def difference(self, other: RunSpec) -> list[str]:
        """Say where another specification differs.

        Args:
            other: the specification that is asked for; this one is the one that is there.

        Returns:
            One readable line for each field that differs; empty if they are equal.
        """
        return difference(
            {field.name: getattr(self, field.name) for field in fields(self)},
            {field.name: getattr(other, field.name) for field in fields(other)},
        )


def difference(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Compare two mappings by name.

    Args:
        stored: what the file holds.
        asked: what is asked for; names that only one of the two has are compared with nothing.

    Returns:
        One readable line for each name whose values differ.

    Example:
        >>> difference({"seed": 0, "norm": "l2"}, {"seed": 1, "norm": "l2"})
        ['seed: 0 in the file, 1 asked for']
    """
    names = list(stored) + [name for name in asked if name not in stored]
    return [
        f"{name}: {_shown(stored.get(name))} in the file, {_shown(asked.get(name))} asked for"
        for name in names
        if stored.get(name) != asked.get(name)
    ]


def _shown(value: object) -> str:
    return "nothing" if value is None or value == "" else str(value)
