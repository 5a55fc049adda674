r"""Differences: constants of the scalars :math:`f_i - f_j` of a network, by each form of Theorem 0.

*vector*: the constant of :math:`f` times the dual norm of :math:`e_i - e_j`. *per-coordinate*: twice the
largest constant of a coordinate. *last-layer*: the constant of the body times the dual norm of :math:`w_i -
w_j`, the rows of a linear last layer. *composed*: the matrices that end the network, bounded together with
:math:`(e_i - e_j)^T` in front of the last one, times the constant of the features before them.

Reference:
    docs/theory/lipschitz; Tsuzuku, Sato and Sugiyama 2018 (arXiv:1802.04034) for the last layer; Xu and
    Sivaranjani 2024 (arXiv:2404.04375) and Fazlyab et al. 2019 (arXiv:1906.04893) for the bounds of matrices
    together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from calipers.certificates.lipschitz.composed import eclipse_fast
from calipers.certificates.lipschitz.composition import Base, Composition, Flow
from calipers.certificates.lipschitz.margin import dual_norm_of_difference
from calipers.certificates.lipschitz.matrices import power_of_two
from calipers.certificates.lipschitz.operators import Dense, times, up
from calipers.threat.threat_model import Norm

__all__ = ["Tail", "last_layer", "per_coordinate", "vector"]

Array = NDArray[np.float64]


@final
@dataclass(frozen=True, eq=False)
class Tail:
    """The matrices that end a network, with only activations of slope in [0, 1] between them.

    Args:
        layers: the matrices, the first one first; none where the network ends in something else.
        base: the features to which the first one is applied.
    """

    layers: tuple[Dense, ...]
    base: Base

    @staticmethod
    def of(flow: Flow) -> Tail:
        """Find the tail of a network.

        Anything else that stands between two matrices ends it: the bounds of :mod:`composed` and
        :mod:`semidefinite` hold for elementwise functions whose slopes lie in [0, 1], and not for absolute
        values, sorting, GELU, SiLU or maxima.

        Args:
            flow: the output of the network.

        Returns:
            The tail.
        """
        layers: list[Dense] = []
        base = flow.base
        while isinstance(flow.operator, Dense) and flow.operator.whole:
            layers.insert(0, flow.operator)
            base = flow.base
            if base.slopes is None or not (base.slopes[0] >= 0.0 and base.slopes[1] <= 1.0):
                break
            flow = base.inputs[0]
        return Tail(tuple(layers), base)

    @property
    def weights(self) -> list[Array]:
        """The matrices alone."""
        return [layer.matrix for layer in self.layers]

    @property
    def operations(self) -> float:
        """About how many multiplications a joint bound takes."""
        return float(sum(len(weight) ** 2 * (weight.shape[1] + 4 * len(weight)) for weight in self.weights))

    def eclipse(self) -> tuple[float, Array]:
        """Bound the tail by ECLipsE-Fast.

        Returns:
            An upper bound on the l2 constant of the network, and one for each difference of outputs, (K, K).
        """
        found = eclipse_fast(self.weights)
        return self._whole(found.value), self._pairs(found.differences())

    def semidefinite(self, *, pairs: bool) -> tuple[float, Array | None]:
        """Bound the tail by LipSDP-Neuron.

        Args:
            pairs: whether to solve a problem for each difference of outputs too.

        Returns:
            An upper bound on the l2 constant of the network, and one for each difference of outputs.
        """
        from calipers.certificates.lipschitz.semidefinite import lipsdp_neuron

        value = lipsdp_neuron(self.weights)
        if not pairs:
            return self._whole(value), None
        count = len(self.layers[-1].matrix)
        first, second = np.triu_indices(count, 1)
        rows = np.zeros((len(first), count))
        rows[np.arange(len(first)), first], rows[np.arange(len(first)), second] = 1.0, -1.0
        constants = np.zeros((count, count))
        constants[first, second] = constants[second, first] = lipsdp_neuron(self.weights, rows=rows)
        return self._whole(value), self._pairs(constants)

    def _lost(self) -> float:
        """Bound what the rounding of merged matrices may add, whatever the slopes are in [0, 1].

        With ``n`` the norms and ``s`` the slacks of the matrices, the product of the true matrices with any
        slopes between them differs by at most ``prod(n + s) - prod(n)`` from that of the matrices as stored.

        Returns:
            An upper bound on that difference, before the constant of the base.
        """
        total, extra = 1.0, 0.0
        for layer in self.layers:
            scale = power_of_two(layer.matrix)
            length = float(np.linalg.norm(layer.matrix / scale))
            size = times(up(length, operations=layer.matrix.size + 8), scale)
            extra = up(times(extra, up(size + layer.slack)) + times(total, layer.slack))
            total = times(total, size)
        return extra

    def _whole(self, value: float) -> float:
        return times(up(value + self._lost()), self.base.upper)

    def _pairs(self, values: Array) -> Array:
        lost = up(self._lost() * math.sqrt(2.0))
        found = np.nextafter((values + lost) * self.base.upper * (1.0 + 2.0**-48), np.inf)
        np.fill_diagonal(found, 0.0)
        return found


def vector(upper: float, count: int, norm: Norm) -> Array:
    """Bound each difference by the constant of all outputs together.

    Args:
        upper: an upper bound on the constant of the network, from a norm to the same norm.
        count: the number of outputs.
        norm: the norm.

    Returns:
        The same number for every pair, (K, K); 0 on the diagonal.
    """
    return _constant(up(upper * dual_norm_of_difference(norm)), count)


def per_coordinate(composition: Composition, flow: Flow, upper: float, count: int) -> Array:
    """Bound each difference by twice the largest constant of a coordinate.

    Args:
        composition: where the flow was made.
        flow: the output of the network.
        upper: an upper bound on the constant of the network.
        count: the number of outputs.

    Returns:
        The same number for every pair, (K, K); 0 on the diagonal.
    """
    largest = upper
    operator = flow.operator
    if isinstance(operator, Dense) and operator.whole:
        rows = _dual(operator.matrix, composition.norm) + operator.slack
        largest = min(upper, times(up(float(rows.max())), flow.base.upper))
    return _constant(up(2.0 * largest), count)


def last_layer(composition: Composition, flow: Flow) -> Array | None:
    """Bound each difference by the rows of a linear last layer.

    Args:
        composition: where the flow was made.
        flow: the output of the network.

    Returns:
        The constants, (K, K); None where the network does not end in a linear layer.
    """
    operator = flow.operator
    if not (isinstance(operator, Dense) and operator.whole):
        return None
    matrix = operator.matrix
    count = len(matrix)
    found = np.zeros((count, count))
    for row in range(count):  # a (K, inputs) block at a time
        found[row] = _dual(matrix - matrix[row], composition.norm)
    slack = dual_norm_of_difference(composition.norm) * operator.slack
    found = np.nextafter((found + slack) * flow.base.upper * (1.0 + 2.0**-48), np.inf)
    np.fill_diagonal(found, 0.0)
    return found


def _dual(rows: Array, norm: Norm) -> Array:
    """Take the dual norm of each row, rounded up (the rows may be rounded differences)."""
    size = np.abs(rows)
    match norm:
        case Norm.L1:
            found = size.max(1)
        case Norm.LINF:
            found = size.sum(1)
        case _:
            largest = np.maximum(size.max(1, keepdims=True), 1e-300)
            found = np.sqrt(((size / largest) ** 2).sum(1)) * largest[:, 0]
    raised: Array = np.nextafter(found * (1.0 + (rows.shape[1] + 16) * 2.0**-52), np.inf)
    return raised


def _constant(value: float, count: int) -> Array:
    found = np.full((count, count), value)
    np.fill_diagonal(found, 0.0)
    return found
