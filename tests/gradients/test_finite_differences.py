"""NES and SPSA: the right scale, each input by itself, from scores alone."""

import pytest
import torch

from calipers.errors import UsageError
from calipers.gradients.estimator import Autograd, GradientEstimate
from calipers.gradients.finite_differences import NES, SPSA
from calipers.randomness import Draws, Role
from calipers.target import Access, Oracle
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.testing.known_answers import concentric_balls, half_space, noisy_half_space, staircase
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Untargeted


class TestNES(GradientEstimatorContract):
    exact = False
    closeness = 2e-3

    def make(self) -> NES:
        return NES(40, sigma=0.003)


class TestNESOneSided(GradientEstimatorContract):
    exact = False
    closeness = 2e-3

    def make(self) -> NES:
        return NES(40, sigma=0.003, antithetic=False, max_batch=64)


class TestSPSA(GradientEstimatorContract):
    exact = False
    closeness = 2e-3

    def make(self) -> SPSA:
        return SPSA(40, delta=0.005)


def _draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, Role.SEARCH, tuple(range(count)))


def _estimate(estimator, target, x, y, seed: int = 0, objective=margin) -> GradientEstimate:
    return estimator.estimate(target, objective, x, y, Untargeted(), draws=_draws(len(x), seed))


def test_on_a_linear_loss_it_is_the_sum_of_the_paper_for_any_step() -> None:
    """The difference quotient along u is exactly g u, so the estimate is g (u u^T) averaged, whatever sigma is."""
    known = half_space([3.0, 4.0, 0.0], 0.0)
    x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])
    slope = torch.tensor([-1.2, -1.6, 0.0])
    for estimator in (NES(50, sigma=0.5), NES(50, sigma=2.0), NES(50, sigma=2.0, antithetic=False)):
        directions = torch.empty(50, 3).normal_(generator=_draws(1)[0].generator(0))
        expected = (directions @ slope)[:, None] * directions
        found = _estimate(estimator, known.target, x, y)
        assert torch.allclose(found.gradient[0], expected.mean(0), rtol=1e-4, atol=1e-5)
    signs = torch.empty(50, 3).bernoulli_(0.5, generator=_draws(1)[0].generator(0)) * 2 - 1
    found = _estimate(SPSA(50, delta=0.25), known.target, x, y)
    assert torch.allclose(found.gradient[0], ((signs @ slope)[:, None] * signs).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", [NES(4000), SPSA(4000)], ids=lambda found: type(found).__name__)
def test_in_the_limit_it_is_the_gradient(estimator: NES | SPSA) -> None:
    """The error of n directions in d dimensions is about sqrt(d / n) of the gradient."""
    known = concentric_balls([0.0] * 10, 1.0)
    x = torch.randn((3, 10), generator=torch.Generator().manual_seed(0)) / 4
    y = torch.tensor([0, 0, 1])
    found = _estimate(estimator, known.target, x, y)
    expected = _estimate(Autograd(), known.target, x, y)
    assert torch.allclose(expected.gradient, torch.tensor([4.0, 4.0, -4.0])[:, None] * x, atol=1e-5)
    error = (found.gradient - expected.gradient).norm(dim=1) / expected.gradient.norm(dim=1)
    assert bool((error < 2 * (10 / 4000) ** 0.5).all())
    scale = (found.gradient * expected.gradient).sum(1) / expected.gradient.square().sum(1)
    assert bool(((scale - 1).abs() < 0.08).all())


def test_a_batch_loses_no_accuracy() -> None:
    """Where the loss is summed over the batch, the error grows with its size."""
    known = half_space([1.0] * 20)
    x = torch.randn((128, 20), generator=torch.Generator().manual_seed(0))
    y = torch.ones(128, dtype=torch.int64)
    estimator = NES(200, sigma=0.01)
    expected = _estimate(Autograd(), known.target, x, y).gradient
    error = (_estimate(estimator, known.target, x, y).gradient - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 2 * (20 / 200) ** 0.5
    assert float(error.mean()) == pytest.approx((20 / 200) ** 0.5, rel=0.15)


def test_chunks_change_nothing() -> None:
    known = half_space([1.0, -2.0, 0.5])
    x, y = torch.rand((5, 3)), torch.tensor([0, 1, 0, 1, 0])
    found = [
        _estimate(NES(33, sigma=0.1, max_batch=size), known.target, x, y).gradient for size in (1, 7, 40, 999)
    ]
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-5)


def test_queries_are_two_a_direction_and_one() -> None:
    for estimator, queries in ((NES(9), 19), (NES(9, antithetic=False), 10), (SPSA(9), 19)):
        view = Oracle(half_space([1.0, 2.0]).target, Access.SCORES)
        _estimate(estimator, view, torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))
        assert (view.counts.queries, view.counts.backwards) == (4 * queries, 0)


def test_both_sides_see_the_same_draws_of_a_noisy_classifier() -> None:
    """Each direction then has an error of its own size, not of the noise over the step."""
    known = noisy_half_space([3.0, 4.0], 1.0, flip=0.2)
    x, y = torch.tensor([[1.0, 1.0]]).expand(40, 2), torch.ones(40, dtype=torch.int64)
    found = _estimate(NES(500, sigma=1e-2), known.target, x, y).gradient
    expected = (1 - 2 * 0.2) * torch.tensor([-1.2, -1.6])
    error = (found.mean(0) - expected) / (found.std(0) / 40**0.5)
    assert float(error.abs().max()) < 4
    assert float(found.std(0).max()) < 0.3


def test_a_step_wider_than_a_stair_sees_it() -> None:
    """The gradient of the staircase is 0 everywhere; that of the staircase smoothed by a wide step is not."""
    known = staircase([0.0], [0, 1])
    x, y = torch.tensor([[-0.1]]), torch.tensor([0])
    assert float(_estimate(NES(200, sigma=1e-3), known.target, x, y).gradient) == 0.0
    # E L(x + sigma u) rises by 4 from below the edge to above it: its slope is 4 phi(x / sigma) / sigma
    slope = 4 * float(torch.exp(torch.tensor(-0.02))) / (2 * torch.pi) ** 0.5 / 0.5
    found = _estimate(NES(40_000, sigma=0.5), known.target, x, y).gradient
    assert float(found) == pytest.approx(slope, rel=0.05)


def test_the_scores_of_a_half_space_do_not_saturate_the_estimate() -> None:
    known = half_space([1.0, 0.0], gain=4.0)
    x, y = torch.tensor([[0.1, 0.0]]), torch.tensor([1])
    found = _estimate(SPSA(2000, delta=1e-2), known.target, x, y, objective=cross_entropy).gradient
    expected = _estimate(Autograd(), known.target, x, y, objective=cross_entropy).gradient
    assert torch.allclose(found, expected, atol=0.3)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: NES(0), "samples 0"),
        (lambda: NES(sigma=0.0), "sigma is 0.0"),
        (lambda: NES(sigma=float("nan")), "sigma is nan"),
        (lambda: SPSA(delta=-1.0), "delta is -1.0"),
        (lambda: SPSA(max_batch=0), "max_batch 0"),
    ],
)
def test_what_means_nothing_is_refused(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()
