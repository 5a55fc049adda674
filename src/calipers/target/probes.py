"""Probes: is this one fixed function of one input? What a classifier is asked when a target is made of it."""

import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from calipers.errors import SoftmaxOutput, TargetError

__all__ = ["ROW_SLACK", "apart", "probe", "probe_inputs"]

ROW_SLACK: Final[dict[str, float]] = {"fp32": 1e-3, "bf16": 6e-2, "fp16": 1e-2}
"""How far apart, as a share of the spread of the scores, an input may be answered in two places of a batch."""

Answer = Callable[[Tensor], Tensor]


def apart(found: Tensor, expected: Tensor, *, scale: Tensor | None = None) -> float:
    """Measure how far two answers to the same inputs lie apart, as a share of the spread of the scores.

    Only differences between classes count, since a vote depends on nothing else.

    Args:
        found: scores or decisions (rows, columns).
        expected: the same of the other answer (rows, columns).
        scale: the scores whose spread is the unit (rows, columns); those expected if None.

    Returns:
        The largest difference over the largest spread, above what rounding explains; NaN where scores are.
    """
    unit = expected if scale is None else scale

    def centred(scores: Tensor) -> Tensor:
        return scores - scores.mean(1, keepdim=True) if scores.shape[1] > 1 else scores

    rounding = 4e-6 * float(unit.abs().max())
    spread = max(float(centred(unit).abs().max()), 1e-30)
    return max(float((centred(found) - centred(expected)).abs().max()) - rounding, 0.0) / spread


def probe_inputs(input_shape: tuple[int, ...], bounds: tuple[float, float]) -> Tensor:
    """Draw the inputs of a probe: one of a single value, and noise.

    Args:
        input_shape: the shape of one input.
        bounds: the least and the largest value.

    Returns:
        Six inputs (6, *input_shape), float32, always the same.
    """
    low, high = bounds
    noise = torch.rand((6, *input_shape), generator=torch.Generator().manual_seed(0))
    x = low + (high - low) * noise
    x[0] = (low + high) / 2
    return x


def probe(
    answer: Answer, x: Tensor, *, name: str, columns: int | None, stochastic: bool, precision: str
) -> None:
    """Ask a classifier whether it can be measured.

    Args:
        answer: inputs to scores in float32, or to decisions as one column.
        x: six inputs (6, *input_shape).
        name: what messages call the classifier.
        columns: how many scores there should be; None for decisions.
        stochastic: whether it is said to draw randomness of its own.
        precision: its number format.

    Raises:
        TargetError: if it is not one fixed function of one input (or, stochastic, not independent for every row).
    """
    try:
        first = answer(x[:4])
    except (RuntimeError, ValueError, TypeError, IndexError) as problem:
        line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise TargetError(f"{name} cannot take inputs of shape {tuple(x.shape[1:])}: {line}") from problem
    if columns is not None:
        _probe_output(first, name, columns)
    if stochastic:
        _probe_randomness(answer, x[:1], name)
        return
    again = apart(answer(x[:4]), first)
    if not again <= 1e-6:
        raise TargetError(
            f"{name} answers the same inputs differently (by {again:.3g}): declare it stochastic, "
            "Target(..., stochastic=True), or remove its randomness"
        )
    before = apart(answer(torch.cat([x[:2], x[4:]]))[:2], first[:2], scale=first)
    behind = apart(answer(torch.cat([x[4:], x[2:4]]))[2:], first[2:], scale=first)
    mates = max(before, behind)
    if not mates <= ROW_SLACK[precision]:
        raise TargetError(
            f"{name} answers an input differently beside other inputs (by {mates:.3g} of its scores): it uses "
            "statistics of the batch, and no certificate holds for it"
        )


def _probe_randomness(answer: Answer, x: Tensor, name: str) -> None:
    """Compare how answers to one input vary between forwards with how they vary within one."""
    calls, rows = 16, 16
    found = torch.stack([answer(x.expand(rows, *x.shape[1:])) for _ in range(calls)]).double()
    within = found.var(1).mean(0)
    between = rows * found.mean(1).var(0)
    if bool((between > 10 * within + 1e-12 * found.abs().amax((0, 1)) ** 2).any()):
        raise TargetError(
            f"{name} draws its randomness for a whole batch, and votes must be independent: draw it for every row"
        )


def _probe_output(first: Tensor, name: str, columns: int) -> None:
    if first.shape != (4, columns):
        one = first.ndim == 2 and first.shape[1] == 1
        what = "one class" if one else f"outputs of shape {tuple(first.shape)}"
        raise TargetError(f"{name} gives {what} for 4 inputs: (4, {columns}) is needed for its classes")
    if not bool(torch.isfinite(first).all()):
        raise TargetError(
            f"{name} gives NaN or infinite scores for plain inputs: check its weights and scaling"
        )
    total = first.sum(1)
    if bool((first >= 0).all()) and bool(((total - 1).abs() < 2e-2).all()):
        warnings.warn(
            SoftmaxOutput(
                f"{name} seems to give probabilities: votes are not affected, but return the scores before "
                "softmax for margins and gradients"
            ),
            stacklevel=6,
        )
