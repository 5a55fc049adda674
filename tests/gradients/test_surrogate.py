"""A learned surrogate gives a module without a gradient one that an attack can go along."""

import pytest
import torch
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA
from calipers.gradients.estimator import Autograd
from calipers.gradients.surrogate import fit_surrogate
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.threat.objectives import cross_entropy
from calipers.threat.threat_model import Untargeted


class _Inverted(nn.Module):
    """Rounds 1 - x to steps of 1/10, outside the graph: the identity would point the wrong way."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy((1 - x).mul(10).round().div(10).numpy())


class _Code(nn.Module):
    """Four channels for one: whether a pixel is above each of four levels."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() > torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, -1, 1, 1)).float()


def _images(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 1, 6, 6), generator=torch.Generator().manual_seed(seed))


def _classifier(channels: int) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36 * channels, 3))
    with torch.no_grad():
        net[1].weight.normal_(generator=torch.Generator().manual_seed(1))
    return net


def test_a_surrogate_points_where_the_module_goes() -> None:
    """The gradient through it is that through 1 - x, nearly; through the identity it has the wrong sign."""
    surrogate = fit_surrogate(_Inverted(), _images(300), seed=0, steps=300)
    target = Target(nn.Sequential(_Inverted(), _classifier(1)).eval(), num_classes=3, input_shape=(1, 6, 6))
    plain = Target(_classifier(1).eval(), num_classes=3, input_shape=(1, 6, 6))
    x, y = _images(8, seed=5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    draws = Draws(0, Role.SEARCH, tuple(range(8)))
    found = BPDA({"0": surrogate}).estimate(target, cross_entropy, x, y, Untargeted(), draws=draws).gradient
    rounded = _Inverted()(x)
    wanted = -Autograd().estimate(plain, cross_entropy, rounded, y, Untargeted(), draws=draws).gradient
    cosine = torch.nn.functional.cosine_similarity(found.flatten(1), wanted.flatten(1))
    assert float(cosine.min()) > 0.9
    assert torch.allclose(found.flatten(1).norm(dim=1), wanted.flatten(1).norm(dim=1), rtol=0.2)
    assert surrogate.unexplained < 0.05


def test_it_takes_the_shapes_of_the_module() -> None:
    for module, inputs in (
        (_Code(), _images(100)),
        (nn.Flatten(), _images(100)),
        (nn.ReLU(), torch.randn(100, 5)),
    ):
        surrogate = fit_surrogate(module, inputs, seed=0, steps=300)
        assert surrogate(inputs[:3]).shape == module(inputs[:3]).shape
        assert 0 <= surrogate.unexplained < 0.5


def test_a_module_that_nothing_is_known_of_is_not_explained() -> None:
    """A surrogate of noise is no better than the mean, and says so."""

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.randn_like(x)

    assert fit_surrogate(Noise(), torch.randn(200, 5), seed=0, steps=50).unexplained > 0.8


def test_the_seed_decides_it_and_nothing_else_is_touched() -> None:
    state = torch.get_rng_state()
    inputs = _images(50)
    one, again, other = (
        fit_surrogate(_Inverted(), inputs, seed=seed, steps=20)(inputs) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_asks_for_no_gradient_of_its_own() -> None:
    surrogate = fit_surrogate(_Inverted(), _images(50), seed=0, steps=5)
    assert not surrogate.training
    assert not any(part.requires_grad for part in surrogate.parameters())


def test_what_means_nothing_is_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(UsageError, match="with 3 inputs"):
        fit_surrogate(_Inverted(), _images(3), seed=0)
    with pytest.raises(UsageError, match="0 steps"):
        fit_surrogate(_Inverted(), _images(50), seed=0, steps=0)
    with pytest.raises(UsageError, match="Pair gives tuple"):
        fit_surrogate(Pair(), _images(50), seed=0)
