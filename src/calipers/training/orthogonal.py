"""Orthogonal layers as parametrizations: dense layers and convolutions that stretch no input, while they train."""

from __future__ import annotations

import copy
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from calipers.errors import UsageError

__all__ = ["BlockOrthogonal", "Orthonormal", "constrain", "orthonormal_columns", "plain_weights"]


def orthonormal_columns(matrix: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch rows columns"]:
    """Make the columns of tall matrices orthonormal, keeping the spaces that the first k of them span.

    With A^T A = L L^T (Cholesky), the result is A L^-T: the Q of a QR decomposition, by two products of
    matrices instead of a reflection for each column, and with a derivative that is as cheap. The squares lose
    digits: its columns are orthonormal up to about the squared condition number of A times the precision.

    Args:
        matrix: no more columns than rows.

    Returns:
        Q, of the same shape; NaN where the columns are linearly dependent in this precision.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix.mT @ matrix)
    factor = torch.where((failed == 0)[..., None, None], factor, torch.nan)
    solved: Tensor = torch.linalg.solve_triangular(factor, matrix.mT, upper=False)
    return solved.mT


@final
class Orthonormal(nn.Module):
    """A weight whose rows, or columns if they are fewer, are orthonormal.

    For a dense layer and for a convolution over patches that do not overlap (stride as large as the kernel),
    whose norm is that of the kernel as a matrix (out_channels, in_channels * patch): 1.

    It is a parametrization for `torch.nn.utils.parametrize`; what is trained is a free tensor of the shape of
    the weight.
    """

    def forward(self, free: Tensor) -> Tensor:
        """Return the weight.

        Args:
            free: of shape (out, in, *patch).

        Returns:
            Of the same shape.
        """
        with torch.autocast(free.device.type, enabled=False):
            rows = free.flatten(1)
            tall = rows.shape[0] >= rows.shape[1]
            found = orthonormal_columns(rows) if tall else orthonormal_columns(rows.mT).mT
            return found.reshape(free.shape)


@final
class BlockOrthogonal(nn.Module):
    """The kernel of a convolution of stride 1 whose frequency response is an orthogonal matrix everywhere.

    An orthogonal matrix over channels is followed by k - 1 pairs of factors P + (I - P) z, one in each
    direction, where z is a shift by a pixel and P projects on half of the channels. Each factor is unitary at
    each frequency, so is their product, and the norm of the convolution on an infinite image is 1; on a
    finite one with zero padding it is 1 at most.

    It is a parametrization for `torch.nn.utils.parametrize`; what is trained is a free matrix of shape
    (channels, channels * k).

    Args:
        size: the side k of the kernel.

    Reference: Li, Haque, Anil, Lucas, Grosse and Jacobsen 2019, arXiv:1911.00937, section 4 (block
    convolution orthogonal parametrization).

    Differs from the paper: the projections and the matrix are made orthogonal by Cholesky factorization, not by
    Björck's iteration.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, free: Tensor) -> Tensor:
        """Return the kernel.

        Args:
            free: of shape (channels, channels * k).

        Returns:
            Of shape (channels, channels, k, k).
        """
        channels, pairs = len(free), self.size - 1
        with torch.autocast(free.device.type, enabled=False):
            kernel = orthonormal_columns(free[:, :channels])[:, :, None, None]
            halves = free[:, channels:].reshape(channels, 2 * pairs, channels // 2).movedim(1, 0)
            halves = orthonormal_columns(halves)
            projections = halves @ halves.mT
            for down, right in zip(projections[:pairs], projections[pairs:], strict=True):
                kernel = _widen(_widen(kernel, down, (0, 0, 0, 1), (0, 0, 1, 0)), right, (0, 1), (1, 0))
            return kernel

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Choose the free matrix with which a training starts.

        Args:
            weight: the kernel that a layer was made with (outputs, inputs, height, width), whose entries are
                independent; what it computes is not kept.

        Returns:
            Its first row of the kernel, as a matrix (outputs, inputs * width).
        """
        return weight[:, :, 0, :].flatten(1).contiguous()


def constrain(net: nn.Module, *, arch: str) -> None:
    """Parametrize every layer with weights so that it stretches no input in l2.

    Args:
        net: a network with fresh weights, which is changed.
        arch: its name, for the message.

    Raises:
        UsageError: a layer has no such parametrization; it is named.
    """
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and _is_patchwise(module)):
            parametrize.register_parametrization(module, "weight", Orthonormal())
        elif isinstance(module, nn.Conv2d) and _is_same(module):
            parametrization = BlockOrthogonal(module.kernel_size[0])
            parametrize.register_parametrization(module, "weight", parametrization, unsafe=True)
        elif next(module.parameters(recurse=False), None) is not None:
            raise UsageError(
                f"{arch} cannot be trained for its Lipschitz constant: no parametrization keeps {name} "
                f"({type(module).__name__}) from stretching: choose an architecture made for it, such as lipconv28"
            )


def plain_weights(net: nn.Module) -> dict[str, Tensor]:
    """Give the weights of a network without its parametrizations, which are evaluated in float64.

    Args:
        net: a network as `constrain` left it, which is not changed.

    Returns:
        float32 weights on the CPU, by the names that they have in the plain architecture.
    """
    exact = copy.deepcopy(net).cpu().double()
    weights = {name: value for name, value in exact.state_dict().items() if "parametrizations." not in name}
    for name, module in exact.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            with torch.no_grad():
                weights[f"{name}.weight" if name else "weight"] = module.weight
    return {name: value.float() for name, value in weights.items()}


def _widen(kernel: Tensor, projection: Tensor, first: tuple[int, ...], second: tuple[int, ...]) -> Tensor:
    # Compose a kernel with P + (I - P) z along the axis that the paddings lengthen.
    kept = torch.einsum("oihw,ij->ojhw", kernel, projection)
    return functional.pad(kept, first) + functional.pad(kernel - kept, second)


def _is_patchwise(conv: nn.Conv2d) -> bool:
    plain = conv.padding in ((0, 0), "valid") and conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.stride == conv.kernel_size


def _is_same(conv: nn.Conv2d) -> bool:
    size = conv.kernel_size[0]
    return (
        conv.kernel_size == (size, size)
        and conv.in_channels == conv.out_channels
        and conv.in_channels % 2 == 0
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )
