"""The contract of a certifier: what each one must pass, as a class of tests to inherit.

A test module inherits it, says how its certifier is made, and gets the tests. Call
``pytest.register_assert_rewrite`` with the name of this module in ``conftest.py`` to see the values of a failure.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from scipy.special import bdtrc
from torch import Tensor

from calipers.certificates.base import CertificateResult, Certifier
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.errors import CalipersError
from calipers.evidence.records import record_from_json
from calipers.target import Target
from calipers.testing.closed_forms import HalfSpace
from calipers.testing.known_answers import KnownAnswer, half_space
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

__all__ = ["CertifierContract"]

_MAX_FLOAT32_NORMAL = 2**23
"""From here on neighbouring float32 numbers are 1 apart."""


class CertifierContract(ABC):
    """What every certifier must pass, on half-spaces: their distance is known, and smoothing is tight on them.

    Attributes:
        norm: the norm that is certified.
        certain: whether the certifier draws nothing, so that no seed matters.
        efforts: rising amounts of work, as :meth:`make` reads them.
        closeness: the share of the distance that the most effort must prove on average.
        gain: factor on the half-space's scores.
        plan: how forwards are run.
    """

    norm: ClassVar[Norm] = Norm.L2
    certain: ClassVar[bool] = False
    efforts: ClassVar[tuple[int, ...]] = (200, 1500, 8000)
    closeness: ClassVar[float] = 0.9
    gain: ClassVar[float] = 1.0
    plan: ClassVar[ExecutionPlan] = ExecutionPlan(1000, channels_last=False)

    @abstractmethod
    def make(self, effort: int, *, alpha: float) -> Certifier:
        """Make the certifier.

        Args:
            effort: how hard it works: the number of samples, say.
            alpha: the probability that a certificate may fail; of no meaning to a deterministic one.

        Returns:
            The certifier.
        """

    @abstractmethod
    def present(self, target: Target) -> Target:
        """Make the classifier that is certified from a half-space, such that both give the same answers.

        Args:
            target: the half-space.

        Returns:
            The classifier.
        """

    @abstractmethod
    def reach(self) -> float:
        """Name a distance of which the certifier proves a good part.

        Returns:
            The distance in input units: the scale of a noise, say.
        """

    def test_no_radius_is_above_the_distance(self) -> None:
        """A radius is at most the distance, and the class is the half-space's, or none."""
        for dimension, seed in ((1, 0), (3, 1), (3, 2), (40, 3), (200, 4)):
            known, x = self._problem(dimension, seed)
            found = self._certify(known, x, effort=self.efforts[-1], seed=seed)
            assert (found.radius <= known.distance(x, self.norm)).all()
            right = (found.prediction == known.label(x).numpy()) | (found.prediction == ABSTAIN)
            assert right.all()
            assert found.radius.max() > 0

    def test_more_effort_proves_more_up_to_the_distance(self) -> None:
        """The share of the distance that is proved rises with the effort, to nearly all of it."""
        known, x = self._problem(5, 6, shares=(-0.9, -0.6, 0.5, 0.7, 1.0))
        distance = known.distance(x, self.norm)
        shares = [
            float((self._certify(known, x, effort=n, seed=6).radius / distance).mean()) for n in self.efforts
        ]
        assert shares == sorted(shares)
        assert self.closeness <= shares[-1] <= 1.0

    def test_an_input_on_the_boundary_gets_no_answer(self) -> None:
        """Where two classes are level there is no class, and the radius is 0."""
        known = half_space([1.0, 1.0], 0.0, gain=self.gain)
        found = self._certify(known, torch.tensor([[0.25, -0.25]]), effort=self.efforts[0], seed=0)
        assert found.prediction.tolist() == [ABSTAIN]
        assert found.radius.tolist() == [0.0]

    def test_one_input_is_certified_as_among_many(self) -> None:
        """What else is in the call, and in which order, changes nothing."""
        known, x = self._problem(3, 7)
        many = self._certify(known, x, effort=self.efforts[0], seed=7)
        order = [5, 0, 7, 2, 1, 6, 4, 3]
        mixed = self._certify(known, x[order], effort=self.efforts[0], seed=7, indices=order)
        for place, index in enumerate(order):
            alone = self._certify(
                known, x[index : index + 1], effort=self.efforts[0], seed=7, indices=[index]
            )
            assert _without_time(alone, 0) == _without_time(many, index) == _without_time(mixed, place)

    def test_the_same_seed_gives_the_same_certificates(self) -> None:
        """A certificate can be made again from what its record says."""
        known, x = self._problem(3, 8)
        first, again = (self._certify(known, x, effort=self.efforts[0], seed=8) for _ in range(2))
        assert [_without_time(first, row) for row in range(len(x))] == [
            _without_time(again, row) for row in range(len(x))
        ]

    def test_another_seed_or_another_index_draws_anew(self) -> None:
        """Equal inputs under another seed, or at another index, do not share their draws."""
        if self.certain:
            return
        known, x = self._problem(3, 9, shares=(0.5,) * 6)
        first = self._certify(known, x, effort=self.efforts[1], seed=9)
        other = self._certify(known, x, effort=self.efforts[1], seed=10)
        assert len({found.p_lower for found in first.certificates}) > 2
        pairs = zip(first.certificates, other.certificates, strict=True)
        assert any(one.p_lower != two.p_lower for one, two in pairs)

    def test_no_label_is_seen(self) -> None:
        """Labels come in after the certificate, and change nothing else in its record."""
        known, x = self._problem(3, 11)
        found = self._certify(known, x, effort=self.efforts[0], seed=11)
        assert {record.label for record in found.records()} == {-1}
        labelled = found.records([1] * len(x))
        assert [record.label for record in labelled] == [1] * len(x)
        pairs = zip(labelled, found.records(), strict=True)
        assert all(one.radius == two.radius and one.prediction == two.prediction for one, two in pairs)

    def test_a_record_says_what_was_measured_and_survives_being_stored(self) -> None:
        """A record names the classifier, the method, the norm and the seed, and comes back from JSON as it was."""
        known, x = self._problem(3, 12, shares=(0.5,))
        certifier = self.make(self.efforts[0], alpha=0.01)
        target = self.present(known.target)
        record = certifier(target, x, ThreatModel(self.norm), seed=12, plan=self.plan).certificates[0]
        assert (record.target, record.method, record.norm, record.seed) == (
            target.fingerprint,
            repr(certifier),
            self.norm.value,
            12,
        )
        assert record_from_json(record.kind, record.to_json()) == record

    def test_a_certifier_is_a_value(self) -> None:
        """Two certifiers with the same settings are equal, and print the same."""
        one, two = (self.make(self.efforts[0], alpha=0.01) for _ in range(2))
        assert one == two
        assert (hash(one), repr(one)) == (hash(two), repr(two))
        assert repr(self.make(self.efforts[1], alpha=0.01)) != repr(one) or self.certain

    def test_the_target_is_left_as_it_was(self) -> None:
        """Certifying changes neither weights nor mode nor random state."""
        known, x = self._problem(3, 13)
        before, state, threads = known.target.logits(x), torch.get_rng_state(), torch.get_num_threads()
        self._certify(known, x, effort=self.efforts[0], seed=13)
        assert torch.equal(known.target.logits(x), before)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in known.target.module.modules())
        torch.set_num_threads(threads)

    def test_failures_are_no_more_frequent_than_alpha(self) -> None:
        """Over many certificates of one input, radii above the distance are as rare as alpha says."""
        if self.certain:
            return
        repeats, alpha = 600, 0.05
        known, x = self._problem(2, 14, shares=(0.5,))
        found = self._certify(known, x.expand(repeats, -1), effort=self.efforts[0], seed=14, alpha=alpha)
        label, distance = int(known.label(x)[0]), float(known.distance(x, self.norm)[0])
        wrong = (found.radius > distance) | ((found.prediction != label) & (found.prediction != ABSTAIN))
        assert float(bdtrc(int(wrong.sum()) - 1, repeats, alpha)) > 1e-3

    def test_rounding_to_float32_raises_no_radius(self) -> None:
        """Where float32 swallows noise and perturbation, the certifier refuses, or proves no more than the distance."""
        large = float(_MAX_FLOAT32_NORMAL)
        x = torch.tensor([[large + 1, -large]])
        gap = self.reach() / 8
        net = HalfSpace([1.0, 1.0], gap - 1, gain=self.gain).eval()
        target = Target(net, num_classes=2, input_shape=(2,), bounds=(-2 * large, 2 * large))
        known = KnownAnswer(target, net)
        try:
            found = self._certify(known, x, effort=self.efforts[1], seed=15)
        except CalipersError:
            return
        assert (found.radius <= known.distance(x, self.norm)).all()

    def _problem(
        self, dimension: int, seed: int, *, shares: tuple[float, ...] = (-2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2)
    ) -> tuple[KnownAnswer, Tensor]:
        """Make a half-space, and inputs at shares of the reach on its two sides."""
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(dimension, generator=generator)
        known = half_space(normal.tolist(), 0.25, gain=self.gain)
        assert isinstance(known.net, HalfSpace)
        x = torch.randn((1, dimension), generator=generator)
        factor = float(known.distance(x, Norm.L2)[0] / known.distance(x, self.norm)[0])
        wanted = torch.tensor(shares) * self.reach() * factor
        signed = known.net.signed(x).detach().float()
        return known, x + torch.outer(wanted - signed, normal / normal.norm())

    def _certify(
        self,
        known: KnownAnswer,
        x: Tensor,
        *,
        effort: int,
        seed: int,
        alpha: float = 1e-4,
        indices: list[int] | None = None,
    ) -> CertificateResult:
        certifier = self.make(effort, alpha=alpha)
        target = self.present(known.target)
        return certifier(target, x, ThreatModel(self.norm), seed=seed, plan=self.plan, indices=indices)


def _without_time(found: CertificateResult, row: int) -> dict[str, object]:
    record = found.certificates[row]
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "seconds"}
