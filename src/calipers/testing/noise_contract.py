"""The contract of a noise: what each one must pass, as a class of tests to inherit.

A test module inherits it, says how its noise is made, and gets the tests. Call
``pytest.register_assert_rewrite`` with the name of this module in ``conftest.py`` to see the values of a failure.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from calipers.certificates.smoothing.noise import Noise
from calipers.randomness import Role, Stream
from calipers.threat.threat_model import Norm

__all__ = ["NoiseContract"]

Array = NDArray[np.float64]

_LEVEL = 1e-6
"""Probability that a test of a distribution fails for a right one; the draws are fixed, so it always does or never."""


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


def _kolmogorov_distance(ordered: Array, at: Array, below: Array) -> float:
    """Return the largest gap between an empirical distribution and an exact one, on both sides of every value."""
    count = len(ordered)
    up_to = np.searchsorted(ordered, ordered, side="right") / count
    before = np.searchsorted(ordered, ordered, side="left") / count
    return float(max(np.abs(up_to - at).max(), np.abs(before - below).max()))
