"""APGD: the contract, and a plain reading of Algorithm 1 beside it."""

import math

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.apgd import APGD, _checkpoints
from calipers.attacks.base import Attack
from calipers.attacks.view import Trace
from calipers.errors import UsageError
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space
from calipers.threat.threat_model import Norm, ThreatModel


class TestAPGD(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return APGD(steps=20)


class TestAPGDByTargets(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return APGD(steps=15, targets=2, loss="margin")


class _Waves(nn.Module):
    """Smooth, bent scores of 4 classes with a large lead, so that no input falls and a whole run can be followed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weights = nn.Parameter(torch.empty(4, 6).normal_(generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.double().flatten(1)
        waves = torch.sin(3 * flat @ self.weights.double().T) + 0.3 * flat @ self.weights.double().T
        return waves + 20 * torch.tensor([1.0, 0, 0, 0])


def _margin(net: nn.Module, point: Tensor) -> tuple[float, Tensor]:
    leaf = point.clone().requires_grad_(True)
    scores = net(leaf[None])[0]
    value = scores[1:].max() - scores[0]
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient


def _plain_apgd(net: nn.Module, x: Tensor, eps: float, steps: int, norm: Norm) -> list[float]:
    """Algorithm 1 of arXiv:2003.01690 for one input, from the clean input; the values at its points."""

    def inside(point: Tensor) -> Tensor:
        delta = point - x
        if norm is Norm.LINF:
            return (x + delta.clamp(-eps, eps)).clamp(0, 1)
        return (x + delta * min(1.0, eps / max(float(delta.norm()), 1e-30))).clamp(0, 1)

    def step(point: Tensor, gradient: Tensor, size: float) -> Tensor:
        if norm is Norm.LINF:
            return inside(point + size * gradient.sign())
        stuck = ((point >= 1) & (gradient > 0)) | ((point <= 0) & (gradient < 0))
        gradient = gradient.masked_fill(stuck, 0)
        return inside(point + size * gradient / gradient.norm())

    places, share, before = [], 0.22, 0.0
    while share < 1:
        places.append(math.ceil(round(share * steps, 9)))
        share, before = share + max(share - before - 0.03, 0.06), share
    size, old, here = 2 * eps, x, x
    value, gradient = _margin(net, here)
    values, best, most, slope = [value], here, value, gradient
    moved = step(here, gradient, size)
    last_place, last_most, halved, rises = 0, -math.inf, True, 0
    for number in range(1, steps):
        old, here = here, moved
        fresh, gradient = _margin(net, here)
        rises += fresh > value
        value = fresh
        values.append(value)
        if value > most:
            best, most, slope = here, value, gradient
        if number in places:
            seldom = rises < 0.75 * (number - last_place)
            idle = not halved and most == last_most
            halved = seldom or idle
            if halved:
                size, here, value, gradient = size / 2, best, most, slope
            last_place, last_most, rises = number, most, 0
        far = step(here, gradient, size)
        moved = inside(here + 0.75 * (far - here) + 0.25 * (here - old))
    return values


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
def test_every_step_is_that_of_the_paper(norm: Norm) -> None:
    net = _Waves().eval()
    target = Target(net, num_classes=4, input_shape=(6,))
    x = torch.empty(3, 6).uniform_(generator=torch.Generator().manual_seed(1))
    y = torch.zeros(3, dtype=torch.int64)
    trace = Trace()
    eps = 0.3 if norm is Norm.LINF else 0.6
    found = APGD(steps=40, loss="margin", random_start=False, radii=(1.0,))(
        target, x, y, ThreatModel(norm, eps), seed=0, trace=trace
    )
    assert not bool(found.success.any())
    seen = torch.stack(trace.value)
    for row in range(3):
        plain = _plain_apgd(net, x[row].double(), eps, 40, norm)
        assert torch.allclose(seen[:, row].double(), torch.tensor(plain, dtype=torch.float64), atol=2e-3)


def test_the_checkpoints_of_100_steps_are_those_of_the_paper() -> None:
    assert list(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sum(_checkpoints(100).values()) == 99
    for steps in range(1, 60):
        found = _checkpoints(steps)
        assert all(span >= 1 for span in found.values())
        assert list(found) == sorted(found)


def test_targets_are_the_most_likely_other_classes_each_in_turn() -> None:
    target = Target(_Waves().eval(), num_classes=4, input_shape=(6,))
    x = torch.full((2, 6), 0.5)
    trace = Trace()
    found = APGD(steps=5, targets=9, loss="margin", radii=(1.0,))(
        target, x, torch.tensor([0, 0]), ThreatModel(Norm.LINF, 0.1), seed=0, trace=trace
    )
    assert found.backwards.tolist() == [15, 15]
    assert found.forwards.tolist() == [1 + 3 * 6] * 2
    starts = [float(trace.value[at][0]) for at in (0, 5, 10)]
    assert starts == sorted(starts, reverse=True)


def test_a_class_that_is_reached_on_the_way_to_another_counts() -> None:
    """Aimed at the most likely class of a network of 3, any class other than the label is a success."""

    class Crossing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, rest = x[:, :1], torch.zeros_like(x[:, :1])
            return torch.cat([1 - first, first - 0.4, 3 * first - 1 + rest], 1)

    target = Target(Crossing().eval(), num_classes=3, input_shape=(2,))
    found = APGD(steps=10, targets=1, loss="margin", random_start=False, radii=(1.0,))(
        target, torch.tensor([[0.1, 0.5]]), torch.tensor([0]), ThreatModel(Norm.LINF, 0.45), seed=0
    )
    assert found.verdict.prediction.tolist() == [2]
    assert bool(found.success[0])


def test_a_box_does_not_stop_an_l1_search() -> None:
    known = half_space([3.0, 2.0, 1.0, 0.5], -5.2, bounds=(0.0, 1.0))
    # 3 + 1.2 + .5 - 5.2 = -.5: the second coordinate, by .25; then by .05 and the third one by .1
    for x, eps in (([1.0, 0.6, 0.5, 0.0], 0.253), ([1.0, 0.95, 0.1, 0.0], 0.165)):
        found = APGD(steps=60)(
            known.target, torch.tensor([x]), torch.tensor([0]), ThreatModel(Norm.L1, eps), seed=0
        )
        assert bool(found.success[0]), f"{x}"


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings in ({"steps": 0}, {"restarts": 0}, {"targets": -1}):
        with pytest.raises(UsageError):
            APGD(**settings)
    known = half_space([1.0, 1.0])
    with pytest.raises(UsageError, match="dlr needs 3 classes and got 2: use margin"):
        APGD(loss="dlr")(
            known.target, torch.ones(1, 2), torch.tensor([1]), ThreatModel(Norm.LINF, 0.1), seed=0
        )


class _DeadZone(nn.Module):
    """Falls where a strong one of 100 coordinates passes .95; where all are below ``dead``, the gradient is 0."""

    def __init__(self, dead: float, weights: list[float]) -> None:
        super().__init__()
        self.dead = dead
        self.weights = nn.Parameter(torch.tensor(weights).repeat(100 // len(weights)))

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x.flatten(1) - self.dead).clamp_min(0) @ self.weights
        need = self.weights.max() * (0.95 - self.dead)
        return torch.stack([need - beyond, torch.zeros_like(beyond)], 1)


@pytest.mark.parametrize(
    ("norm", "dead", "weights"), [(Norm.L2, 0.5, [0.1] * 9 + [4.0]), (Norm.L1, 0.1, [1.0, 2.0, 3.0, 4.0])]
)
def test_larger_balls_lead_out_of_a_flat_region(norm: Norm, dead: float, weights: list[float]) -> None:
    target = Target(_DeadZone(dead, weights).eval(), num_classes=2, input_shape=(100,), bounds=(-1.0, 1.0))
    x, y, threat = torch.zeros(16, 100), torch.zeros(16, dtype=torch.int64), ThreatModel(norm, 0.98)
    alone = APGD(steps=60, restarts=3, loss="margin", radii=(1.0,))(target, x, y, threat, seed=0)
    found = APGD(steps=60, restarts=3, loss="margin")(target, x, y, threat, seed=0)
    assert not bool(alone.success.any())
    assert int(found.success.sum()) >= 6
    assert bool((found.distance[found.success] <= 0.98).all())


def test_what_falls_in_a_larger_ball_alone_has_not_fallen() -> None:
    known = half_space([1.0, 2.0])
    x = torch.tensor([[1.0, 1.0]])  # linf distance 1
    for eps, falls in ((0.3, False), (0.99, False), (1.01, True)):
        found = APGD(steps=20, restarts=2)(
            known.target, x, torch.tensor([1]), ThreatModel(Norm.LINF, eps), seed=0
        )
        assert bool(found.success[0]) == falls
        assert falls or int(found.backwards[0]) == 40, "no search ends early"


class _Plateau(nn.Module):
    """Falls where four coordinates pass .65 by .2 together; where none does, the gradient is 0."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = (x - 0.65).clamp_min(0).flatten(1).sum(1)
        return torch.stack([0.2 - beyond, torch.zeros_like(beyond)], 1)


def test_a_larger_ball_is_neither_traced_nor_a_gradient_of_the_ball() -> None:
    trace, net = Trace(), _Plateau().eval()
    target = Target(net, num_classes=2, input_shape=(4,))
    x, y = torch.full((2, 4), 0.5), torch.zeros(2, dtype=torch.int64)
    threat = ThreatModel(Norm.LINF, 0.1)
    found = APGD(steps=20)(target, x, y, threat, seed=0, trace=trace)
    assert [rows.tolist() for rows in trace.rows] == [[0, 1]] * 8, "20 steps, of which 6 in each larger ball"
    assert not any(bool(reached.any()) for reached in trace.reached)
    assert found.backwards.tolist() == [20, 20]
    assert found.reason == ("no gradient",) * 2
    wide = APGD(steps=20)(target, x, y, ThreatModel(Norm.LINF, 0.3), seed=0)
    assert bool(wide.success.any())


def test_radii_that_do_not_fall_to_1_are_refused() -> None:
    for wrong in ((), (2.0,), (1.0, 2.0), (2.0, 2.0, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="radii is"):
            APGD(radii=wrong)
