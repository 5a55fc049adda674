"""Each noise has its distribution, proves the radius of its theorem, and belongs to one classifier."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri

from calipers.certificates.smoothing import noise as noises
from calipers.certificates.smoothing.noise import Gaussian, Laplace, Noise, RoundedGaussian, Uniform
from calipers.errors import InvalidInput, Unsound, UsageError
from calipers.randomness import Role, Stream
from calipers.testing.noise_contract import NoiseContract
from calipers.threat.threat_model import Norm


class TestGaussian(NoiseContract):
    def make(self) -> Noise:
        return Gaussian(0.25)

    def cdf(self, value: np.ndarray) -> np.ndarray:
        return ndtr(value / 0.25)


class TestLaplace(NoiseContract):
    def make(self) -> Noise:
        return Laplace(0.3)

    def cdf(self, value: np.ndarray) -> np.ndarray:
        tail = np.exp(-np.abs(value) / 0.3) / 2
        return np.where(value < 0, tail, 1 - tail)


class TestUniform(NoiseContract):
    def make(self) -> Noise:
        return Uniform(0.7)

    def cdf(self, value: np.ndarray) -> np.ndarray:
        return np.clip((value / 0.7 + 1) / 2, 0, 1)


class TestRoundedGaussian(NoiseContract):
    gridded = True

    def make(self) -> Noise:
        return RoundedGaussian(0.02)

    def cdf(self, value: np.ndarray) -> np.ndarray:
        return ndtr((np.floor(255 * value + 1e-4) + 0.5) / 255 / 0.02)


# ------------------------------------------------------------------------------------------------- the rounded table


@pytest.mark.parametrize("sigma", [0.001, 0.02, 0.25, 1.0])
def test_the_table_holds_the_probabilities_of_the_rounded_gaussian(sigma: float) -> None:
    edges, lowest = noises._rounded_table(sigma)
    assert len(edges) == -2 * lowest
    assert (np.diff(edges) >= 0).all() and edges[0] >= 0 and edges[-1] <= 2**60
    previous, apart, total = 0, mpmath.mpf(0), 0
    with mpmath.workdps(40):
        scale = 255 * mpmath.mpf(sigma)
        for place, edge in enumerate([*edges.tolist(), 2**60]):
            k = lowest + place
            exact = mpmath.ncdf((k + 0.5) / scale) - mpmath.ncdf((k - 0.5) / scale)
            apart += abs(mpmath.mpf(edge - previous) / 2**60 - exact) / 2
            total += edge - previous
            previous = edge
    assert total == 2**60
    assert apart < 2e-13


def test_the_table_is_symmetric() -> None:
    edges, _ = noises._rounded_table(0.25)
    assert (edges + edges[::-1] == 2**60).all()


def test_each_integer_of_sixty_bits_is_looked_up_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noises, "_rounded_table", lambda sigma: (np.array([10, 50, 2**60 - 10]), -1))
    drawn = torch.tensor([0, 9, 10, 49, 50, 2**60 - 11, 2**60 - 10, 2**60 - 1])

    def fixed(self: torch.Tensor, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
        assert (low, high) == (0, 2**60)
        return self.copy_(drawn)

    monkeypatch.setattr(torch.Tensor, "random_", fixed)
    buffer = torch.empty(8)
    RoundedGaussian(0.25).fill(buffer, torch.Generator())
    assert buffer.tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]


def test_every_noisy_value_is_on_the_grid_whatever_the_input() -> None:
    noise = RoundedGaussian(0.5)
    x = (torch.arange(256) / 255).repeat(40, 1)
    drawn = torch.empty(x.shape)
    noise.fill(drawn, Stream(0, Role.ESTIMATE, 0).generator(0))
    whole = drawn.clone()
    assert torch.equal(whole, whole.round()) and float(whole.abs().max()) > 255
    noise.add(noise.prepare(x), drawn, drawn)
    wanted = torch.arange(256, dtype=torch.int64) + whole.long()
    assert torch.equal((drawn * 255).round().long(), wanted)
    assert torch.equal(drawn, wanted.float() / 255)


def test_equal_noisy_integers_are_equal_floats_whatever_the_input() -> None:
    noise = RoundedGaussian(0.5)
    left, right = torch.empty((1, 1)), torch.empty((1, 1))
    for total in range(-300, 600, 7):
        noise.add(noise.prepare(torch.tensor([[3 / 255]])), torch.tensor([[total - 3.0]]), left)
        noise.add(noise.prepare(torch.tensor([[250 / 255]])), torch.tensor([[total - 250.0]]), right)
        assert torch.equal(left, right)


def test_the_sum_is_clipped_nowhere() -> None:
    noise = RoundedGaussian(1.0)
    out = torch.empty((1, 2))
    noise.add(noise.prepare(torch.tensor([[0.0, 1.0]])), torch.tensor([[-400.0, 400.0]]), out)
    assert out.tolist() == [pytest.approx([-400 / 255, 655 / 255])]


def test_all_grey_levels_are_on_the_grid_however_they_were_divided() -> None:
    levels = np.arange(256)
    for x in (
        torch.from_numpy(levels / 255).float(),
        torch.from_numpy(levels.astype(np.uint8)) / 255,
        torch.from_numpy(levels.astype(np.float32) / np.float32(255)),
    ):
        assert RoundedGaussian(0.25).prepare(x).tolist() == levels.tolist()


@pytest.mark.parametrize("value", [0.5, 1 / 255 + 1e-4, 1 / 256])
def test_an_input_off_the_grid_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match="not on the 1/255 grid, which sound mode needs"):
        RoundedGaussian(0.25).prepare(torch.tensor([0.0, value]))


@pytest.mark.gpu
def test_grey_levels_are_on_the_grid_on_cuda_too() -> None:
    x = (torch.arange(256, dtype=torch.uint8) / 255).cuda()
    noise = RoundedGaussian(0.25)
    prepared = noise.prepare(x)
    assert prepared.tolist() == list(range(256))
    out = torch.empty_like(prepared)
    noise.add(prepared, torch.zeros_like(prepared), out)
    assert torch.equal(out, x)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "noise", [Gaussian(0.25), Laplace(0.25), Uniform(0.25), RoundedGaussian(0.25)], ids=repr
)
def test_draws_on_cuda_have_the_same_distribution(noise: Noise) -> None:
    stream = Stream(0, Role.ESTIMATE, 0)
    there, here = torch.empty(100_000, device="cuda"), torch.empty(100_000)
    noise.fill(there, stream.generator(0, "cuda"))
    noise.fill(here, stream.generator(0))
    one, two = np.sort(there.cpu().double().numpy()), np.sort(here.double().numpy())
    every = np.concatenate([one, two])
    gap = np.searchsorted(one, every, side="right") / len(one) - np.searchsorted(
        two, every, side="right"
    ) / len(two)
    assert np.abs(gap).max() < math.sqrt(2 * math.log(2 / 1e-6) / (2 * 100_000))


# ------------------------------------------------------------------------------------------------------ the radii


def test_gaussian_radii_are_those_of_theorem_1() -> None:
    assert float(Gaussian(0.5).radius(0.9, 0.05)) == pytest.approx(
        0.25 * (ndtri(0.9) - ndtri(0.05)), rel=1e-12
    )
    # the references of the field: N = 100 000 at alpha = .001, every vote for the class
    assert float(Gaussian(1.0).radius(0.9999309248, 1 - 0.9999309248)) == pytest.approx(3.811457, abs=1e-6)


def test_sound_mode_gives_away_the_error_of_its_table() -> None:
    exact = float(Gaussian(0.5).radius(0.9, 0.05))
    small, large = (float(RoundedGaussian(0.5).radius(0.9, 0.05, dimension=size)) for size in (1, 10**9))
    assert exact - 1e-12 < small < exact
    slack = 10**9 * 2e-13
    assert large == pytest.approx(0.25 * (ndtri(0.9 - slack) - ndtri(0.05 + slack)), rel=1e-12)
    assert float(RoundedGaussian(0.5).radius(1.0, 0.0, dimension=784)) < math.inf


def test_uniform_radii_are_the_lead_times_the_width() -> None:
    assert float(Uniform(0.5).radius(0.9, 0.05)) == pytest.approx(0.5 * 0.85, rel=1e-12)


def test_laplace_radii_are_the_better_of_two() -> None:
    def formula(p_a: float, p_b: float) -> float:
        return max(0.5 / 2 * math.log(p_a / p_b), -0.5 * math.log(1 - p_a + p_b))

    for p_a, p_b in ((0.9, 0.1), (0.9, 0.001), (0.5, 0.2), (0.99, 0.01)):
        assert float(Laplace(0.5).radius(p_a, p_b)) == pytest.approx(formula(p_a, p_b), rel=1e-9)


def test_radii_in_another_norm_are_those_of_the_inscribed_ball() -> None:
    own = float(Gaussian(0.5).radius(0.9, 0.1))
    assert float(Gaussian(0.5).radius(0.9, 0.1, Norm.L1, dimension=100)) == pytest.approx(own)
    assert float(Gaussian(0.5).radius(0.9, 0.1, Norm.LINF, dimension=100)) == pytest.approx(own / 10)
    own = float(Uniform(0.5).radius(0.9, 0.1))
    assert float(Uniform(0.5).radius(0.9, 0.1, Norm.L2, dimension=100)) == pytest.approx(own / 10)
    assert float(Uniform(0.5).radius(0.9, 0.1, Norm.LINF, dimension=100)) == pytest.approx(own / 100)
    with pytest.raises(Unsound, match="l0"):
        Gaussian(0.5).radius(0.9, 0.1, Norm.L0, dimension=100)


def test_sound_mode_proves_l2_only() -> None:
    with pytest.raises(Unsound, match="sound mode certifies l2 on the 1/255 grid and not linf"):
        RoundedGaussian(0.25).radius(0.9, 0.1, Norm.LINF, dimension=3)


# ------------------------------------------------------------------------------------------------- one classifier

EVERY = (Gaussian, Laplace, Uniform, RoundedGaussian)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("scale", [0.0, -0.25, math.inf, math.nan])
def test_a_scale_that_is_no_positive_number_is_refused(make, scale: float) -> None:
    with pytest.raises(UsageError, match=f"is {scale}: give a finite number above 0"):
        make(scale)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize(
    "scale",
    [
        [0.25, 0.5],
        (0.25,),
        np.array([0.25, 0.5]),
        np.array([0.25]),
        torch.tensor([0.25, 0.5]),
        torch.tensor(0.25),
        "1",
    ],
    ids=lambda scale: type(scale).__name__,
)
def test_a_scale_for_each_input_is_refused(make, scale: object) -> None:
    with pytest.raises(
        Unsound, match="one number for all inputs; another scale for each is not one classifier"
    ):
        make(scale)


@pytest.mark.parametrize("scale", [1, 1.0, np.float64(1), np.float32(1), np.int64(1), Fraction(1)], ids=repr)
@pytest.mark.parametrize("make", EVERY)
def test_a_number_is_written_in_one_way(make, scale: float) -> None:
    assert repr(make(scale)) == repr(make(1.0))
    assert type(make(scale).scale) is float


def test_noises_are_told_apart() -> None:
    assert len({repr(make(0.25)) for make in EVERY} | {repr(make(0.5)) for make in EVERY}) == 8
