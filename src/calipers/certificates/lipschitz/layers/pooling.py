"""Pooling: the largest of a window, and averages and sums, whose linear maps act on one axis after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from calipers.certificates.lipschitz.composition import Flow
from calipers.certificates.lipschitz.layers.call import Call, Refused, Rule
from calipers.certificates.lipschitz.matrices import matrix_norm
from calipers.certificates.lipschitz.operators import up
from calipers.threat.threat_model import Norm

__all__ = ["FUNCTIONS", "METHODS", "MODULES"]

_SVD_ENTRIES: Final = 1_000_000
"""Entries of the matrix of one axis beyond which its row and column sums bound it."""

Window = tuple[int, int]
"""First position and one past the last."""


def _tuple(call: Call, value: Any, axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    values = values * axes if len(values) == 1 else values
    if len(values) != axes or not all(isinstance(one, int) for one in values):
        raise call.unknown(f"has the setting {value!r} for {axes} axes")
    return values


def _spatial(call: Call, flow: Flow, axes: int) -> None:
    if len(flow.shape) != axes + 1 or len(call.shape) != axes + 1 or flow.shape[0] != call.shape[0]:
        raise call.unknown(f"is given features of shape {flow.shape}: channels and {axes} axes are known")


def _covered(call: Call, inputs: int, windows: Sequence[Sequence[int]]) -> int:
    """Count in how many windows the most frequent position lies.

    Returns:
        The count, at least 1.

    Raises:
        UnknownLayer: if a window holds padding alone, so that its maximum is no number.
    """
    counts = np.zeros(inputs, dtype=np.int64)
    for window in windows:
        inside = [place for place in window if 0 <= place < inputs]
        if not inside:
            raise call.unknown("has a window that holds padding alone: its maximum is minus infinity")
        counts[inside] += 1
    return int(counts.max())


def _largest(call: Call, flow: Flow, covered: Sequence[int]) -> Flow:
    """Bound a maximum over windows by the number of windows that a position lies in.

    ``|max x - max y| <= max |x - y|`` over a window, so that the change of a position counts once for each window.

    Returns:
        The result.
    """
    most = math.prod(covered)
    constant = {Norm.L1: float(most), Norm.L2: math.sqrt(most), Norm.LINF: 1.0}[call.norm]
    if constant != round(constant):
        constant = up(constant)
    return call.layer(flow, constant, f"a position lies in {most} window{'s' if most > 1 else ''}")


def _max_pool(axes: int) -> Rule:
    def rule(
        call: Call,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
        return_indices: Any = False,
    ) -> Flow:
        del ceil_mode
        flow = call.only(input)
        if return_indices is not False:
            raise call.unknown("returns indices, which jump")
        _spatial(call, flow, axes)
        sides = _tuple(call, kernel_size, axes)
        steps = sides if stride is None or stride == [] else _tuple(call, stride, axes)
        around, spread = _tuple(call, padding, axes), _tuple(call, dilation, axes)
        covered = [
            _covered(call, n, [[w * s - p + t * d for t in range(k)] for w in range(m)])
            for n, m, k, s, p, d in zip(
                flow.shape[1:], call.shape[1:], sides, steps, around, spread, strict=True
            )
        ]
        return _largest(call, flow, covered)

    return rule


def _adaptive_windows(inputs: int, outputs: int) -> list[Window]:
    return [(place * inputs // outputs, -(-(place + 1) * inputs // outputs)) for place in range(outputs)]


def _adaptive_max_pool(axes: int) -> Rule:
    def rule(call: Call, input: Any, output_size: Any, return_indices: Any = False) -> Flow:
        del output_size
        flow = call.only(input)
        if return_indices is not False:
            raise call.unknown("returns indices, which jump")
        _spatial(call, flow, axes)
        covered = [
            _covered(call, n, [range(*window) for window in _adaptive_windows(n, m)])
            for n, m in zip(flow.shape[1:], call.shape[1:], strict=True)
        ]
        return _largest(call, flow, covered)

    return rule


def _avg_pool(axes: int) -> Rule:
    def rule(
        call: Call,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: Any = False,
        count_include_pad: Any = True,
        divisor_override: Any = None,
    ) -> Flow:
        del ceil_mode
        flow = call.only(input)
        _spatial(call, flow, axes)
        sides = _tuple(call, kernel_size, axes)
        steps = sides if stride is None or stride == [] else _tuple(call, stride, axes)
        around = _tuple(call, padding, axes)
        matrices = []
        for n, m, k, s, p in zip(flow.shape[1:], call.shape[1:], sides, steps, around, strict=True):
            matrix = np.zeros((m, n))
            for w in range(m):
                first, last = w * s - p, min(w * s - p + k, n + p)
                inside = slice(max(first, 0), min(last, n))
                counted = last - first if count_include_pad else inside.stop - inside.start
                matrix[w, inside] = 1.0 if divisor_override is not None else 1.0 / counted
            matrices.append(matrix)
        scale = 1.0 if divisor_override is None else 1.0 / float(divisor_override)
        return _separable(call, flow, matrices, scale)

    return rule


def _adaptive_avg_pool(axes: int) -> Rule:
    def rule(call: Call, input: Any, output_size: Any) -> Flow:
        del output_size
        flow = call.only(input)
        _spatial(call, flow, axes)
        matrices = []
        for n, m in zip(flow.shape[1:], call.shape[1:], strict=True):
            matrix = np.zeros((m, n))
            for place, (first, last) in enumerate(_adaptive_windows(n, m)):
                matrix[place, first:last] = 1.0 / (last - first)
            matrices.append(matrix)
        return _separable(call, flow, matrices)

    return rule


def _separable(call: Call, flow: Flow, matrices: Sequence[np.ndarray], scale: float = 1.0) -> Flow:
    """Bound a map that acts on each spatial axis by a matrix: its norm is the product of theirs.

    The matrices are compared with the layer itself on one random input, since they are written from torch's rules for
    windows at the border.

    Returns:
        The result.
    """
    x = torch.randn((3, *flow.shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = call.run({id(flow): x})
    found = x * scale
    for axis, matrix in enumerate(matrices):
        found = torch.movedim(torch.movedim(found, axis + 2, -1) @ torch.from_numpy(matrix).T, -1, axis + 2)
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-12):
        raise call.unknown("averages by other windows than are known")
    constant = abs(scale)
    for matrix in matrices:
        constant = up(constant * _axis_norm(matrix, call.norm))
    # each entry of a matrix is rounded once: relative 2^-53, which moves the norm by at most that times row length
    widest = max(max(matrix.shape) for matrix in matrices)
    return call.layer(flow, up(constant, operations=4 * widest), "matrix of each axis", linear=True)


def _axis_norm(matrix: np.ndarray, norm: Norm) -> float:
    if norm is Norm.L2 and matrix.size > _SVD_ENTRIES:
        rows, columns = np.abs(matrix).sum(1).max(), np.abs(matrix).sum(0).max()
        return up(math.sqrt(float(rows) * float(columns)), operations=2 * max(matrix.shape))
    return matrix_norm(matrix, norm)


def _reduced(average: bool) -> Rule:
    def rule(call: Call, input: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None) -> Flow:
        """Bound a mean (or a sum) over axes: each input counts once, with the same weight."""
        del keepdim
        flow = call.only(input)
        if dtype not in (None, torch.float32, torch.float64):
            raise call.unknown(f"casts to {dtype}")
        axes = call.axes(dim, len(flow.shape) + 1)
        count = math.prod(flow.shape[axis - 1] for axis in axes)
        constant = {Norm.L1: 1.0, Norm.L2: math.sqrt(count), Norm.LINF: float(count)}[call.norm]
        constant = up(constant / count) if average else up(constant)
        word = "mean" if average else "sum"
        return call.layer(flow, constant, f"{word} over {count}", linear=True)

    return rule


def _extreme(which: str) -> Rule:
    def rule(call: Call, input: Any, dim: Any = (), keepdim: Any = False) -> Flow:
        """Bound the largest or smallest entry along axes: 1 in each norm."""
        del keepdim
        flow = call.only(input)
        axes = call.axes(None if dim == () else dim, len(flow.shape) + 1)
        return call.layer(flow, 1.0, "sorting is 1-Lipschitz", extreme=_of_several(which, flow, axes))

    return rule


def _of_several(which: str, flow: Flow, axes: tuple[int, ...]) -> tuple[str, tuple[int, ...]] | tuple[()]:
    """Mark an extreme of at least two entries; of one, the largest and the smallest are the same entry."""
    several = math.prod(flow.shape[axis - 1] for axis in axes) > 1
    return (which, axes) if several else ()


def extreme_with_indices(
    call: Call, which: str, input: Any, dim: Any, keepdim: Any = False
) -> tuple[Any, ...]:
    """Bound ``torch.max`` along an axis, whose second result may not be used.

    Args:
        call: the call.
        which: ``maximum`` or ``minimum``.
        input: the features.
        dim: the axis.
        keepdim: whether the axis is kept.

    Returns:
        The values, and the refused indices.
    """
    del keepdim
    return _ordered(call, input, dim, which)


def _ordered(call: Call, input: Any, dim: Any, which: str = "") -> tuple[Any, ...]:
    """Bound a sort, the k largest or the largest along an axis: sorting two vectors brings them no further apart."""
    flow = call.only(input)
    axes = call.axes(dim, len(flow.shape) + 1)
    shape: tuple[int, ...] = tuple(call.shapes[0])
    values = call.composition.layer(
        flow,
        1.0,
        place=call.place,
        kind=call.kind,
        shape=shape[1:],
        method="sorting is 1-Lipschitz",
        extreme=_of_several(which, flow, axes) if which else (),
    )
    return values, Refused("uses the indices of a sort or a maximum, which jump")


def _sort(
    call: Call, input: Any, dim: Any = -1, descending: Any = False, stable: Any = None
) -> tuple[Any, ...]:
    del descending, stable
    return _ordered(call, input, dim)


def _topk(
    call: Call, input: Any, k: Any, dim: Any = -1, largest: Any = True, sorted: Any = True
) -> tuple[Any, ...]:
    if not sorted:
        raise call.unknown("gives the largest in no order, which may jump: set sorted=True")
    del k, largest
    return _ordered(call, input, dim)


def _of(rule: Callable[..., Any], *names: str) -> Rule:
    def module_rule(call: Call, module: Any, input: Any) -> Any:
        return rule(call, input, **{name: getattr(module, name) for name in names})

    return module_rule


_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

MODULES: Final[dict[type[nn.Module], Rule]] = {
    nn.MaxPool1d: _of(_max_pool(1), *_MAX),
    nn.MaxPool2d: _of(_max_pool(2), *_MAX),
    nn.MaxPool3d: _of(_max_pool(3), *_MAX),
    nn.AdaptiveMaxPool1d: _of(_adaptive_max_pool(1), "output_size", "return_indices"),
    nn.AdaptiveMaxPool2d: _of(_adaptive_max_pool(2), "output_size", "return_indices"),
    nn.AdaptiveMaxPool3d: _of(_adaptive_max_pool(3), "output_size", "return_indices"),
    nn.AvgPool1d: _of(_avg_pool(1), *_AVERAGE),
    nn.AvgPool2d: _of(_avg_pool(2), *_AVERAGE, "divisor_override"),
    nn.AvgPool3d: _of(_avg_pool(3), *_AVERAGE, "divisor_override"),
    nn.AdaptiveAvgPool1d: _of(_adaptive_avg_pool(1), "output_size"),
    nn.AdaptiveAvgPool2d: _of(_adaptive_avg_pool(2), "output_size"),
    nn.AdaptiveAvgPool3d: _of(_adaptive_avg_pool(3), "output_size"),
}
FUNCTIONS: Final[dict[Any, Rule]] = {
    functional.max_pool1d: _max_pool(1),
    functional.max_pool2d: _max_pool(2),
    functional.max_pool3d: _max_pool(3),
    functional.adaptive_max_pool1d: _adaptive_max_pool(1),
    functional.adaptive_max_pool2d: _adaptive_max_pool(2),
    functional.adaptive_max_pool3d: _adaptive_max_pool(3),
    functional.avg_pool1d: _avg_pool(1),
    functional.avg_pool2d: _avg_pool(2),
    functional.avg_pool3d: _avg_pool(3),
    functional.adaptive_avg_pool1d: _adaptive_avg_pool(1),
    functional.adaptive_avg_pool2d: _adaptive_avg_pool(2),
    functional.adaptive_avg_pool3d: _adaptive_avg_pool(3),
    torch.max_pool1d: _max_pool(1),
    torch.max_pool2d: _max_pool(2),
    torch.max_pool3d: _max_pool(3),
    torch.avg_pool1d: _avg_pool(1),
    torch.adaptive_avg_pool1d: _adaptive_avg_pool(1),
    torch.mean: _reduced(True),
    torch.sum: _reduced(False),
    torch.amax: _extreme("maximum"),
    torch.amin: _extreme("minimum"),
    torch.sort: _sort,
    torch.topk: _topk,
}
METHODS: Final[dict[str, Rule]] = {
    "mean": _reduced(True),
    "sum": _reduced(False),
    "amax": _extreme("maximum"),
    "amin": _extreme("minimum"),
    "sort": _sort,
    "topk": _topk,
}
