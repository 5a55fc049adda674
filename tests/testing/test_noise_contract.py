"""A contract that nothing fails is worth nothing: each broken method here fails the tests that are meant for it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from failed_tests import failed_tests
from scipy.special import ndtr
from torch import Generator, Tensor

from calipers.certificates.smoothing.noise import Gaussian, Noise
from calipers.testing.noise_contract import NoiseContract
from calipers.threat.threat_model import Norm


@dataclass(frozen=True)
class _Normal(Noise):
    """Normal noise, written anew so that it can be broken."""

    norm: ClassVar[Norm] = Norm.L2
    theorem: ClassVar[str] = "Cohen et al. 2019, Theorem 1"

    sigma: float = 0.25

    @property
    def scale(self) -> float:
        return self.sigma

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        buffer.normal_(generator=generator).mul_(self.sigma)

    def natural_radius(self, p_lower, p_upper):
        return Gaussian(self.sigma).natural_radius(p_lower, p_upper)


class _TooWide(_Normal):
    def fill(self, buffer: Tensor, generator: Generator) -> None:
        buffer.normal_(generator=generator).mul_(1.05 * self.sigma)


class _OffCenter(_Normal):
    def fill(self, buffer: Tensor, generator: Generator) -> None:
        super().fill(buffer, generator)
        buffer.add_(0.02 * self.sigma)


class _Heavy(_Normal):
    """The right middle with a few draws far out."""

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        super().fill(buffer, generator)
        buffer[::5000] = 30 * self.sigma


class _Correlated(_Normal):
    def fill(self, buffer: Tensor, generator: Generator) -> None:
        super().fill(buffer, generator)
        buffer[1:] = (buffer[1:] + 0.1 * buffer[:-1]) / 1.01**0.5


class _SharedSize(_Normal):
    """Neighbours have the same magnitude: not correlated, but not independent."""

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        super().fill(buffer, generator)
        buffer[1::2] = buffer[1::2].sign() * buffer[::2].abs()


class _Global(_Normal):
    def fill(self, buffer: Tensor, generator: Generator) -> None:
        buffer.normal_().mul_(self.sigma)


class _ByMemory(_Normal):
    """Draws depend on where in memory the buffer lies."""

    def fill(self, buffer: Tensor, generator: Generator) -> None:
        super().fill(buffer, generator)
        buffer.mul_(-1 if buffer.storage_offset() else 1)


class _Half(_Normal):
    def add(self, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        out.copy_((prepared.half() + noise.half()).float())


class _TooFar(_Normal):
    def natural_radius(self, p_lower, p_upper):
        return 1.01 * super().natural_radius(p_lower, p_upper)


class _NoLead(_Normal):
    def natural_radius(self, p_lower, p_upper):
        return np.maximum(super().natural_radius(p_lower, p_upper), 1e-6)


class _OneSided(_Normal):
    def natural_radius(self, p_lower, p_upper):
        return super().natural_radius(p_lower, 1 - np.asarray(p_lower))


class _Uncited(_Normal):
    theorem: ClassVar[str] = "folklore"


NOISES: list[tuple[type[_Normal], set[str]]] = [
    (_Normal, set()),
    (_TooWide, {"draws_have_the_distribution", "draws_have_the_moments"}),
    (_OffCenter, {"draws_have_the_distribution"}),
    (_Heavy, {"draws_have_the_moments"}),
    (_Correlated, {"coordinates_and_draws_are_independent"}),
    (_SharedSize, {"coordinates_and_draws_are_independent"}),
    (_Global, {"the_same_stream_gives_the_same_draws", "a_chunk_is_the_same_wherever_it_lies"}),
    (_ByMemory, {"a_chunk_is_the_same_wherever_it_lies"}),
    (_Half, {"noise_is_added_in_float32_to_each_input"}),
    (_TooFar, {"no_radius_is_above_what_a_half_line_allows"}),
    (_NoLead, {"nothing_is_proved_without_a_lead"}),
    (_OneSided, {"a_larger_lead_proves_more"}),
    (_Uncited, {"a_noise_is_a_value_that_cites_its_theorem"}),
]


class _NormalContract(NoiseContract):
    def __init__(self, noise: type[_Normal]) -> None:
        self._noise = noise

    def make(self) -> Noise:
        return self._noise()

    def cdf(self, value: np.ndarray) -> np.ndarray:
        return ndtr(value / 0.25)


@pytest.mark.parametrize(("noise", "wanted"), NOISES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_noise_fails_what_it_breaks(noise: type[_Normal], wanted: set[str]) -> None:
    torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
    found = failed_tests(_NormalContract(noise))
    assert wanted <= found
    if noise is _Normal:
        assert found == set()
