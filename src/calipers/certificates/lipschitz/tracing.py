"""Tracing: a module, frozen and checked, as a graph of known calls, and the proof by example that both agree.

The graph is made by torch.fx from the module's own ``forward``: a function or module that is not among the
known ones stays visible in it and is refused where it is met. What torch.fx cannot see (hooks, replaced
methods, randomness, changes in place of something used again) is looked for here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from calipers.certificates.lipschitz.freezing import constant, copied, frozen, one_line
from calipers.certificates.lipschitz.shapes import VALUE, InFloat64, ShapeTracer, plainly
from calipers.errors import UnknownLayer

__all__ = ["QUERIES", "ROWS", "Step", "Trace", "trace"]

ROWS: Final = 3
"""Inputs in a batch with which the graph is run: more than one, so that a mixing of the batch is seen."""

QUERIES: Final = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "is_floating_point",
        "is_contiguous",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
    ]
)
"""Functions whose result depends on the shape of a tensor and not on its values."""

_ATTRIBUTES: Final = frozenset(["shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "layout"])
_LOOSE, _TIGHT = 1e-3, 1e-9


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One call of the graph, as it was run.

    Args:
        node: the node of the graph.
        place: where it is in the network.
        kind: the type of the module, or the name of the function.
        module: the module that is called, or None for a function.
        function: runs the call with other arguments.
        depends: whether the result depends on the values of the network's input.
        result: the result, where it does not; otherwise None.
        shapes: the shape of each tensor of the result, in its own structure.
    """

    node: fx.Node
    place: str
    kind: str
    module: nn.Module | None
    function: Callable[..., Any]
    depends: bool
    result: Any
    shapes: Any


class _Root(nn.Module):
    """Calls a network with one argument, so that the others keep their defaults."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@final
class Trace:
    """A network as a graph of calls.

    Args:
        root: the frozen network, below the name ``net``.
        graph: its graph.
        original: a copy of the network as it is.
        input_shape: the shape of one input.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, original: nn.Module, input_shape: tuple[int, ...]
    ) -> None:
        self.root = root
        self.graph = graph
        self.original = original
        self.input_shape = input_shape
        self._last_use = {node: max(node.users, key=_order(graph), default=node) for node in graph.nodes}

    def check_agreement(self) -> None:
        """Compare the graph with the frozen network tightly, and with the untouched one as closely as float32 allows.

        Each input is given to the untouched network alone, so that a mixing of the batch shows, and for half of the
        probes with gradients enabled, as a search for adversarial examples does.

        Raises:
            UnknownLayer: if they differ, or the network's state changes.
        """
        kind = type(self.original).__name__
        generator = torch.Generator().manual_seed(0)
        weights = (value.dtype for value in self.original.parameters() if value.is_floating_point())
        dtype = next(weights, torch.float32)
        state = [
            (name, value, value._version) for name, value in self.root.state_dict(keep_vars=True).items()
        ]
        drawn = torch.randn((2, ROWS, *self.input_shape), generator=generator)
        levels = torch.tensor([0.0, 1.0, 0.5]).view(-1, *[1] * len(self.input_shape))
        plain = levels.expand(ROWS, *self.input_shape)
        noted = []
        for number, probe in enumerate((0.5 * drawn[0] + 0.5, 3.0 * drawn[1], plain, 2.0 * plain - 1.0)):
            x = probe.double()
            outputs = self.run(x)
            try:
                with InFloat64():
                    tight = self.root(x.clone())
                with torch.set_grad_enabled(number % 2 == 0):
                    loose = torch.cat(
                        [self.original(x[row : row + 1].to(dtype, copy=True)) for row in range(ROWS)]
                    )
                noted.append(_numbers(self.root) + _numbers(self.original))
            except Exception as problem:
                raise UnknownLayer("", kind, f"cannot be run: {one_line(problem)}") from problem
            spread = _spread(outputs)
            for other, slack in ((tight, _TIGHT), (loose, _LOOSE)):
                apart = math.inf
                if other.shape == outputs.shape:
                    apart = (
                        float(((other.double() - outputs).abs() / spread).max()) if outputs.numel() else 0.0
                    )
                if not apart <= slack:
                    raise UnknownLayer(
                        "",
                        kind,
                        f"answers otherwise than its traced graph (by {apart:.2g} of the scores): it is "
                        "random, mixes its batch, computes in a coarse format, or keeps a state",
                    )
        if any(numbers != noted[0] for numbers in noted):
            raise UnknownLayer(
                "", kind, "counts its calls, or notes numbers of its inputs: it may be no fixed function"
            )
        for name, value, version in state:
            if value._version != version:
                raise UnknownLayer(
                    _inside(name), kind, "changes in place when the network runs: it is no fixed function"
                )

    def run(self, x: Tensor) -> Tensor:
        """Run the graph in float64.

        Args:
            x: inputs (batch, *input_shape), float64.

        Returns:
            The outputs (batch, *outputs), float64.
        """
        *_, last = self.steps(x, keep_output=True)
        result: Tensor = last.result
        return result

    def steps(
        self, x: Tensor, *, keep_output: bool = False, before: Callable[[Step], None] | None = None
    ) -> Iterator[Step]:
        """Run the graph in float64, call by call.

        Args:
            x: inputs (batch, *input_shape), float64.
            keep_output: whether the last step carries the output even where it depends on the input.
            before: what is told of each call that depends on the input before it is run.

        Yields:
            The calls in order; the placeholder first and the output last.

        Raises:
            UnknownLayer: if a call fails, or changes in place what is used again.
        """
        alive: dict[fx.Node, Any] = {}
        depends: dict[fx.Node, bool] = {}
        versions: dict[fx.Node, list[int]] = {}
        for node in self.graph.nodes:
            place, kind, module, function = self._call(node)
            if node.op == "placeholder":
                result, depends[node] = x.clone(), True
            elif node.op == "output":
                result = fx.node.map_arg(node.args[0], alive.__getitem__)
                depends[node] = any(depends[used] for used in node.all_input_nodes)
            else:
                args = fx.node.map_arg(node.args, alive.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, alive.__getitem__)
                depends[node] = not _is_query(node) and any(depends[used] for used in node.all_input_nodes)
                if before is not None and depends[node]:
                    before(Step(node, place, kind, module, function, True, None, None))
                result = _execute(place, kind, function, args, kwargs)
                if node.op == "get_attr":
                    result = constant(place, result)
            self._release(node, alive)
            for earlier, seen in versions.items():
                if earlier in alive and _versions(alive[earlier]) != seen:
                    raise UnknownLayer(
                        place,
                        kind,
                        f"changes {earlier.name} in place, which is used again: use the form that does not",
                    )
            alive[node], versions[node] = result, _versions(result)
            if node.op == "output":
                shown = result if keep_output or not depends[node] else None
            else:
                shown = None if depends[node] else result
            shapes = pytree.tree_map_only(Tensor, lambda tensor: tuple(tensor.shape), result)
            yield Step(node, place, kind, module, function, depends[node], shown, shapes)

    def _release(self, node: fx.Node, alive: dict[fx.Node, Any]) -> None:
        for used in node.all_input_nodes:
            if self._last_use[used] is node and used.op != "get_attr":
                alive.pop(used, None)

    def _call(self, node: fx.Node) -> tuple[str, str, nn.Module | None, Callable[..., Any]]:
        scope = _scope(node)
        match node.op:
            case "call_module":
                module = self.root.get_submodule(str(node.target))
                return _inside(str(node.target)), type(module).__name__, module, module
            case "call_function":
                assert callable(node.target)
                kind = getattr(node.target, "__name__", str(node.target))
                return _joined(scope, node.name), kind, None, node.target
            case "call_method":
                name = str(node.target)
                return _joined(scope, node.name), name, None, lambda own, *a, **k: getattr(own, name)(*a, **k)
            case "get_attr":
                path = str(node.target)
                return _inside(path), "constant", None, lambda: _attribute(self.root, path)
            case _:
                return node.op, node.op, None, lambda: None


def trace(module: nn.Module, input_shape: tuple[int, ...]) -> Trace:
    """Trace a network.

    Args:
        module: a network in eval mode, with weights in float32 or float64.
        input_shape: the shape of one input.

    Returns:
        The graph of a frozen copy in float64 on the CPU.

    Raises:
        UnknownLayer: if it cannot be traced, or what is traced may not be what runs.
    """
    original = copied(module)
    with torch.no_grad():
        root = _Root(frozen(original)).eval()
        one = torch.zeros((1, *input_shape), dtype=torch.float64)
        tracer = ShapeTracer(one)
        try:
            with plainly():
                graph = tracer.trace(root)
        except Exception as problem:
            place, kind, reason = _refusal(tracer, module, problem)
            raise UnknownLayer(place, kind, reason) from problem
        for node in graph.nodes:
            node.meta.pop(VALUE, None)
    return Trace(root, graph, original, input_shape)


def _refusal(tracer: ShapeTracer, module: nn.Module, problem: Exception) -> tuple[str, str, str]:
    place = _inside(tracer.entered[-1]) if tracer.entered else ""
    if isinstance(problem, fx.proxy.TraceError):
        reason = "its control flow depends on the values of its input, or on the batch: no one graph is the network"
    elif "item assignment" in str(problem):
        reason = "it assigns to a slice: build the tensor with torch.cat instead"
    else:
        reason = f"it cannot be traced: {one_line(problem)}"
    kind = type(module.get_submodule(place)).__name__
    return place, kind, reason


def _execute(
    place: str, kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    try:
        with InFloat64():
            return function(*args, **kwargs)
    except Exception as problem:
        raise UnknownLayer(place, kind, f"cannot be run by itself: {one_line(problem)}") from problem


def _spread(outputs: Tensor) -> Tensor:
    # Every score by its own size: one class that is masked by a huge constant does not speak for the others.
    columns = outputs.abs().amax(0, keepdim=True)
    floor = 1e-3 * float(columns.flatten().median()) if columns.numel() else 0.0
    return columns.clamp_min(max(floor, 1e-12))


def _numbers(net: nn.Module) -> list[tuple[str, str, object]]:
    return [
        (path, name, value)
        for path, module in net.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str)
    ]


def _is_query(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in QUERIES
    if node.op == "call_function":
        if node.target is getattr:
            return node.args[1] in _ATTRIBUTES
        name = getattr(node.target, "__name__", "")
        return name in QUERIES and getattr(torch, name, None) is node.target
    return False


def _order(graph: fx.Graph) -> Callable[[fx.Node], int]:
    places = {node: place for place, node in enumerate(graph.nodes)}
    return places.__getitem__


def _versions(value: Any) -> list[int]:
    return [leaf._version for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    return _inside(str(next(reversed(stack.values()))[0])) if stack else ""


def _inside(path: str) -> str:
    return path.removeprefix("net").removeprefix(".")


def _joined(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name
