"""A smoothed classifier's answer is looked at early: it errs no more often than alpha, and costs little where plain."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import SmoothedTarget, smooth
from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.threat.threat_model import ABSTAIN

ROWS: list[int] = []


class _HalfSpace(nn.Module):
    """Class 1 where the first coordinate is positive; counts the rows it is asked, its copies' among them."""

    def forward(self, x: Tensor) -> Tensor:
        ROWS.append(len(x))
        first = x.flatten(1)[:, :1]
        return torch.cat([-first, first], 1)


def _smoothed(samples: int, **more: float) -> SmoothedTarget:
    target = Target(
        _HalfSpace().eval(), num_classes=2, input_shape=(1, 1, 1), bounds=(-4.0, 4.0), probe=False
    )
    return smooth(target, Gaussian(1.0), samples=samples, **more)  # type: ignore[arg-type]


def _asked(target: SmoothedTarget, x: Tensor, role: Role = Role.JUDGE) -> tuple[np.ndarray, int]:
    ROWS.clear()
    found = target.predict(x, draws=Draws(3, role, tuple(range(len(x)))))
    return found.numpy(), sum(ROWS)


def test_plain_answers_take_a_hundred_draws_and_close_ones_all() -> None:
    target = _smoothed(10_000)
    plain, few = _asked(target, torch.full((5, 1, 1, 1), 3.0))
    close, many = _asked(target, torch.zeros(5, 1, 1, 1))
    assert plain.tolist() == [1] * 5
    assert few == 500
    assert many >= 40_000
    assert set(close.tolist()) <= {ABSTAIN, 0, 1}


def test_a_search_is_answered_from_fewer_draws_than_a_judge() -> None:
    target = _smoothed(10_000, search_samples=500)
    _, judged = _asked(target, torch.zeros(2, 1, 1, 1))
    _, searched = _asked(target, torch.zeros(2, 1, 1, 1), Role.SEARCH)
    assert searched == 1000
    assert judged == 20_000


@pytest.mark.statistical
def test_wrong_answers_are_no_more_frequent_than_alpha() -> None:
    # g is the sign of the first coordinate; just above 0 class 0 wins each draw with probability .48.
    alpha, inputs = 0.1, 600
    target = _smoothed(1000, alpha=alpha)
    x = torch.full((inputs, 1, 1, 1), 0.05)
    found, _ = _asked(target, x)
    wrong = int((found == 0).sum())
    # alpha is spent on both sides; at .48 wrong answers are far rarer
    assert wrong <= alpha * inputs
    even, _ = _asked(target, torch.zeros(inputs, 1, 1, 1))
    answered = int((even != ABSTAIN).sum())
    assert answered <= alpha * inputs + 3 * np.sqrt(alpha * inputs)
    assert answered > 0
