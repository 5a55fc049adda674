"""Reparameterization: the gradient with respect to z is the estimator's, taken through the way from z to x."""

import pytest
import torch
from torch import Tensor, nn

from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd
from calipers.gradients.finite_differences import SPSA
from calipers.gradients.reparameterization import Reparameterization, SearchVariable, TanhBox
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.testing.known_answers import half_space
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Untargeted

MIX = torch.randn((2, 5), generator=torch.Generator().manual_seed(0))


def decode(z: Tensor) -> Tensor:
    """From two numbers to five."""
    return torch.tanh(z @ MIX)


def encode(x: Tensor) -> Tensor:
    return torch.linalg.lstsq(MIX.T, torch.atanh(x.clamp(-0.99, 0.99)).T).solution.T


def _target() -> Target:
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for part in net.parameters():
            part.normal_(generator=torch.Generator().manual_seed(part.numel()))
    return Target(net, num_classes=3, input_shape=(5,), bounds=(-1.0, 1.0))


Z = torch.randn((4, 2), generator=torch.Generator().manual_seed(1)) / 2
Y = torch.tensor([0, 1, 2, 0])
DRAWS = Draws(0, Role.SEARCH, (0, 1, 2, 3))
GENERATOR = Reparameterization(decode, encode)


def _through(variable: SearchVariable, z: Tensor, target: Target) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        cross_entropy(target.logits(variable.point(leaf)), Y, Untargeted()).sum(), leaf
    )
    return gradient


@pytest.mark.parametrize("estimator", [Autograd(), EOT(4), BPDA({"1": torch.nn.Tanh()})], ids=repr)
def test_the_gradient_is_chained_through_decode(estimator) -> None:
    target = _target()
    found = GENERATOR.estimate(estimator, target, cross_entropy, Z, Y, Untargeted(), draws=DRAWS)
    assert torch.allclose(found.gradient, _through(GENERATOR, Z, target), atol=1e-5)
    assert torch.allclose(found.logits, target.logits(decode(Z)), atol=1e-6)


def test_an_estimate_from_scores_is_chained_too() -> None:
    target = _target()
    found = GENERATOR.estimate(SPSA(4000), target, cross_entropy, Z, Y, Untargeted(), draws=DRAWS)
    wanted = _through(GENERATOR, Z, target)
    assert float((found.gradient - wanted).norm() / wanted.norm()) < 0.1


def test_a_search_starts_where_the_input_decodes_from() -> None:
    z = GENERATOR.start(decode(Z))
    assert not z.requires_grad
    assert torch.allclose(z, Z, atol=1e-3)


class _Projected(nn.Module):
    """A defense that searches for the nearest decoded point, 40 steps unrolled, with steps that forget the input."""

    def forward(self, x: Tensor) -> Tensor:
        return decode(encode(x.detach()))


def test_what_a_projection_leaves_alone_is_searched_in_z() -> None:
    """g(h(z)) = h(z): the defense does nothing at decoded points, and their gradient is that of f(h(z))."""
    plain = _target()
    defended = Target(
        nn.Sequential(_Projected(), plain.module.net).eval(), num_classes=3, input_shape=(5,), probe=False
    )
    with pytest.raises(GradientsUnavailable):
        GENERATOR.estimate(Autograd(), defended, cross_entropy, Z, Y, Untargeted(), draws=DRAWS)
    view = BPDA({"0": identity})
    found = GENERATOR.estimate(view, defended, cross_entropy, Z, Y, Untargeted(), draws=DRAWS)
    assert torch.allclose(found.gradient, _through(GENERATOR, Z, plain), atol=2e-3)


def test_a_decode_without_a_gradient_is_an_error() -> None:
    variable = Reparameterization(lambda z: decode(z.detach()), encode)
    with pytest.raises(GradientsUnavailable, match="differentiable in z"):
        variable.estimate(Autograd(), _target(), cross_entropy, Z, Y, Untargeted(), draws=DRAWS)


def test_functions_are_kept_by_name_and_a_lambda_is_not_stored() -> None:
    place = f"{decode.__module__}:"
    assert GENERATOR.describe() == f"reparameterization(decode={place}decode, encode={place}encode)"
    assert Reparameterization(f"{place}decode", f"{place}encode") == GENERATOR
    assert repr(GENERATOR) == f"Reparameterization(decode='{place}decode', encode='{place}encode')"
    with pytest.raises(UsageError, match="cannot be stored"):
        Reparameterization(lambda z: z, encode).describe()


def test_the_tanh_box_reaches_every_input_and_nothing_outside() -> None:
    box = TanhBox(-0.25, 2.0)
    x = torch.linspace(-0.25, 2.0, 101).view(1, -1)
    z = box.start(x)
    assert torch.isfinite(z).all()
    assert torch.allclose(box.point(z), x, atol=2e-6)
    far = box.point(torch.tensor([[-1e9, -40.0, 40.0, 1e9]]))
    assert far.tolist() == [[-0.25, -0.25, 2.0, 2.0]]
    assert float(TanhBox(shrink=0.9).start(torch.tensor([[1.0]]))) == pytest.approx(1.4722195)


def test_the_tanh_box_has_the_derivative_of_carlini_and_wagner() -> None:
    """dx/dz = (h - l) (1 - tanh^2 z) / 2."""
    known = half_space([3.0, 4.0], bounds=(-1.0, 3.0))
    box = TanhBox(-1.0, 3.0)
    z = torch.tensor([[0.3, -1.2]])
    found = box.estimate(
        Autograd(),
        known.target,
        margin,
        z,
        torch.tensor([1]),
        Untargeted(),
        draws=Draws(0, Role.SEARCH, (0,)),
    )
    expected = torch.tensor([[-1.2, -1.6]]) * 4 * (1 - z.tanh() ** 2) / 2
    assert torch.allclose(found.gradient, expected)


@pytest.mark.parametrize(
    "make", [lambda: TanhBox(1.0, 1.0), lambda: TanhBox(0.0, float("inf")), lambda: TanhBox(shrink=1.0)]
)
def test_a_box_that_means_nothing_is_refused(make) -> None:
    with pytest.raises(UsageError):
        make()
