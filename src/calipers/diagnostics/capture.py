"""capture: what each named module of a network is given and gives back in one forward pass, and what it does in it."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from calipers.randomness import Draws
from calipers.target.chance import drawn_from

__all__ = ["Call", "Pass", "capture"]

_WEIGHTED = ("convolution", "addmm", "mm", "bmm", "linear")


@final
@dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        path: the module's path in the network.
        module: the module.
        arguments: what it was given, copied.
        named: what it was given by name, copied.
        output: what it gave, copied.
    """

    path: str
    module: nn.Module
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    output: Any = None


@final
@dataclass(eq=False)
class Pass:
    """One forward pass, seen from every module.

    Args:
        calls: the first call of each module, in the order in which they ended.
        times: how often each module was called.
        reuse: how often the most used weight inside each module was used.
        backwards: how many backward operations ran inside each module, during the forward.
        seconds: the time of all calls of each module.
        own: the same, that of the modules inside left out.
        output: what the network gave.
    """

    calls: dict[str, Call] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    reuse: dict[str, int] = field(default_factory=dict)
    backwards: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    own: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    output: Tensor | None = None


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, for the modules that run, the uses of each weight and the operations of a backward."""

    def __init__(self, net: nn.Module, stack: list[str], found: Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {part.data_ptr() for part in (*net.parameters(), *net.buffers()) if part.numel() > 1}
        self._stack, self._found = stack, found
        self.uses: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.partition(".")[0]
        if name in _WEIGHTED:
            used = {part.data_ptr() for part in args if isinstance(part, Tensor)} & self._weights
            self.uses.update((path, pointer) for path in set(self._stack) for pointer in used)
        elif name.endswith("_backward"):
            self._found.backwards.update(set(self._stack))
        return func(*args, **(kwargs or {}))


def capture(net: nn.Module, x: Float[Tensor, "batch *dims"], draws: Draws, *, counting: bool = True) -> Pass:
    """Run a network once, and keep what its modules saw.

    Args:
        net: the network.
        x: inputs.
        draws: where the randomness of its modules comes from.
        counting: whether to count uses of weights and backward operations, which costs time in long computations.

    Returns:
        The pass. The network itself is the module with an empty path. What torch.jit compiled is not among its calls.
    """
    found, stack = Pass(), list[str]()
    watch = _Watch(net, stack, found)
    counted = watch if counting else nullcontext()
    with _hooked(net, stack, found), drawn_from(draws, x.device), torch.no_grad(), counted:
        found.output = net(x.clone())
    for (path, _), count in watch.uses.items():
        found.reuse[path] = max(found.reuse.get(path, 0), count)
    return found


@contextmanager
def _hooked(net: nn.Module, stack: list[str], found: Pass) -> Iterator[None]:
    waiting: list[Call | None] = []
    clocks: list[list[float]] = []  # when each module that runs began, and the time of those inside it

    def begin(path: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            clocks.append([perf_counter(), 0.0])
            first = path not in found.calls and path not in stack
            stack.append(path)
            found.times[path] += 1
            if not first:
                waiting.append(None)
                return
            waiting.append(Call(path, module, tree_map(_copied, arguments), tree_map(_copied, named)))

        return hook

    def end(_: nn.Module, __: Any, ___: Any, output: Any) -> None:
        path, call, (began, inside) = stack.pop(), waiting.pop(), clocks.pop()
        took = perf_counter() - began
        found.seconds[path] += took
        found.own[path] += took - inside
        if clocks:
            clocks[-1][1] += took
        if call is not None:
            call.output = tree_map(_copied, output)
            found.calls[path] = call

    handles = []
    try:
        for path, module in net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(begin(path), with_kwargs=True))
            handles.append(module.register_forward_hook(end, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(part: Any) -> Any:
    return part.detach().clone() if isinstance(part, Tensor) else part
