"""LipSDP: the best bound that slopes in [0, 1] allow with one multiplier a neuron, through a convex solver."""

from __future__ import annotations

import importlib
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.certificates.lipschitz.composed import (
    checked_weights,
    eclipse_fast,
    layerwise_product,
    normalized,
)
from calipers.certificates.lipschitz.loewner import (
    SLACK,
    TINY,
    Matrix,
    bounded_congruence,
    proves_positive,
    raise_diagonal,
    rounding,
    scaled_up,
    up,
)
from calipers.errors import MissingExtra, UsageError

__all__ = ["Solver", "lipsdp_layer", "lipsdp_neuron"]

Solver = Literal["auto", "CLARABEL", "SCS"]
"""Clarabel (interior points) has more digits, SCS (splitting) takes larger networks; auto chooses by the size."""

_LARGEST = {"CLARABEL": 100, "SCS": 300}  # neurons; up to 40 seconds on one core
_AUTO = 60  # Clarabel takes about two seconds there
_OPTIONS: dict[str, dict[str, float]] = {
    "CLARABEL": {},
    "SCS": {"eps_abs": 1e-6, "eps_rel": 1e-6, "max_iters": 20_000},
}
_FLOORS = (1e-9, 1e-7, 1e-5)  # of the largest multiplier: a multiplier of 0 leaves nothing to factor
_FACTORS = (1.0, 1.0 + 1e-9, 1.0 + 1e-7, 1.0 + 1e-6, 1.0 + 1e-5, 1.0 + 1e-4, 1.0 + 1e-3, 1.01, 1.1)
_SLACKS = (1e-12, 1e-11, 1e-10, 1e-9, 1e-8)


@overload
def lipsdp_neuron(weights: Sequence[ArrayLike], *, rows: None = None, solver: Solver = "auto") -> float: ...
@overload
def lipsdp_neuron(
    weights: Sequence[ArrayLike], *, rows: ArrayLike, solver: Solver = "auto"
) -> NDArray[np.float64]: ...
def lipsdp_neuron(
    weights: Sequence[ArrayLike], *, rows: ArrayLike | None = None, solver: Solver = "auto"
) -> float | NDArray[np.float64]:
    r"""Bound a small network with elementwise activations of **slope in [0, 1]**, one multiplier a neuron.

    The least :math:`\rho` for which some diagonal :math:`T_i \ge 0` make the quadratic form

    .. math:: \rho \|x_0\|^2 - \|W_l x_{l-1}\|^2 - 2 \sum_i x_i^T T_i (W_i x_{i-1} - x_i)

    non-negative gives :math:`L = \sqrt\rho`: the sum is non-negative for the differences of two runs of the network.

    Nothing that the solver claims is believed. Only its multipliers are kept, cut off at 0, raised slightly where that
    helps; then the least :math:`\rho` *for them* is found as an eigenvalue of the Schur complement, rounded up, and the
    form is proved positive definite by Cholesky's method with a margin for every rounding. The result is never above
    that of :func:`~calipers.certificates.lipschitz.composed.eclipse_fast`, which is returned where it is smaller.

    Args:
        weights: the matrix of each layer, (outputs, inputs), the first layer first. Biases do not matter.
        rows: None for the constant of the network; or one row or many, (rows, outputs), for those of the scalars ``r .
            f``, such as a difference of two logits. Each row is a problem of its own.
        solver: ``CLARABEL``, ``SCS``, or ``auto``: Clarabel for up to 60 neurons.

    Returns:
        An upper bound on the l2 Lipschitz constant, rounded up; one a row where rows are given.

    Raises:
        UsageError: if the weights do not fit, or there are more neurons than the solver can take in a minute.
        MissingExtra: if cvxpy is not installed.

    Reference:
        Fazlyab, Robey, Hassani, Morari and Pappas 2019 (arXiv:1906.04893), Theorem 2, with the diagonal multipliers of
        LipSDP-Neuron. Differs from the paper: slopes are bounded by 0 and 1 alone, wide inputs are replaced by the
        triangular factor of the first matrix before the solver sees them, and LipSDP-Network is not offered, since
        its multiplier has been disproved (Pauli et al. 2021, arXiv:2005.02929).
    """
    return _bounds(weights, rows, solver, shared=False)


@overload
def lipsdp_layer(weights: Sequence[ArrayLike], *, rows: None = None, solver: Solver = "auto") -> float: ...
@overload
def lipsdp_layer(
    weights: Sequence[ArrayLike], *, rows: ArrayLike, solver: Solver = "auto"
) -> NDArray[np.float64]: ...
def lipsdp_layer(
    weights: Sequence[ArrayLike], *, rows: ArrayLike | None = None, solver: Solver = "auto"
) -> float | NDArray[np.float64]:
    """Bound a small network as :func:`lipsdp_neuron` does, with one multiplier a layer: looser.

    Args:
        weights: the matrix of each layer, (outputs, inputs), the first layer first.
        rows: None for the constant of the network; or rows (rows, outputs), for those of the scalars ``r . f``.
        solver: ``CLARABEL``, ``SCS``, or ``auto``: Clarabel for up to 60 neurons.

    Returns:
        An upper bound on the l2 Lipschitz constant, rounded up; one a row where rows are given.

    Raises:
        UsageError: if the weights do not fit, or there are more neurons than the solver can take in a minute.
        MissingExtra: if cvxpy is not installed.

    Reference:
        Fazlyab et al. 2019 (arXiv:1906.04893), LipSDP-Layer.
    """
    return _bounds(weights, rows, solver, shared=True)


def _bounds(
    weights: Sequence[ArrayLike], rows: ArrayLike | None, solver: Solver, *, shared: bool
) -> float | NDArray[np.float64]:
    """Bound the network, or each row of its outputs.

    Returns:
        The bound or the bounds.

    Raises:
        UsageError: if the rows do not fit the outputs.
    """
    matrices = checked_weights(weights)
    if rows is None:
        return _bound(matrices, solver, shared=shared)
    vectors = np.asarray(rows, dtype=np.float64)
    outputs = matrices[-1].shape[0]
    if vectors.ndim == 0 or vectors.shape[-1] != outputs or not np.isfinite(vectors).all():
        raise UsageError(
            f"rows have shape {vectors.shape}: give finite rows of {outputs} numbers, one an output"
        )
    body = layerwise_product(matrices[:-1]) if len(matrices) > 1 else 1.0
    found = []
    for vector in vectors.reshape(-1, outputs):
        merged = vector[None] @ matrices[-1]
        # The merged row is rounded; what it lacks has at most this norm, and the body in front of it is Lipschitz.
        error = SLACK * rounding(outputs + 1) * float(np.linalg.norm(np.abs(vector) @ np.abs(matrices[-1])))
        value = _bound([*matrices[:-1], merged], solver, shared=shared)
        found.append(up(value + SLACK * error * body))
    return np.array(found).reshape(vectors.shape[:-1])


def _bound(matrices: list[Matrix], solver: Solver, *, shared: bool) -> float:
    """Solve for one network.

    Returns:
        The bound.
    """
    closed = eclipse_fast(matrices)
    if closed.value == 0.0 or len(matrices) == 1:
        return closed.value
    # The solver works on layers of norm 1; the proof, on layers divided by powers of two, which is exact.
    scaled, exponents = zip(*(normalized(matrix) for matrix in matrices), strict=True)
    norms = [float(np.linalg.norm(matrix, 2)) for matrix in scaled]
    unit = [matrix / norm for matrix, norm in zip(scaled, norms, strict=True)]
    found = _solve(unit, _choose(unit, solver), shared=shared)
    behind = [math.prod(norms[i + 1 :]) for i in range(len(found))]
    multipliers = [m * factor**2 for m, factor in zip(found, behind, strict=True)]
    square = _least_square(list(scaled), multipliers)
    return min(scaled_up(up(math.sqrt(square)), sum(exponents)), closed.value)


def _choose(matrices: list[Matrix], solver: Solver) -> Literal["CLARABEL", "SCS"]:
    """Choose the solver, or refuse.

    Returns:
        The name of the solver.

    Raises:
        UsageError: if the name is unknown, or the problem would take the solver minutes.
    """
    neurons = min(matrices[0].shape) + sum(matrix.shape[0] for matrix in matrices[:-1])
    name = ("CLARABEL" if neurons <= _AUTO else "SCS") if solver == "auto" else solver
    if name not in _LARGEST:
        raise UsageError(f"solver is {solver!r}: write auto, CLARABEL or SCS")
    if neurons > _LARGEST[name]:
        raise UsageError(
            f"the network has {neurons} neurons, and LipSDP with {name} takes minutes beyond {_LARGEST[name]}: "
            "use the method eclipse" + (", or solver SCS" if neurons <= _LARGEST["SCS"] else "")
        )
    return name


def _solve(matrices: list[Matrix], solver: Literal["CLARABEL", "SCS"], *, shared: bool) -> list[Matrix]:
    """Ask the solver for multipliers.

    Returns:
        Those of each hidden layer, as they are; nothing else that it found.

    Raises:
        MissingExtra: if cvxpy is not installed.
        UsageError: if the solver gives none.
    """
    try:
        cvxpy: Any = importlib.import_module("cvxpy")  # by name: its types do not know its own functions
    except ImportError:
        raise MissingExtra("cvxpy", extra="lipsdp") from None
    first = matrices[0]
    if (
        first.shape[1] > first.shape[0]
    ):  # W = R^T Q^T with orthonormal columns in Q: the constant is that of R^T
        first = np.linalg.qr(first.T)[1].T
    chain = [first, *matrices[1:-1]]
    rho = cvxpy.Variable()
    if shared:
        multipliers = [cvxpy.Variable(nonneg=True) * np.ones(len(matrix)) for matrix in chain]
    else:
        multipliers = [cvxpy.Variable(len(matrix), nonneg=True) for matrix in chain]
    widths = [first.shape[1], *(len(matrix) for matrix in chain)]
    form = [[np.zeros((m, n)) for n in widths] for m in widths]
    form[0][0] = rho * np.eye(widths[0])
    for i, (matrix, multiplier) in enumerate(zip(chain, multipliers, strict=True), 1):
        form[i][i] = 2 * cvxpy.diag(multiplier)
        form[i][i - 1] = -(cvxpy.diag(multiplier) @ matrix)
        form[i - 1][i] = form[i][i - 1].T
    form[-1][-1] = form[-1][-1] - matrices[-1].T @ matrices[-1]
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [cvxpy.bmat(form) >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an inaccurate solution is repaired below
        try:
            problem.solve(solver=solver, **_OPTIONS[solver])
        except cvxpy.error.SolverError as error:
            raise UsageError(
                f"solver {solver} failed ({error}): try the other one of CLARABEL and SCS"
            ) from None
    values = [multiplier.value for multiplier in multipliers]
    if any(value is None or not np.isfinite(value).all() for value in values):
        raise UsageError(
            f"solver {solver} ended as {problem.status!r}: try the other one of CLARABEL and SCS"
        )
    return [np.asarray(value, dtype=np.float64) for value in values]


def _least_square(matrices: list[Matrix], found: list[Matrix]) -> float:
    """Find the least square of a constant that multipliers prove, and prove it.

    Returns:
        The square, rounded up; infinite where the multipliers prove nothing.
    """
    inner = bounded_congruence(matrices[0], None)
    outer = bounded_congruence(matrices[-1].T, None)
    candidates = []  # multipliers of at least 0, whatever the solver says
    for floor, factor in itertools.product(_FLOORS, _FACTORS):
        multipliers = [np.maximum(m, floor * max(float(m.max()), 1e-30)) * factor for m in found]
        candidates.append((_estimate(matrices, multipliers, inner, outer), multipliers))
    for estimate, multipliers in sorted(candidates, key=lambda candidate: candidate[0]):
        for slack in _SLACKS if math.isfinite(estimate) else ():
            square = estimate * (1.0 + slack)
            if _proves(matrices, multipliers, inner, outer, square):
                return square
    return math.inf


def _blocks(matrices: list[Matrix], multipliers: list[Matrix], outer: Matrix) -> tuple[Matrix, Matrix]:
    """Write the form on the hidden layers, without what the inputs take away.

    Returns:
        The matrix, symmetric; and the sums of the magnitudes that went into each entry, which bound its rounding.
    """
    ends = np.cumsum([0, *(len(m) for m in multipliers)])
    form = np.diag(2.0 * np.concatenate(multipliers))
    for i in range(1, len(multipliers)):
        here, before = slice(ends[i], ends[i + 1]), slice(ends[i - 1], ends[i])
        form[here, before] = -multipliers[i][:, None] * matrices[i]
        form[before, here] = form[here, before].T
    magnitude = np.abs(form)
    last = slice(ends[-2], ends[-1])
    form[last, last] -= outer
    magnitude[last, last] += np.abs(outer)
    return form, magnitude


def _estimate(matrices: list[Matrix], multipliers: list[Matrix], inner: Matrix, outer: Matrix) -> float:
    """Compute the largest eigenvalue of the Schur complement, without care for rounding.

    Returns:
        It; infinite where the form on the hidden layers is not positive definite.
    """
    form, _ = _blocks(matrices, multipliers, outer)
    scale = 1.0 / np.sqrt(2.0 * np.concatenate(multipliers))
    try:
        factor = np.linalg.cholesky(form * scale[:, None] * scale[None, :])
        root = np.linalg.cholesky(inner)
    except np.linalg.LinAlgError:
        return math.inf
    count = len(inner)
    right = np.zeros((len(form), count))
    right[:count] = (scale[:count] * multipliers[0])[:, None] * root
    return float(np.linalg.norm(np.linalg.solve(factor, right), 2)) ** 2


def _proves(
    matrices: list[Matrix], multipliers: list[Matrix], inner: Matrix, outer: Matrix, square: float
) -> bool:
    """Try to prove that the form is positive definite for this square of the constant.

    With the inputs eliminated it is ``Q - T_1 W_1 W_1^T T_1 / rho`` on the hidden layers. It is scaled by powers of two
    to a diagonal near 1, which is exact, and lowered by the rounding of its entries.

    Returns:
        True if it is proved.
    """
    form, magnitude = _blocks(matrices, multipliers, outer)
    first = slice(0, len(inner))
    taken = multipliers[0][:, None] * inner * multipliers[0][None, :] / square
    form[first, first] -= taken
    magnitude[first, first] += np.abs(taken)
    form = 0.5 * (form + form.T)
    exponents = np.frexp(np.sqrt(2.0 * np.concatenate(multipliers)))[1]
    shift = -exponents[:, None] - exponents[None, :]
    form, magnitude = np.ldexp(form, shift), np.ldexp(magnitude, shift)
    error = SLACK**2 * rounding(12) * float(np.linalg.norm(magnitude)) + TINY
    return proves_positive(-raise_diagonal(-form, error))
