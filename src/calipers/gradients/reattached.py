"""Reattached: a module run once more with nothing detached, so that its own computation can be differentiated."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Reattached"]


@final
class Reattached(nn.Module):
    """A stand-in for the backward of a module that takes itself out of the graph, though what it computes is smooth.

    While the module runs, ``detach``, ``data`` and ``no_grad`` do nothing, and the gradients that it takes in an
    optimization of its own can be differentiated themselves: every step of an inner descent is unrolled. What is not
    smooth (rounding, sorting out, arithmetic outside of torch) stays so.

    To be had as BPDA has every stand-in: the values are those of the module as it is, and this is its backward.
    Randomness that the module draws is drawn anew.

    Args:
        module: the module.

    Example:
        >>> import torch
        >>> class Hidden(torch.nn.Module):
        ...     def forward(self, x):
        ...         with torch.no_grad():
        ...             return 3 * x.detach()
        >>> x = torch.ones(1, requires_grad=True)
        >>> torch.autograd.grad(Reattached(Hidden())(x), x)
        (tensor([3.]),)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)  # the module itself is the one whose backward is replaced

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Run the module with nothing detached.

        Args:
            arguments: what the module gets.
            named: what it gets by name.

        Returns:
            What it gives, differentiable where its computation is.
        """
        with torch.enable_grad(), _Attached():
            found: Tensor = self.module(*arguments, **named)
        return found


class _Attached(TorchFunctionMode):
    """Turns what takes a tensor out of the graph into nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in _DETACHING:
            return args[0]
        if func is torch.Tensor.requires_grad_ and not args[0].is_leaf:
            return args[0]
        if func is torch._C._set_grad_enabled:
            return None
        if func is torch.autograd.grad:
            named = {**named, "create_graph": True}
        return func(*args, **named)


_DETACHING = (torch.Tensor.detach, torch.Tensor.data.__get__)  # type: ignore[attr-defined]
