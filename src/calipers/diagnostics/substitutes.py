"""Substitutes: what may stand in for the backward of a module of which nothing is known but what it does."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.diagnostics.capture import Call, Pass, capture
from calipers.errors import CalipersError
from calipers.gradients.bpda import register_backward
from calipers.gradients.named import NamedFunction
from calipers.gradients.reattached import Reattached
from calipers.gradients.surrogate import fit_surrogate
from calipers.randomness import Draws
from calipers.target.chance import drawn_from
from calipers.target.fingerprint import fingerprint_module

__all__ = ["Secant", "Substitute", "ancestors", "learned_for", "substitutes_for"]

_NEAR = 0.75
_GOOD = 0.6
_MOST = 256


@final
@dataclass(frozen=True, eq=False)
class Substitute:
    """A stand-in for the backward of one module.

    Args:
        path: the module.
        function: the stand-in, under a name.
        what: the stand-in in a few words.
        why: what speaks for it.
    """

    path: str
    function: Callable[..., Any]
    what: str
    why: str


@final
class Secant(nn.Module):
    """The slope of a module between two points on either side, for one that treats every pixel by itself.

    Steps become ramps: the derivative is that of the module averaged over the width.

    Args:
        module: the module.
        width: how far apart the two points are from the middle, in units of its input.
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        super().__init__()
        self.module, self.width = module, width

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *rest"]:
        """Compute a linear function of each pixel with the slope of the module there.

        Args:
            x: inputs of the module.

        Returns:
            Values whose derivative is the slope.
        """
        with torch.no_grad():
            rise = self.module(x.detach() + self.width) - self.module(x.detach() - self.width)
        slope: Tensor = rise / (2 * self.width)
        return slope * x


def substitutes_for(
    net: nn.Module,
    path: str,
    x: Float[Tensor, "batch *dims"],
    draws: Draws,
    *,
    eps: float,
    seen: Pass | None = None,
) -> tuple[Substitute, ...]:
    """Look for stand-ins for the backward of a module that need no fit, the likeliest first.

    Args:
        net: the network.
        path: the module's path, as BPDA names it.
        x: inputs of the network.
        draws: the source of all randomness.
        eps: the size of the perturbations, as a root mean square a coordinate.
        seen: a forward pass of these inputs, if one was kept.

    Returns:
        The module with nothing detached, where that gives a gradient and the module itself gives none; the identity
        where it keeps the shape; a secant where it treats each pixel by itself. Nothing where the module gives no
        floating point tensor.
    """
    call = _call(seen or capture(net, x, draws), path)
    if call is None:
        return ()
    with drawn_from(draws, x.device):
        return tuple(_quick(path, call, eps))


def _quick(path: str, call: Call, eps: float) -> list[Substitute]:
    given = call.arguments[0]
    found: list[Substitute] = _reattached(path, call)
    single = len(call.arguments) == 1 and not call.named
    if given.shape == call.output.shape:
        found.append(_identity(path, given, call.output))
    if single and _by_pixel(call.module, given, call.output):
        width = max(eps, 0.02 * float(given.std()))
        named = _named(Secant(call.module, width), "secant")
        what = f"its slope over {2 * width:.2g}"
        found.append(Substitute(path, named, what, "each output depends on one pixel alone"))
    return found


def learned_for(
    net: nn.Module,
    path: str,
    x: Float[Tensor, "batch *dims"],
    draws: Draws,
    *,
    eps: float,
    seconds: float,
    seen: Pass | None = None,
) -> Substitute | None:
    """Fit a surrogate to a module.

    Args:
        net: the network.
        path: the module's path, as BPDA names it.
        x: inputs of the network.
        draws: the source of all randomness.
        eps: the size of the perturbations, as a root mean square a coordinate.
        seconds: how long gathering its inputs may take, about.
        seen: a forward pass of these inputs, if one was kept.

    Returns:
        The surrogate; None where the module has several inputs, or was not learned well enough.
    """
    call = _call(seen or capture(net, x, draws), path)
    if call is None or len(call.arguments) != 1 or call.named:
        return None
    return _surrogate(net, path, call, x, draws, eps, seconds)


def _call(seen: Pass, path: str) -> Call | None:
    call = seen.calls.get(path) or seen.calls.get(f"net.{path}")
    if call is None or not call.arguments:
        return None
    parts = (call.arguments[0], call.output)
    if not all(isinstance(part, Tensor) and part.is_floating_point() and part.ndim for part in parts):
        return None
    return call


def _reattached(path: str, call: Call) -> list[Substitute]:
    if call.named or not all(isinstance(each, Tensor) for each in call.arguments):
        return []
    leaf = call.arguments[0][:2].detach().clone().requires_grad_(True)
    rest = [each[:2] for each in call.arguments[1:]]
    with suppress(CalipersError, RuntimeError, TypeError), torch.enable_grad():
        if call.module(leaf, *rest).requires_grad:
            return []
        again = Reattached(call.module)
        output = again(leaf, *rest)
        (slope,) = torch.autograd.grad(output.square().sum(), leaf)
        if bool(slope.isfinite().all()) and bool((slope != 0).any()):
            what = "itself with nothing detached"
            return [Substitute(path, _named(again, "reattached"), what, "it takes itself out of the graph")]
    return []


def _identity(path: str, given: Tensor, output: Tensor) -> Substitute:
    off = float((output - given).double().norm() / (given - given.mean()).double().norm().clamp_min(1e-12))
    why = f"it keeps the shape, and its output is {off:.2f} of its input's spread away"
    return Substitute(
        path, NamedFunction("identity"), "the identity", f"{why}{': near' if off < _NEAR else ''}"
    )


def _by_pixel(module: nn.Module, given: Tensor, output: Tensor) -> bool:
    """Say whether each output depends on the input pixel in its place alone."""
    if given.ndim != output.ndim or len(given) != len(output):
        return False
    if any(one not in (1, other) for one, other in zip(given.shape, output.shape, strict=True)):
        return False
    generator = torch.Generator().manual_seed(0)
    other = given.roll(1, 0) + 0.01
    mask = (torch.rand(given.shape, generator=generator) < 0.5).to(given.device)
    with torch.no_grad():
        mixed, far = module(torch.where(mask, other, given)), module(other)
        if not isinstance(mixed, Tensor) or mixed.shape != output.shape:
            return False
        again = module(given)
    if not torch.equal(again, output):
        return False
    expected = torch.where(mask.expand_as(output), far, output)
    return bool(torch.allclose(mixed, expected, atol=1e-6))


def _surrogate(
    net: nn.Module, path: str, call: Call, x: Tensor, draws: Draws, eps: float, seconds: float
) -> Substitute | None:
    began = perf_counter()
    with torch.no_grad(), drawn_from(draws, x.device):
        call.module(call.arguments[0])
    each = (perf_counter() - began) / len(call.arguments[0])
    copies = min(_MOST, int(0.3 * seconds / max(each, 1e-9))) // len(x)
    inputs = list[Tensor]()
    for turn in range(max(copies, 1)):
        streams = draws.fold(100 + turn)
        noise = torch.stack(
            [torch.randn(x.shape[1:], generator=streams[row].generator(0)) for row in range(len(x))]
        )
        seen = capture(net, (x + eps * noise.to(x)).clamp(0, 1), streams)
        inputs.append((seen.calls.get(path) or seen.calls[f"net.{path}"]).arguments[0])
        if perf_counter() - began > 0.5 * seconds:
            break
    gathered = torch.cat(inputs)
    if len(gathered) < 10 or gathered[0].numel() * call.output[0].numel() > 4_000_000 * 64:
        return None
    try:
        learned = fit_surrogate(call.module, gathered, seed=draws.seed % 2**32, steps=200)
    except (CalipersError, RuntimeError):
        return None
    if learned.unexplained > _GOOD:
        return None
    why = f"learned from {len(gathered)} inputs, it misses {learned.unexplained:.2f} of the variance of its outputs"
    return Substitute(path, _named(learned, "surrogate"), "a learned surrogate", why)


def _named(module: nn.Module, kind: str) -> Callable[..., Any]:
    """Register a module under a name made of its hash, so that an attack that holds it can be stored."""
    module = module.eval().requires_grad_(False)
    name = f"{kind}-{fingerprint_module(module)[:12]}"
    with suppress(CalipersError):  # the same module was registered before
        register_backward(name, module)
    return NamedFunction(name)


def ancestors(path: str, known: Sequence[str]) -> tuple[str, ...]:
    """List the modules around a module, the innermost first.

    Args:
        path: the module.
        known: the paths of all modules.

    Returns:
        Their paths.
    """
    parts = path.split(".")
    around = [".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]
    return tuple(each for each in around if each in known)
