"""Rows of a batch: whether a forward answers each as it would in another place and beside other rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from calipers.errors import TargetError

if TYPE_CHECKING:
    from torch import Tensor

    from calipers.target import Target

__all__ = ["RowsApart", "require_own_answers", "rows_apart"]


class RowsApart(NamedTuple):
    """How rows fare in another place.

    Args:
        exact: whether they are answered the same to the bit.
        share: how far apart they are answered, as a share of the spread of the scores.
    """

    exact: bool
    share: float


def rows_apart(forward: Callable[[Tensor], Tensor], x: Tensor) -> RowsApart:
    """Answer a batch twice, the second time with every row elsewhere and every other row replaced.

    Args:
        forward: from inputs to scores, or to outcomes.
        x: the batch (rows, *input_shape).

    Returns:
        What became of the rows that stayed.
    """
    import torch

    from calipers.target.probes import apart

    shift = min(37, len(x) - 1)
    kept = torch.arange(len(x), device=x.device) % 2 == 0
    others = x.flip(0) * 0.5 + x.roll(1, 0) * 0.5
    shape = (-1,) + (1,) * (x.ndim - 1)
    second = torch.where(kept.view(shape), x, others).roll(shift, 0)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        second = second.contiguous(memory_format=torch.channels_last)
    once, again = (forward(rows).reshape(len(x), -1).float() for rows in (x, second))
    stayed, before = again.roll(-shift, 0)[kept], once[kept]
    if not torch.equal(stayed.isfinite(), before.isfinite()):
        return RowsApart(exact=False, share=float("inf"))
    stayed, before, once = (rows.nan_to_num(0.0, 0.0, 0.0) for rows in (stayed, before, once))
    return RowsApart(torch.equal(stayed, before), apart(stayed, before, scale=once))


def require_own_answers(target: Target, forward: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Refuse a forward whose answer to a row is another one in another place or beside other rows.

    Args:
        target: the classifier, for its name and precision.
        forward: how it is run.
        x: a batch in the shape of the run.

    Returns:
        Whether rows are answered the same to the bit; if not, they differ by no more than rounding, and a vote may
        depend on what shares its batch.

    Raises:
        TargetError: if a row's answer depends on its place or its mates by more than rounding.
    """
    from calipers.target.probes import ROW_SLACK

    if target.stochastic:
        return True
    found = rows_apart(forward, x)
    if not found.share <= ROW_SLACK[target.precision]:
        raise TargetError(
            f"{target.name} answers a row of a batch of {len(x)} differently in another place or beside other rows (by "
            f"{found.share:.3g} of its scores): no certificate holds for it"
        )
    return found.exact
