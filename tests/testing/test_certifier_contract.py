"""A contract that nothing fails is worth nothing: each broken method here fails the tests that are meant for it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from failed_tests import failed_tests
from torch import Tensor

from calipers.certificates.base import Certifier
from calipers.certificates.smoothing.certifier import VoteCertifier
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import smooth
from calipers.evidence.records import Certificate
from calipers.target import Target
from calipers.testing.certifier_contract import CertifierContract
from calipers.threat.threat_model import ABSTAIN

Change = Callable[[Certificate], Certificate]


@dataclass(frozen=True)
class _Changed(Certifier):
    """A certifier whose records, seed or order of inputs are tampered with."""

    revision: ClassVar[int] = 1

    inner: VoteCertifier
    change: Change = field(default=lambda record: record, repr=False)
    seeded: Callable[[int], int] = field(default=lambda seed: seed, repr=False)
    reordered: bool = False
    named: bool = True

    def stream(self, target, inputs: Iterable[tuple[int, Tensor]], threat, *, seed, plan=None, progress=None):
        pairs = list(inputs)
        back = {place if self.reordered else index: index for place, (index, _) in enumerate(pairs)}
        if self.reordered:
            pairs = [(place, x) for place, (_, x) in enumerate(pairs)]
        found: Iterator[Certificate] = self.inner.stream(
            target, pairs, threat, seed=self.seeded(seed), plan=plan
        )
        for record in found:
            method = repr(self) if self.named else "certifier"
            yield self.change(replace(record, method=method, seed=seed, index=back[record.index]))


class _Broken(CertifierContract):
    efforts = (200, 1000, 5000)
    closeness = 0.88

    def __init__(self, make: Callable[[VoteCertifier], Certifier]) -> None:
        self._make = make

    def make(self, effort: int, *, alpha: float) -> Certifier:
        return self._make(VoteCertifier(n0=100, n=effort, alpha=alpha))

    def present(self, target: Target) -> Target:
        return smooth(target, Gaussian(0.5))

    def reach(self) -> float:
        return 0.5


def _certain_answer(record: Certificate) -> Certificate:
    return replace(record, prediction=record.selected, radius=max(record.radius, 1e-9))


BREAKS: dict[str, tuple[Callable[[VoteCertifier], Certifier], set[str]]] = {
    "nothing": (_Changed, set()),
    "a fifth too much": (
        lambda inner: _Changed(inner, lambda record: replace(record, radius=1.2 * record.radius)),
        {"no_radius_is_above_the_distance", "more_effort_proves_more_up_to_the_distance"},
    ),
    "half of it": (
        lambda inner: _Changed(inner, lambda record: replace(record, radius=0.5 * record.radius)),
        {"more_effort_proves_more_up_to_the_distance"},
    ),
    "never an abstention": (
        lambda inner: _Changed(inner, _certain_answer),
        {"an_input_on_the_boundary_gets_no_answer"},
    ),
    "the other class": (
        lambda inner: _Changed(
            inner,
            lambda record: replace(
                record, prediction=1 - record.prediction if record.prediction != ABSTAIN else -1
            ),
        ),
        {"no_radius_is_above_the_distance", "failures_are_no_more_frequent_than_alpha"},
    ),
    "ten times alpha": (
        lambda inner: _Changed(replace(inner, alpha=min(0.5, 10 * inner.alpha))),
        {"failures_are_no_more_frequent_than_alpha"},
    ),
    "one seed for all": (
        lambda inner: _Changed(inner, seeded=lambda seed: 0),
        {"another_seed_or_another_index_draws_anew"},
    ),
    "noise by place in the call": (
        lambda inner: _Changed(inner, reordered=True),
        {"one_input_is_certified_as_among_many"},
    ),
    "no name in the record": (
        lambda inner: _Changed(inner, named=False),
        {"a_record_says_what_was_measured_and_survives_being_stored"},
    ),
    "a label": (
        lambda inner: _Changed(inner, lambda record: replace(record, label=1)),
        {"no_label_is_seen"},
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_certifier_fails_what_it_breaks(name: str) -> None:
    make, wanted = BREAKS[name]
    found = failed_tests(_Broken(make))
    assert wanted <= found
    if name == "nothing":
        assert found == set()
