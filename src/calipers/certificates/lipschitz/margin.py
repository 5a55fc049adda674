r"""Theorem 0: from a margin and a Lipschitz constant to a radius, rounded down; and its sharper forms.

Throughout, :math:`f` maps inputs to scores, :math:`A` is the class of its largest score, and for every other class
:math:`j` a number :math:`D_{Aj}` bounds the Lipschitz constant of the scalar :math:`f_A - f_j`, from the norm of the
inputs to the absolute value. Then :math:`f_A - f_j` stays above 0 in the open ball of radius
:math:`(f_A(x) - f_j(x)) / D_{Aj}`, and the prediction is constant in the smallest of these balls: the smallest over
**all** :math:`j`, since the runner-up need not be the nearest. The forms of the theorem differ in how they come by
:math:`D`; any of them may serve for any pair, and the smallest :math:`D_{Aj}` proves most.

Reference:
    Theorem 0 with its proof stands in docs/theory/lipschitz; Tsuzuku, Sato and Sugiyama 2018 (arXiv:1802.04034,
    Proposition 1) for the factor of the square root of 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calipers.errors import UsageError
from calipers.threat.threat_model import ABSTAIN, Norm

__all__ = [
    "RULES",
    "Margins",
    "certify_margins",
    "dual_norm_of_difference",
    "softmax_differences",
    "theorem_0",
]

RULES: Final[dict[str, str]] = {
    "per-coordinate": "Theorem 0",
    "vector": "Theorem 0, vector-valued",
    "last-layer": "Theorem 0, rows of the last layer",
    "composed": "Theorem 0, composed bound of the difference",
    "softmax": "Theorem 0 on softmax outputs",
}
"""The forms of the theorem: how a constant of each difference of two scores was come by."""

_SLACK: Final = 1e-9
"""Share of the largest score of an input that is taken off its margins for the rounding of a float64 forward."""


class Margins(NamedTuple):
    """What the margins of a batch prove.

    Args:
        prediction: the class of each input; ABSTAIN where no radius above 0 is proved, scores tie, or are not finite.
        radius: the radius, rounded down, in input units; 0 where the class abstains.
        rival: the other class whose margin gave the radius.
        margin: score of the class minus that of the rival, as computed.
        constant: the bound on the Lipschitz constant of that difference.
        rule: the form of the theorem that gave it, a key of :data:`RULES`.
    """

    prediction: NDArray[np.int64]
    radius: NDArray[np.float64]
    rival: NDArray[np.int64]
    margin: NDArray[np.float64]
    constant: NDArray[np.float64]
    rule: tuple[str, ...]


def theorem_0(p_a: float, p_b: float, constant: float) -> float:
    r"""Certify a radius from the two largest scores: :math:`\varepsilon = (P_A - P_B) / (2L)`, rounded down.

    Args:
        p_a: the largest score.
        p_b: the largest of the others.
        constant: a number L such that every score is L-Lipschitz.

    Returns:
        The radius, in the units and the norm of the inputs; 0 where the first does not exceed the second.

    Raises:
        UsageError: if the constant is negative, or not a number.

    Example:
        >>> 0.1999 < theorem_0(0.7, 0.3, 1.0) <= 0.2
        True
    """
    if not constant >= 0:
        raise UsageError(f"the Lipschitz constant is {constant}: it is a number of at least 0")
    if not p_a > p_b:
        return 0.0
    return math.inf if constant == 0 else math.nextafter((p_a - p_b) / (2 * constant) * (1 - 1e-15), 0.0)


def dual_norm_of_difference(norm: Norm) -> float:
    r"""Give the dual norm of :math:`e_A - e_B`: what a vector-valued constant is multiplied by.

    Args:
        norm: the norm of inputs and outputs.

    Returns:
        The square root of 2 for l2 (rounded up), 2 for linf, 1 for l1.

    Raises:
        UsageError: for l0, which is no norm.

    Example:
        >>> dual_norm_of_difference(Norm.LINF)
        2.0
    """
    match norm:
        case Norm.L2:
            return math.nextafter(math.sqrt(2), 2)
        case Norm.LINF:
            return 2.0
        case Norm.L1:
            return 1.0
        case Norm.L0:
            raise UsageError("norm is l0: Lipschitz constants are taken in l1, l2 or linf")


def softmax_differences(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Give constants of :math:`P_A - P_B` for the softmax of scores, from those of the scores.

    The Jacobian :math:`\mathrm{diag}(p) - p p^T` is symmetric, and the absolute values of a row sum to
    :math:`2 p_i (1 - p_i) \le 1/2`: its norm is ½ at most in l1, l2 and linf.

    Args:
        vector: constants of the differences by the vector-valued form, (classes, classes).

    Returns:
        The constants of the differences of softmax scores, (classes, classes).

    Reference:
        docs/theory/lipschitz; Gao and Pavel 2017, arXiv:1704.00805, Proposition 4, has the constant 1.
    """
    return vector / 2


def certify_margins(
    scores: ArrayLike, differences: Mapping[str, NDArray[np.float64]], *, slack: float = _SLACK
) -> Margins:
    """Certify inputs from their scores.

    Args:
        scores: scores of shape (batch, classes), float64.
        differences: for each form of the theorem, bounds on the constants of all differences of two scores, (classes,
            classes); entries may be infinite.
        slack: share of an input's largest absolute score that is taken off its margins.

    Returns:
        One certificate an input, by the smallest constant of each difference.

    Raises:
        UsageError: if there is no form, or the shapes do not fit.
    """
    table = np.asarray(scores, dtype=np.float64)
    if not differences:
        raise UsageError("no Lipschitz constant is given: give at least one form of the theorem")
    classes = table.shape[1]
    names = tuple(differences)
    stacked = np.stack([np.asarray(differences[name], dtype=np.float64) for name in names])
    if stacked.shape[1:] != (classes, classes) or not (stacked >= 0).all():
        raise UsageError(
            f"constants of shape {stacked.shape[1:]} for {classes} classes: give (classes, classes), each at least 0"
        )
    chosen, best = stacked.argmin(0), stacked.min(0)
    rows = np.arange(len(table))
    finite = np.logical_and.reduce(np.isfinite(table), axis=1)
    safe = np.where(finite[:, None], table, 0.0)
    first = safe.argmax(1)
    margin = safe[rows, first][:, None] - safe
    constant = best[first]
    usable = margin - slack * np.abs(safe).max(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(usable > 0, usable / constant, 0.0)
    reach[rows, first] = np.inf
    rival = reach.argmin(1)
    radius = np.nextafter(reach[rows, rival] * (1 - 1e-15), 0.0)
    sure = np.logical_and(finite, radius > 0)
    return Margins(
        prediction=np.where(sure, first, ABSTAIN).astype(np.int64),
        radius=np.where(sure, radius, 0.0),
        rival=rival.astype(np.int64),
        margin=margin[rows, rival],
        constant=constant[rows, rival],
        rule=tuple(names[index] for index in chosen[first, rival]),
    )
