r"""BPDA: an exact forward, and for named modules the backward of something smooth that is close to them.

For a preprocessor g with :math:`g(x) \approx x` before a classifier f,

.. math:: \nabla_x f(g(x))\big|_{x=\hat x} \approx \nabla_x f(x)\big|_{x=g(\hat x)} ,

and in general the derivative of g is replaced by that of a differentiable substitute s, taken at the same input:
:math:`J_s(\hat x)^\top \, \nabla f(u)|_{u=g(\hat x)}`.

Reference: Athalye, Carlini and Wagner 2018 (arXiv:1802.00420), section 4.1.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calipers.errors import UsageError
from calipers.gradients.estimator import Autograd, GradientEstimate, GradientEstimator, Objective, View
from calipers.gradients.named import Function, as_function, name_of, register
from calipers.randomness import Draws
from calipers.target import Access
from calipers.threat.threat_model import Goal

__all__ = ["BPDA", "identity", "register_backward"]

_LISTED = 24
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def identity(x: Tensor, *others: object) -> Tensor:
    """Stand in for a module that changes its input little: quantization, compression, purification.

    Args:
        x: what the module gets first, of any shape.
        others: what else it gets, which is left out.

    Returns:
        The first.
    """
    return x


register("identity", identity)


def register_backward(name: str, substitute: Callable[..., Tensor]) -> None:
    """Give a substitute a name, by which :class:`BPDA` and the command line know it.

    Args:
        name: letters, digits, ``_`` and ``-``, a letter first.
        substitute: a differentiable function or module with the shapes of what it stands in for.
    """
    register(name, substitute)


@final
@dataclass(frozen=True)
class BPDA(GradientEstimator):
    """The real forward to the bit, and the backward of substitutes for named modules.

    A module is named by its path in the network that the target was made of (``encoder``, ``layer1.0.relu``); by the
    end of its path if no module has the whole (``relu``, every one of that name); or by a pattern with ``*``. It may
    be non-differentiable, leave torch, run under ``no_grad`` or draw randomness: it is run once, outside the graph.
    A substitute gets the same arguments and gives the shape that the module gives; ``identity`` gives
    back the first. One that draws from torch's generator for the CPU draws what the module drew, and moves nobody
    else's draws. A module that carries the module named inside it is replaced as a whole.

    Differs from the paper: the substitute may change the shape, and it stands in for any module, not only for a
    preprocessor.

    Args:
        substitutes: from the name of a module to a differentiable function or module, or the name of one: registered,
            or ``package.module:name``. A callable that nothing finds again (a lambda) works, and cannot be stored.
        inner: how the gradient is had once the modules are replaced.

    Raises:
        UsageError: if no module is named, a name is unknown, or ``inner`` uses no backward.

    Example:
        >>> BPDA({"encoder": identity}).describe()
        'bpda(encoder=identity)'
    """

    substitutes: Mapping[str, Function] | tuple[tuple[str, Function], ...]
    inner: GradientEstimator = field(default_factory=Autograd)

    def __post_init__(self) -> None:
        given = self.substitutes.items() if isinstance(self.substitutes, Mapping) else self.substitutes
        pairs = tuple((path, as_function(function)) for path, function in given)
        if not pairs or len({path for path, _ in pairs}) < len(pairs):
            raise UsageError(
                f"bpda names the modules {[path for path, _ in pairs]}: name at least one, each once"
            )
        if self.inner.access < Access.GRADIENTS:
            raise UsageError("bpda changes the backward, and nes and spsa have none: leave one out")
        object.__setattr__(self, "substitutes", pairs)
        object.__setattr__(self, "revision", self.revision + self.inner.revision - 1)

    @property
    def access(self) -> Access:
        """Gradients."""
        return Access.GRADIENTS

    def describe(self) -> str:
        """Write ``bpda(MODULE=NAME, ...)`` and what is inside."""
        named = ", ".join(f"{path}={name_of(function)}" for path, function in self._pairs())
        inner = "" if self.inner == Autograd() else f" {self.inner.describe()}"
        return f"bpda({named}){inner}"

    def estimate(
        self,
        target: View,
        objective: Objective,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        goal: Goal,
        *,
        draws: Draws,
    ) -> GradientEstimate:
        """Estimate through the substitutes; see :meth:`GradientEstimator.estimate`.

        Args:
            target: the classifier, or a view that counts what it is asked.
            objective: the loss to be raised.
            x: inputs.
            y: the true classes.
            goal: what the adversary wants.
            draws: the source of all randomness.

        Returns:
            Value, gradient and scores of each input.

        Raises:
            UsageError: if a name fits no module or one that is not run, or a substitute gives another shape.
        """
        with _substituted(target.module, self._pairs()) as ran:
            found = self.inner.estimate(target, objective, x, y, goal, draws=draws)
        for path, _ in self._pairs():
            if path not in ran:
                raise UsageError(
                    f"bpda replaced the backward of {path!r}, which the network never called as a module: name the "
                    "module that calls it"
                )
        return found

    def _pairs(self) -> tuple[tuple[str, Callable[..., Any]], ...]:
        return self.substitutes  # type: ignore[return-value]


class _Exact(torch.autograd.Function):
    """The real value forward; backward, the gradient goes to the substitute."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, real: Tensor) -> Tensor:
        ctx.dtype = soft.dtype
        return real.clone()  # a view could not be changed in place by what follows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None


@contextmanager
def _substituted(net: nn.Module, pairs: tuple[tuple[str, Callable[..., Any]], ...]) -> Iterator[set[str]]:
    """Replace backwards while the context is open, and give the names whose modules were run."""
    handles: list[RemovableHandle] = []
    ran: set[str] = set()
    try:
        for path, substitute in pairs:
            for module in _matching(net, path):
                handles += _hook(module, path, substitute, ran)
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    module: nn.Module, path: str, substitute: Callable[..., Any], ran: set[str]
) -> tuple[RemovableHandle, RemovableHandle]:
    # of the calls under way: what they get, with its graph, and the state of the generator
    calls: list[tuple[_Arguments, Tensor]] = []

    def detach(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> _Arguments:
        calls.append(((arguments, named), torch.get_rng_state()))
        return tuple(map(_detached, arguments)), {word: _detached(part) for word, part in named.items()}

    def replace(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], real: Any) -> Any:
        (arguments, named), state = calls.pop()
        ran.add(path)
        tensors = [part for part in (*arguments, *named.values()) if isinstance(part, Tensor)]
        if not tensors:
            raise UsageError(f"bpda: {path!r} takes no tensor as an argument: name the module around it")
        if not any(part.requires_grad for part in tensors):
            return real
        if not isinstance(real, Tensor) or not real.is_floating_point():
            what = str(real.dtype) if isinstance(real, Tensor) else type(real).__name__
            raise UsageError(
                f"bpda: {path!r} gives {what}, which carries no gradient: name the module around it as well"
            )
        with torch.enable_grad():
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                soft = substitute(*arguments, **named)
            if not isinstance(soft, Tensor) or soft.shape != real.shape:
                shape = tuple(soft.shape) if isinstance(soft, Tensor) else type(soft).__name__
                raise UsageError(
                    f"bpda: {path!r} gives {tuple(real.shape)} and its substitute {shape}: the shapes must agree"
                )
            return _Exact.apply(soft, real.detach())  # type: ignore[no-untyped-call]

    return (
        module.register_forward_pre_hook(detach, with_kwargs=True),
        module.register_forward_hook(replace, with_kwargs=True),
    )


def _detached(part: Any) -> Any:
    return part.detach() if isinstance(part, Tensor) else part


def _matching(net: nn.Module, wanted: str) -> list[nn.Module]:
    """Find the modules of a name: the whole path, or else its end, or all that fit a pattern."""
    paths = {path.removeprefix("net."): module for path, module in net.named_modules() if path}
    if wanted in paths:
        return [paths[wanted]]
    if any(sign in wanted for sign in "*?["):
        found = [module for path, module in paths.items() if fnmatchcase(path, wanted)]
    else:
        found = [module for path, module in paths.items() if path.endswith(f".{wanted}")]
    if not found:
        names = [path for path in paths if path != "net"]
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise UsageError(
            f"bpda: no module is called {wanted!r}: there are {listed or 'none but net, the whole network'}"
        )
    return found
