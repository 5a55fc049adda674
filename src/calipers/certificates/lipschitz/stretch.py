"""The norm of a linear operator, or of a derivative, from below: by Lanczos, or by Boyd's power iteration."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from calipers.errors import UsageError
from calipers.randomness import Role, Stream, check_seed
from calipers.threat.norms import size, steepest
from calipers.threat.threat_model import Norm

__all__ = [
    "DUAL",
    "ROUNDING",
    "STEPS",
    "check_norm",
    "derivative_norms",
    "finite_maximum",
    "operator_lower_bound",
    "pulled_back",
]

ROUNDING = 1e-9
"""Far more than float64 loses in sums of 10^5 products, unless they cancel by a factor of 100."""

DUAL = {Norm.L1: Norm.LINF, Norm.L2: Norm.L2, Norm.LINF: Norm.L1}
"""The norm of the linear forms on each norm."""

STEPS = 30
"""Steps of Lanczos, which give the largest singular value to about six digits."""

_STARTS = 32  # of Boyd's iteration, which ends in local maxima


def operator_lower_bound(
    operator: Callable[[Tensor], Tensor],
    input_shape: Sequence[int],
    norm: Norm = Norm.L2,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> float:
    """Bound the norm of a linear operator from below, by an explicit input that it stretches.

    For l2 the input is the best one among the combinations of ``v, A^T A v, (A^T A)^2 v, ...`` (Lanczos), for l1 and
    linf the end of Boyd's power iteration, which may be a local maximum. ``||A v|| / ||v||`` is a lower bound for
    any ``v``, and never an upper one. The adjoint is autograd's.

    Args:
        operator: a linear map from (batch, *input_shape) to (batch, *outputs), in float64; without its bias.
        input_shape: the shape of one input.
        norm: the norm of inputs and outputs: l1, l2 or linf.
        steps: iterations at most, each with one pass of the operator and one of its adjoint.
        seed: seed of the starting directions.

    Returns:
        A lower bound on the operator norm, rounded down, in units of output by unit of input.

    Raises:
        UsageError: if the norm is l0 or the seed is out of range.

    Reference:
        Boyd 1974, The power method for lp norms; Higham 1992, Estimating the matrix p-norm.
    """
    check_norm(norm)
    generator = Stream(check_seed(seed), Role.SEARCH, 0).generator(0)
    starts = 1 if norm is Norm.L2 else _STARTS
    start = torch.randn((starts, *input_shape), generator=generator, dtype=torch.float64)
    values, _ = derivative_norms(operator, torch.zeros_like(start), start, norm, steps)
    return finite_maximum(values) * (1.0 - ROUNDING)


def check_norm(norm: Norm) -> None:
    """Refuse a norm that has no operator norm.

    Args:
        norm: the norm.

    Raises:
        UsageError: if it is l0.
    """
    if norm not in DUAL:
        raise UsageError(f"norm is {norm}: operator norms are l1, l2 and linf")


def finite_maximum(values: Float[Tensor, " count"]) -> float:
    """Find the largest finite value.

    Args:
        values: any values.

    Returns:
        It, or 0 where there is none or all are negative.
    """
    finite = values.detach()[torch.isfinite(values)]
    return max(float(finite.max()), 0.0) if len(finite) else 0.0


def pulled_back(
    outputs: Float[Tensor, "batch *outputs"],
    x: Float[Tensor, "batch *dims"],
    direction: Float[Tensor, "batch *outputs"],
    *,
    create_graph: bool = False,
) -> Float[Tensor, "batch *dims"]:
    """Apply the adjoint of a derivative.

    Args:
        outputs: what a function gave at ``x``.
        x: its inputs, which require gradients.
        direction: a direction of the outputs, one an input.
        create_graph: whether the result is to be differentiated by the direction.

    Returns:
        Directions of the inputs; 0 where the outputs do not depend on ``x``.
    """
    if not outputs.requires_grad:
        return torch.zeros_like(x)
    found: tuple[Tensor, ...] = torch.autograd.grad(
        outputs,
        x,
        direction,
        retain_graph=True,
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return found[0]


def derivative_norms(
    function: Callable[[Tensor], Tensor],
    points: Float[Tensor, "batch *dims"],
    start: Float[Tensor, "batch *dims"],
    norm: Norm,
    steps: int = STEPS,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch *dims"]]:
    """Bound the norm of the derivative at each point from below.

    Args:
        function: maps (batch, *dims) to (batch, *outputs), input by input.
        points: where the derivative is taken, float64.
        start: a first direction a point, not 0.
        norm: the norm of inputs and outputs: l1, l2 or linf.
        steps: iterations at most.

    Returns:
        For each point the stretch of one direction, and that direction.
    """
    x = points.detach().clone().requires_grad_(True)
    y = function(x)
    # The adjoint is linear in its argument, so its own derivative is the derivative of the function.
    form = torch.zeros_like(y, requires_grad=True)
    adjoint = pulled_back(y, x, form, create_graph=True)

    def push(direction: Tensor) -> Tensor:
        return pulled_back(adjoint, form, direction)

    def pull(direction: Tensor) -> Tensor:
        return pulled_back(y, x, direction)

    direction = (
        _lanczos(push, pull, start, steps) if norm is Norm.L2 else _boyd(push, pull, start, norm, steps)
    )
    values = size(push(direction), norm) / size(direction, norm)
    return values.nan_to_num(0.0, 0.0, 0.0), direction


def _lanczos(
    push: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor], start: Tensor, steps: int
) -> Tensor:
    """Find the direction of the Krylov space that is stretched most; all of its basis is kept and made orthogonal."""
    basis = [steepest(start, Norm.L2).flatten(1)]
    images: list[Tensor] = []
    for step in range(min(max(steps, 1), basis[0].shape[1])):
        image = push(basis[-1].view_as(start))
        images.append(image.flatten(1))
        if step + 1 == steps:
            break
        fresh = pull(image).flatten(1)
        before = size(fresh, Norm.L2)
        known = torch.stack(basis, 2)
        for _ in range(2):
            fresh = fresh - (known @ (known.mT @ fresh[:, :, None]))[:, :, 0]
        left = size(fresh, Norm.L2)
        new = left > 1e-10 * before
        if not bool(new.any()):
            break
        basis.append(torch.where(new[:, None], steepest(fresh, Norm.L2), 0.0))
    reached = torch.stack(images, 2).nan_to_num(0.0, 0.0, 0.0)
    best = torch.linalg.eigh(reached.mT @ reached).eigenvectors[:, :, -1:]
    found = (torch.stack(basis[: len(images)], 2) @ best)[:, :, 0]
    # A coefficient of a vector that is 0 counts for nothing; where all count for nothing the start serves.
    empty = size(found, Norm.L2) < 0.5
    return torch.where(empty[:, None], basis[0], found).view_as(start)


def _boyd(
    push: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor], start: Tensor, norm: Norm, steps: int
) -> Tensor:
    """Follow the steepest direction of the size of the image until no point gains."""
    direction = best_direction = steepest(start, norm)
    best = torch.full((len(start),), -1.0, dtype=start.dtype, device=start.device)
    for _ in range(max(steps, 1)):
        image = push(direction)
        value = size(image, norm).nan_to_num(0.0, 0.0, 0.0)
        better = value > best * (1.0 + 1e-12)
        if not bool(better.any()):
            break
        best = torch.where(better, value, best)
        best_direction = torch.where(_like(better, start), direction, best_direction)
        direction = steepest(pull(steepest(image, DUAL[norm])), norm)
        direction = torch.where(_like(size(direction, norm) > 0.0, start), direction, best_direction)
    return best_direction


def _like(mask: Tensor, points: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (points.ndim - 1))
