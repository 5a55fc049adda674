"""A size beyond the box of inputs is warned of in one line, and the whole box itself is not."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import calipers
from calipers.attacks.box import span_of
from calipers.attacks.combine import worst_of
from calipers.attacks.ddn import DDN
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.errors import BeyondTheBox
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

SPANS = [(Norm.LINF, 1.0), (Norm.L2, 8.0), (Norm.L1, 64.0), (Norm.L0, 64.0)]


def _target(bounds: tuple[float, float] = (0.0, 1.0)) -> Target:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        net[1].weight.normal_(generator=torch.Generator().manual_seed(0))
    return Target(net, num_classes=3, input_shape=(1, 8, 8), bounds=bounds)


def _inputs(target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(1)) * target.bounds[1]
    return x, target.predict(x)


def _warned(act: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        act()
    return [str(each.message) for each in found if each.category is BeyondTheBox]


@pytest.mark.parametrize(("norm", "size"), SPANS)
def test_the_whole_box_fits_into_a_ball_of_that_size(norm: Norm, size: float) -> None:
    assert span_of(_target(), norm) == size
    assert span_of(_target((-1.0, 3.0)), norm) == (size if norm is Norm.L0 else 4 * size)


@pytest.mark.parametrize(("norm", "size"), SPANS[:3])
def test_an_attack_beyond_the_box_warns_in_one_line_and_goes_on(norm: Norm, size: float) -> None:
    target = _target()
    x, y = _inputs(target)
    found: list[Any] = []

    def attack(eps: float | None) -> Callable[[], None]:
        return lambda: found.append(PGD(steps=2)(target, x, y, ThreatModel(norm, eps), seed=0))

    (told,) = _warned(attack(1.01 * size))
    assert told.startswith(
        f"eps is {1.01 * size:g} and {norm} {size:g} holds the whole box of inputs, 0 to 1: "
    )
    assert "\n" not in told
    assert len(found) == 1 and bool(found[0].success.any())
    assert _warned(attack(size)) == _warned(attack(0.5 * size)) == []


def test_sizes_are_in_units_of_the_inputs() -> None:
    bytes_ = _target((0.0, 255.0))
    x, y = _inputs(bytes_)
    assert _warned(lambda: FGSM()(bytes_, x, y, ThreatModel(Norm.LINF, 8.0), seed=0)) == []
    assert len(_warned(lambda: FGSM()(bytes_, x, y, ThreatModel(Norm.LINF, 256.0), seed=0))) == 1


def test_one_line_of_the_users_is_warned_of_once_however_much_it_starts() -> None:
    target = _target()
    x, y = _inputs(target)
    threat = ThreatModel(Norm.LINF, 3.0)
    members = worst_of(FGSM(), PGD(steps=2))

    def diagnosed() -> None:
        found = calipers.diagnose(target, x, y, threat, budget=2.0)
        calipers.prescribe(target, x, y, threat, found, budget=2.0)

    assert len(_warned(diagnosed)) == 2  # one for each of its lines
    assert len(_warned(lambda: members(target, x, y, threat, seed=0))) == 1


def test_a_search_for_the_least_size_and_an_honest_diagnosis_warn_of_nothing() -> None:
    """The diagnosis attacks within the whole box itself, to see whether everything falls there."""
    target = _target()
    x, y = _inputs(target)
    assert _warned(lambda: DDN(steps=3)(target, x, y, ThreatModel(Norm.L2), seed=0)) == []
    assert _warned(lambda: calipers.diagnose(target, x, y, ThreatModel(Norm.LINF, 0.1), budget=2.0)) == []


def test_a_rehearsal_warns_before_a_long_run() -> None:
    assert len(_warned(lambda: PGD().rehearse(_target(), ThreatModel(Norm.L2, 9.0)))) == 1
