"""Tracer: follows a network's own code with stand-ins for tensors that know their shape, all but the size of the batch.

Control flow on shapes is followed, since one input has one shape; on the batch or on values it is refused by torch.fx.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import jaxtyping
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

__all__ = ["VALUE", "InFloat64", "ShapeTracer", "plainly"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
VALUE: Final = "value"
"""Where a node keeps what it gave when it was recorded."""
_FAILED = object()


class InFloat64(TorchFunctionMode):
    """Keeps every tensor in float64 where a network casts to float32."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, and widen a float32 result."""
        del types
        named = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float64:
            # the cast itself would round, also inside of a sum, a mean or a softmax
            if func is Tensor.float or (func in (Tensor.to, Tensor.type_as) and _is_single(args[1:])):
                return args[0].clone()
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            named = {
                name: torch.float64 if value is torch.float32 else value for name, value in named.items()
            }
        found = func(*args, **named)
        if isinstance(found, Tensor) and found.dtype is torch.float32:
            return found.double()
        return found


def _is_single(given: tuple[Any, ...]) -> bool:
    return bool(given) and isinstance(given[0], Tensor) and given[0].dtype is torch.float32


class _Shaped(fx.Proxy):
    """A stand-in for a tensor, or a tuple of tensors, whose shape is known but for the batch.

    Where the call that makes it cannot be run, nothing is known of it, and it is torch.fx's own stand-in.
    """

    @property
    def _value(self) -> Any:
        return self.node.meta[VALUE]

    @property
    def shape(self) -> Any:
        """The shape; its first entry stays a stand-in."""
        if not isinstance(self._value, Tensor):
            return fx.proxy.Attribute(self, "shape")
        if not self._value.shape:
            return ()
        whole: Any = fx.proxy.Attribute(self, "shape")
        return (whole[0], *self._value.shape[1:])

    @property
    def ndim(self) -> Any:
        """The number of axes."""
        return self._value.ndim if isinstance(self._value, Tensor) else fx.proxy.Attribute(self, "ndim")

    def dim(self) -> Any:
        """Give the number of axes."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Give the shape, or one entry of it."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        if isinstance(self._value, tuple | list):
            return len(self._value)
        raise fx.proxy.TraceError("the size of the batch is asked for")

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._value, tuple | list):
            whole: Any = self
            return iter([whole[place] for place in range(len(self._value))])
        raise fx.proxy.TraceError("a batch is iterated over")


class ShapeTracer(fx.Tracer):
    """Traces through every module of the user's, and stops at those of torch.

    Each call is run on one input as it is recorded, so that shapes are known.

    Args:
        x: a batch of one input, float64.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.entered: list[str] = []
        self._x = x
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Say whether a module is recorded as one call."""
        del module_qualified_name
        return type(m).__module__.startswith("torch.") and not isinstance(m, _CONTAINERS)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give parameters as they are, so that what is computed from them alone is a constant."""
        del attr, parameter_proxy_cache
        return attr_val

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Record a call of a module, or follow it; remember where it was when an error came."""
        if self._running:
            return forward(*args, **kwargs)
        self.entered.append(self.path_of_module(m))
        found = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return found

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make the stand-in of a call's result."""
        return _Shaped(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record a call, and run it."""
        found = super().create_proxy(*args, **kwargs)
        found.node.meta[VALUE] = self._run(found.node)
        return found

    def _run(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._x.clone()
        self._running = True
        try:
            args = fx.node.map_arg(node.args, self._known)
            kwargs = fx.node.map_arg(node.kwargs, self._known)
            with torch.no_grad(), InFloat64():
                if node.op == "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                assert callable(node.target)
                return node.target(*args, **kwargs)
        except Exception:  # whatever it is, it comes again when the graph is run, and is told with its place
            return _FAILED
        finally:
            self._running = False

    def _known(self, node: fx.Node) -> Any:
        if node.op != "get_attr":
            if node.meta[VALUE] is _FAILED:
                raise TypeError(f"{node} could not be run")
            return node.meta[VALUE]
        found: Any = self.root
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found.double() if isinstance(found, Tensor) and found.is_floating_point() else found


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Refuse automatic mixed precision, which leaves no trace, and let checks of types pass what stands for tensors.

    Yields:
        Nothing.
    """

    def refuse(self: Any) -> None:
        raise TypeError("it computes under torch.autocast, in a coarser format than its weights have")

    checked = jaxtyping.config.jaxtyping_disable
    entered = torch.amp.autocast_mode.autocast.__enter__
    torch.amp.autocast_mode.autocast.__enter__ = refuse  # type: ignore[method-assign]
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checked)
        torch.amp.autocast_mode.autocast.__enter__ = entered  # type: ignore[method-assign]
