"""Floors of linear layers: at most the norm, and near it."""

import numpy as np
import pytest
import torch
from torch import nn

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.floors import operator_floor
from calipers.certificates.lipschitz.operators import Convolved, Dense, Monomial, Operator
from calipers.threat.threat_model import Norm

ORDERS = {Norm.L1: 1, Norm.L2: 2, Norm.LINF: np.inf}


def _cases() -> list[tuple[Operator, np.ndarray]]:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator)
    given = Convolution.of(conv)
    matrix = torch.randn(7, 11, generator=generator, dtype=torch.float64).numpy()
    factors = np.array([0.5, -3.0, 2.0])
    return [
        (Dense(matrix, whole=True), matrix),
        (Dense(matrix[:1], whole=True), matrix[:1]),
        (Dense(np.zeros((4, 4)), whole=True), np.zeros((4, 4))),
        (Convolved(given, (6, 6)), given.matrix((6, 6)).toarray()),
        (Monomial((3,), factors=factors), np.diag(factors)),
    ]


@pytest.mark.parametrize("norm", ORDERS)
@pytest.mark.parametrize("case", range(5))
def test_a_floor_is_below_the_norm_and_within_a_millionth_of_it(case: int, norm: Norm) -> None:
    operator, matrix = _cases()[case]
    exact = float(np.linalg.norm(matrix, ORDERS[norm]))
    found = operator_floor(operator, norm)
    assert found <= exact
    assert found == pytest.approx(exact, rel=1e-5)
