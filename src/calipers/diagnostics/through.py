"""Through: one module as a function of the tensors that vary, with its values, slopes and jumps."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from calipers.diagnostics.capture import Call
from calipers.randomness import Draws
from calipers.target.chance import drawn_from

__all__ = ["Slopes", "Through", "across", "between", "fewer", "in_double"]

_BESIDE: Final = 1e-3
_STEPS: Final = {True: (1e-6, 1e-4, 1e-8, 1e-2), False: (0.1, 0.03, 0.3, 0.01)}
_AGREES: Final = 1e-3


@final
@dataclass(frozen=True, eq=False)
class Slopes:
    """What autograd says of a module on the way from one input to another.

    Args:
        predicted: length of the change that the derivative predicts, one value a row.
        mismatch: by which share the derivative and small finite differences disagree, one value a row.
        present: whether autograd gave a derivative at all.
        finite: whether all of it is finite.
        refusal: what autograd said where it refused; empty otherwise.
    """

    predicted: Float[Tensor, " rows"]
    mismatch: Float[Tensor, " rows"]
    present: bool
    finite: bool
    refusal: str = ""


@final
@dataclass(eq=False)
class Through:
    """A module between two inputs that it was given: f(a + t (b - a)), t from 0 to 1, everything else kept.

    Args:
        module: the module, in the precision in which it is run.
        structure: how its arguments are nested.
        leaves: its arguments at t = 0.
        places: which of the leaves vary.
        steps: by how much each of these changes up to t = 1.
        draws: where its randomness comes from: the same at each call.
        double: whether it computes in float64.
        drawing: whether torch makes new tensors in float64 meanwhile, for a module that draws in no precision of its
            own.
    """

    module: nn.Module
    structure: Any
    leaves: list[Any]
    places: list[int]
    steps: list[Tensor]
    draws: Draws
    double: bool
    drawing: bool = False

    @property
    def base(self) -> list[Tensor]:
        """The varying inputs at t = 0."""
        return [self.leaves[place] for place in self.places]

    def raw(self, varying: list[Tensor], draws: Draws | None = None) -> Any:
        """Run the module.

        Args:
            varying: the inputs that vary.
            draws: where its randomness comes from, if not from the usual place.

        Returns:
            What it gives.
        """
        leaves = list(self.leaves)
        for place, value in zip(self.places, varying, strict=True):
            leaves[place] = value
        arguments, named = tree_unflatten(
            [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], self.structure
        )
        made = torch.float64 if self.drawing else torch.get_default_dtype()
        with drawn_from(draws or self.draws, varying[0].device), _making(made):
            return self.module(*arguments, **named)

    def value(
        self, t: float | Tensor, *, along: list[Tensor] | None = None, draws: Draws | None = None
    ) -> Tensor:
        """Compute the outputs in one row an input.

        Args:
            t: how far; one number, or one a row.
            along: in which direction, if not towards the second input.
            draws: where its randomness comes from, if not from the usual place.

        Returns:
            Its outputs, flat, in float64; of one row where rows cannot be told apart.
        """
        moved = []
        for here, step in zip(self.base, self.steps if along is None else along, strict=True):
            far = t if isinstance(t, float) else t.view(-1, *[1] * (here.ndim - 1)).to(here)
            moved.append(here + far * step)
        with torch.no_grad():
            return self.rows(self.raw(moved, draws))

    def rows(self, output: Any) -> Tensor:
        """Lay the outputs out, one row an input.

        Args:
            output: what the module gave.

        Returns:
            A matrix in float64.
        """
        count = len(self.base[0])
        parts = [part for part in tree_flatten(output)[0] if isinstance(part, Tensor)]
        if not parts:
            return torch.zeros(1, 0, dtype=torch.float64)
        if all(part.ndim and len(part) == count for part in parts):
            return torch.cat([part.reshape(count, -1).double().cpu() for part in parts], 1)
        return torch.cat([part.reshape(1, -1).double().cpu() for part in parts], 1)

    def slopes(self, *, cotangents: int = 6, seed: int = 0) -> Slopes:
        """Compare autograd with small finite differences, and say how far it expects the outputs to move.

        With normal w, the mean of <w, J d>^2 is the squared length of J d: w J comes from one backward.

        Args:
            cotangents: how many w.
            seed: of the w.

        Returns:
            The comparison.
        """
        generator = torch.Generator().manual_seed(seed)
        return self._beside(generator)._slopes(cotangents, generator)

    def _beside(self, generator: torch.Generator) -> "Through":
        """Begin a hair beside the first input: a clipped image has equal pixels, where a maximum has no derivative."""
        leaves = list(self.leaves)
        for place, step in zip(self.places, self.steps, strict=True):
            leaves[place] = leaves[place] + _BESIDE * self._noise(step, generator)
        return replace(self, leaves=leaves)

    def _slopes(self, cotangents: int, generator: torch.Generator) -> Slopes:
        none = torch.zeros(len(self.base[0]), dtype=torch.float64)
        leaves = [here.clone().requires_grad_(True) for here in self.base]
        try:
            with torch.enable_grad():
                flat = self.rows(self.raw(leaves))
                if not flat.requires_grad:
                    return Slopes(none, none, False, True)
            weights = [
                torch.randn(flat.shape, generator=generator, dtype=torch.float64) for _ in range(cotangents)
            ]
            found = [
                torch.autograd.grad((w * flat).sum(), leaves, retain_graph=True, allow_unused=True)
                for w in weights
            ]
        except (RuntimeError, TypeError, NotImplementedError) as problem:
            return Slopes(none, none, False, True, " ".join(str(problem).split())[:200])
        if any(all(part is None for part in parts) for parts in found):
            return Slopes(none, none, False, True)
        any_way = [self._noise(step, generator) for step in self.steps]
        ahead = torch.stack([self._dot(parts, self.steps, len(flat)) for parts in found])
        across = torch.stack([self._dot(parts, any_way, len(flat)) for parts in found])
        worst = torch.ones_like(across)
        for size in _STEPS[self.double]:
            change = (self.value(size, along=any_way) - self.value(-size, along=any_way)) / (2 * size)
            numeric = torch.stack([(w * change).sum(1) for w in weights])
            gap = (numeric - across).abs()
            share = torch.where(gap > 0, gap / (numeric.abs() + across.abs()).clamp_min(1e-300), 0)
            worst = torch.minimum(worst, share.nan_to_num(1.0))
            if float(worst.max()) < _AGREES:
                break
        return Slopes(ahead.square().mean(0).sqrt(), worst.mean(0), True, bool(torch.isfinite(ahead).all()))

    def jump(
        self,
        first: Float[Tensor, "rows outputs"],
        last: Float[Tensor, "rows outputs"],
        *,
        halvings: int,
        until: float = 0.0,
    ) -> Float[Tensor, " rows"]:
        """Look for a place on the way where the output jumps, by halving the way to where it changes most.

        Args:
            first: the outputs at t = 0.
            last: the outputs at t = 1.
            halvings: how often; the way that is left is a power of ½ of the whole.
            until: of what share the search need not go on: where no row has more left, it ends.

        Returns:
            The share of the coordinate's change that is left at the end, which goes to 0 where the module is
            continuous; one value a row.
        """
        change = (last - first).abs()
        if not change.shape[1] or len(first) != len(self.base[0]):
            return torch.zeros(len(first), dtype=torch.float64)
        chosen = change.argmax(1, keepdim=True)
        low, high = torch.zeros(len(first), dtype=torch.float64), torch.ones(len(first), dtype=torch.float64)
        at_low, at_high = first.gather(1, chosen)[:, 0], last.gather(1, chosen)[:, 0]
        whole = (at_high - at_low).abs()
        share = torch.where(whole > 0, 1.0, 0.0)
        for _ in range(halvings):
            middle = (low + high) / 2
            at_middle = self.value(middle).gather(1, chosen)[:, 0]
            left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
            high, at_high = torch.where(left, middle, high), torch.where(left, at_middle, at_high)
            low, at_low = torch.where(left, low, middle), torch.where(left, at_low, at_middle)
            share = torch.where(whole > 0, (at_high - at_low).abs() / whole.clamp_min(1e-300), 0)
            if float(share.max()) < until:
                break
        return share

    def spread(self, outputs: Float[Tensor, "rows outputs"]) -> tuple[float, float]:
        """Measure how much inputs and outputs differ from one row to another.

        Args:
            outputs: those at t = 0.

        Returns:
            The root mean square deviation of each from its mean over the rows, as a length; NaN for a single row.
        """
        inputs = torch.cat([here.reshape(len(here), -1).double().cpu() for here in self.base], 1)
        if len(inputs) < 2 or len(outputs) != len(inputs):
            return math.nan, math.nan
        return tuple(
            float((part - part.mean(0)).norm(dim=1).square().mean().sqrt()) for part in (inputs, outputs)
        )  # type: ignore[return-value]

    def change(self) -> Float[Tensor, " rows"]:
        """Measure the length of the way between the two inputs.

        Returns:
            One value a row.
        """
        parts = [step.reshape(len(step), -1).double() for step in self.steps]
        length: Tensor = torch.cat(parts, 1).norm(dim=1)
        return length

    def _noise(self, step: Tensor, generator: torch.Generator) -> Tensor:
        # a direction that is not the one between the inputs, as long as it, in all coordinates
        drawn = torch.randn(step.shape, generator=generator, dtype=torch.float64).to(step)
        noise: Tensor = drawn * step.square().mean().sqrt().clamp_min(1e-12)
        return noise

    def _dot(self, found: Any, along: list[Tensor], rows: int) -> Tensor:
        total = torch.zeros(rows, dtype=torch.float64)
        for part, step in zip(found, along, strict=True):
            if part is not None:
                product = (part.double() * step.double()).reshape(len(step), -1).sum(1).cpu()
                total += product if len(product) == rows else product.sum()
        return total


def between(
    one: Call, other: Call | None, draws: Draws, *, seed: int, rows: int = 8, share: float = 0.1
) -> "Through | None":
    """Make the way between what a module was given in two passes.

    Args:
        one: its call in the first pass.
        other: its call in the second, if there was one of the same shapes.
        draws: where its randomness comes from.
        seed: of the noise that stands in where the two inputs are the same.
        rows: how many of its rows are kept; it may be given more than there are inputs, such as crops of them.
        share: size of that noise, as a share of the input's own standard deviation.

    Returns:
        The way, in float64 if the module runs in it; None where no floating point tensor goes in.
    """
    leaves, structure = tree_flatten((one.arguments, one.named))
    places = [place for place, leaf in enumerate(leaves) if _floats(leaf)]
    if not places:
        return None
    others = leaves if other is None else tree_flatten((other.arguments, other.named))[0]
    fitting = len(others) == len(leaves) and all(
        isinstance(others[place], Tensor) and others[place].shape == leaves[place].shape for place in places
    )
    steps = [others[place] - leaves[place] if fitting else leaves[place] * 0 for place in places]
    moving = [number for number, step in enumerate(steps) if bool((step != 0).any())]
    if moving:
        places, steps = [places[number] for number in moving], [steps[number] for number in moving]
    else:
        generator = torch.Generator().manual_seed(seed)
        places = places[:1]
        first = leaves[places[0]]
        size = share * float(first.double().std(correction=0).clamp_min(1e-3))
        drawn = torch.randn(first.shape, generator=generator, dtype=torch.float64)
        steps = [drawn.to(first) * size]
    count = len(leaves[places[0]])
    if any(len(leaves[place]) != count for place in places):
        places, steps = places[:1], steps[:1]
    whole = Through(one.module, structure, leaves, places, steps, draws, double=False)
    return in_double(fewer(whole, rows) if count > rows else whole)


def fewer(way: Through, rows: int) -> Through:
    """Take the first rows alone.

    Args:
        way: a way of a module.
        rows: how many.

    Returns:
        The way of those; the one that was given where its module does not keep rows apart.
    """
    count = len(way.base[0])
    leaves = [
        leaf[:rows] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else leaf
        for leaf in way.leaves
    ]
    part = replace(way, leaves=leaves, steps=[step[:rows] for step in way.steps])
    try:
        fits = len(part.value(0.0)) == rows
    except (
        Exception
    ):  # a user's module may raise anything when it is given fewer rows: then it gets all of them
        return way
    return part if fits else way


def across(way: Through) -> Through:
    """Make the way from what a module was given for each input to what it was given for the next one.

    Args:
        way: a way of the same module.

    Returns:
        The other way.
    """
    return replace(way, steps=[here.roll(-1, 0) - here for here in way.base])


def in_double(way: Through) -> Through:
    """Run a module in float64, if it can.

    Args:
        way: the way in the module's own precision.

    Returns:
        The same way in float64, or the one that was given.
    """
    try:
        module = copy.deepcopy(way.module).double()
    except Exception:  # a user's module may not be copied: then it is measured in its own precision
        return way
    leaves = [leaf.double() if _floats(leaf) else leaf for leaf in way.leaves]
    steps = [step.double() for step in way.steps]
    for drawing in (False, True):
        made = Through(
            module, way.structure, leaves, way.places, steps, way.draws, double=True, drawing=drawing
        )
        if _computes_in_double(made):
            return made
    return way


def _computes_in_double(way: Through) -> bool:
    try:
        with torch.no_grad():
            outputs = [part for part in tree_flatten(way.raw(way.base))[0] if _floats(part)]
    except Exception:  # a user's module may raise anything in float64
        return False
    return bool(outputs) and all(part.dtype is torch.float64 for part in outputs)


@contextmanager
def _making(number: torch.dtype) -> Iterator[None]:
    """Let torch make new tensors in a precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(number)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0 and leaf.numel() > 0
