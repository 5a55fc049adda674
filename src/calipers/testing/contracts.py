"""Contracts: what every certifier and every noise must pass, as classes of tests to inherit.

A test module inherits a contract, says how its method is made, and gets the tests. Under pytest, call
``pytest.register_assert_rewrite("calipers.testing.contracts")`` in ``conftest.py`` to see the values of a failure.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtrc
from torch import Tensor

from calipers.certificates.base import CertificateResult, Certifier
from calipers.certificates.smoothing.noise import Noise
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.errors import CalipersError
from calipers.evidence.records import record_from_json
from calipers.randomness import Role, Stream
from calipers.target import Target
from calipers.testing.closed_forms import HalfSpace
from calipers.testing.known_answers import KnownAnswer, half_space
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

__all__ = ["CertifierContract", "NoiseContract"]

Array = NDArray[np.float64]

_LEVEL = 1e-6
"""Probability that a test of a distribution fails for a right one; the draws are fixed, so it always does or never."""

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


class NoiseContract(ABC):
    """What every noise must pass, against its exact distribution.

    Attributes:
        draws: how many values are compared with the distribution.
        gridded: whether the values have a positive probability each; then :meth:`cdf` is that of a grid of 1/255.
    """

    draws: ClassVar[int] = 100_000
    gridded: ClassVar[bool] = False

    @abstractmethod
    def make(self) -> Noise:
        """Make the noise.

        Returns:
            The noise.
        """

    @abstractmethod
    def cdf(self, value: Array) -> Array:
        """Compute the probability that one coordinate of the noise is at most a value.

        Args:
            value: values in input units.

        Returns:
            Probabilities, exact to 1e-9.
        """

    def test_draws_have_the_distribution(self) -> None:
        """The empirical distribution is as near to the exact one as the Dvoretzky-Kiefer-Wolfowitz bound asks."""
        drawn = np.sort(self._draw(Stream(1, Role.ESTIMATE, 0), chunks=10, count=self.draws // 10))
        allowed = math.sqrt(math.log(2 / _LEVEL) / (2 * len(drawn)))
        assert _kolmogorov_distance(drawn, self.cdf(drawn), self.cdf(self._below(drawn))) <= allowed

    def test_draws_have_the_moments(self) -> None:
        """Mean, mean square and mean of the fourth power agree with the exact distribution."""
        drawn = self._draw(Stream(2, Role.ESTIMATE, 0), chunks=10, count=self.draws // 10)
        for power in (1, 2, 4):
            mean = self._moment(power)
            allowed = 6 * math.sqrt((self._moment(2 * power) - mean**2) / len(drawn))
            assert abs(float((drawn**power).mean()) - mean) <= allowed

    def test_coordinates_and_draws_are_independent(self) -> None:
        """Neighbouring values, and the same places of neighbouring chunks, are not correlated, nor their squares."""
        first, second = (
            self._draw(Stream(3, Role.ESTIMATE, index), chunks=10, count=self.draws // 10) for index in (0, 1)
        )
        for one, two in (
            (first[:-1], first[1:]),
            (first, second),
            (first[: -self.draws // 10], first[self.draws // 10 :]),
        ):
            for power in (1, 2):
                correlation = float(np.corrcoef(one**power, two**power)[0, 1])
                assert abs(correlation) < 6 / math.sqrt(len(one))

    def test_the_same_stream_gives_the_same_draws(self) -> None:
        """Draws can be made again, and other streams give others."""
        base = self._draw(Stream(4, Role.ESTIMATE, 5), chunks=1, count=1000)
        assert np.array_equal(base, self._draw(Stream(4, Role.ESTIMATE, 5), chunks=1, count=1000))
        for other in (Stream(5, Role.ESTIMATE, 5), Stream(4, Role.SELECT, 5), Stream(4, Role.ESTIMATE, 6)):
            assert np.mean(base == self._draw(other, chunks=1, count=1000)) < 0.5

    def test_a_chunk_is_the_same_wherever_it_lies(self) -> None:
        """A chunk that is filled inside a larger buffer, and among others, has the values that it has alone."""
        noise, stream = self.make(), Stream(6, Role.JUDGE, 1)
        many = torch.empty((4, 1000))
        for chunk in (2, 0, 3, 1):
            noise.fill(many[chunk], stream.generator(chunk))
        for chunk in range(4):
            alone = torch.empty(1000)
            noise.fill(alone, stream.generator(chunk))
            assert torch.equal(many[chunk], alone)

    def test_noise_is_added_in_float32_to_each_input(self) -> None:
        """Inputs keep their places, results are float32, and the result may overwrite the draws."""
        noise = self.make()
        x = torch.tensor([[0.0, 51 / 255, 1.0]])
        drawn = torch.empty((500, 3))
        noise.fill(drawn, Stream(7, Role.ESTIMATE, 0).generator(0))
        apart = torch.empty((500, 3))
        prepared = noise.prepare(x)
        noise.add(prepared, drawn, apart)
        noise.add(prepared, drawn, drawn)
        assert torch.equal(apart, drawn)
        assert apart.dtype is torch.float32
        plain = torch.from_numpy(self._draw(Stream(7, Role.ESTIMATE, 0), chunks=1, count=1500)).view(500, 3)
        assert float((apart.double() - x.double() - plain).abs().max()) < 1e-6

    def test_no_radius_is_above_what_a_half_line_allows(self) -> None:
        """In one dimension a half-line with probability p keeps the majority until it has moved to the median."""
        noise = self.make()
        edges = np.linspace(0, 4, 200) * self._spread()
        p = self.cdf(edges)
        inside = (p > 0.5) & (p < 1 - 1e-9)
        allowed = edges[inside] + (1 / 255 if self.gridded else 0.0)
        radius = np.array([float(noise.radius(chance, 1 - chance)) for chance in p[inside]])
        assert (radius <= allowed * (1 + 1e-9)).all()
        assert (radius > 0).any()

    def test_nothing_is_proved_without_a_lead(self) -> None:
        """The class must be strictly more probable than any other."""
        noise = self.make()
        for p_lower, p_upper in ((0.5, 0.5), (0.3, 0.4), (0.0, 1.0), (0.0, 0.0)):
            assert float(noise.radius(p_lower, p_upper)) <= 0.0

    def test_a_larger_lead_proves_more(self) -> None:
        """The radius rises with p_lower, falls with p_upper, and scales with the noise."""
        noise = self.make()
        leads = np.linspace(0.51, 0.99, 40)
        radius = np.array([float(noise.radius(p, 1 - p)) for p in leads])
        assert (np.diff(radius) > 0).all()
        assert float(noise.radius(0.9, 0.05)) > float(noise.radius(0.9, 0.1))

    def test_a_noise_is_a_value_that_cites_its_theorem(self) -> None:
        """Equal settings make equal noises; the theorem and the norm are named."""
        one, two = self.make(), self.make()
        assert one == two
        assert (hash(one), repr(one)) == (hash(two), repr(two))
        assert str(one.scale) in repr(one)
        assert any(digit.isdigit() for digit in one.theorem)
        assert isinstance(one.norm, Norm)

    def _draw(self, stream: Stream, *, chunks: int, count: int) -> Array:
        """Draw chunks and add them to 0, as float64."""
        noise = self.make()
        rows = torch.empty((chunks, count))
        for chunk in range(chunks):
            noise.fill(rows[chunk], stream.generator(chunk))
        noise.add(noise.prepare(torch.zeros(1, 1)), rows, rows)
        return rows.double().numpy().ravel()

    def _below(self, value: Array) -> Array:
        """The values just below, as far as the distribution can tell."""
        return value - (0.5 / 255 if self.gridded else 0.0)

    def _spread(self) -> float:
        return float(self.make().scale)

    def _moment(self, power: int) -> float:
        """Integrate the distribution: E X^k = k int t^(k-1) (1 - F(t)) dt over t > 0, and so for -X."""
        steps = np.linspace(0, 40 * self._spread(), 400_001)
        above, below = 1 - self.cdf(steps), self.cdf(-steps if not self.gridded else -steps - 1e-12)
        sides = above + below if power % 2 == 0 else above - below
        return float(np.trapezoid(power * steps ** (power - 1) * sides, steps))


def _without_time(found: CertificateResult, row: int) -> dict[str, object]:
    record = found.certificates[row]
    return {name: getattr(record, name) for name in record.__dataclass_fields__ if name != "seconds"}


def _kolmogorov_distance(ordered: Array, at: Array, below: Array) -> float:
    """Return the largest gap between an empirical distribution and an exact one, on both sides of every value."""
    count = len(ordered)
    up_to = np.searchsorted(ordered, ordered, side="right") / count
    before = np.searchsorted(ordered, ordered, side="left") / count
    return float(max(np.abs(up_to - at).max(), np.abs(before - below).max()))
