"""Through: one module as a function of the tensors that vary, with its values, slopes and jumps."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from calipers.diagnostics.capture import Call
from calipers.randomness import Draws
from calipers.target.chance import drawn_from

__all__ = ["Slopes", "Through", "across", "between", "in_double"]

_BESIDE = 1e-3
_ROWS = 8


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
    """

    module: nn.Module
    structure: Any
    leaves: list[Any]
    places: list[int]
    steps: list[Tensor]
    draws: Draws
    double: bool

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
        with drawn_from(draws or self.draws, varying[0].device):
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
        rows = len(self.value(0.0))
        nothing = torch.zeros(rows, dtype=torch.float64)
        leaves = [here.clone().requires_grad_(True) for here in self.base]
        try:
            with torch.enable_grad():
                output = self.raw(leaves)
                flat = self.rows(output)
                if not flat.requires_grad:
                    return Slopes(nothing, nothing, False, True)
        except (RuntimeError, TypeError, NotImplementedError) as problem:
            return Slopes(nothing, nothing, False, True, " ".join(str(problem).split())[:200])
        steps = (1e-2, 1e-4, 1e-6, 1e-8) if self.double else (0.3, 0.1, 0.03, 0.01)
        any_way = [self._noise(step, generator) for step in self.steps]
        differences = []
        for size in steps:
            ahead, behind = self.value(size, along=any_way), self.value(-size, along=any_way)
            differences.append((ahead - behind) / (2 * size))
        squares, worst, finite = nothing.clone(), nothing.clone(), True
        for _ in range(cotangents):
            w = torch.randn(flat.shape, generator=generator, dtype=torch.float64)
            try:
                found = torch.autograd.grad((w * flat).sum(), leaves, retain_graph=True, allow_unused=True)
            except (RuntimeError, NotImplementedError) as problem:
                return Slopes(nothing, nothing, False, True, " ".join(str(problem).split())[:200])
            if all(part is None for part in found):
                return Slopes(nothing, nothing, False, True)
            ahead, across = self._dot(found, self.steps, rows), self._dot(found, any_way, rows)
            finite &= bool(torch.isfinite(ahead).all())
            squares += ahead.square()
            numeric = torch.stack([(w * difference).sum(1).cpu() for difference in differences])
            gap = (numeric - across).abs()
            share = torch.where(gap > 0, gap / (numeric.abs() + across.abs()).clamp_min(1e-300), 0)
            worst += share.nan_to_num(1.0).amin(0)
        return Slopes((squares / cotangents).sqrt(), worst / cotangents, True, finite)

    def jump(self, *, halvings: int) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Look for a place on the way where the output jumps, by halving the way to where it changes most.

        Args:
            halvings: how often; the way that is left is a power of ½ of the whole.

        Returns:
            The share of the coordinate's change that is left at the end, which goes to 0 where the module is
            continuous; and the length of the change of all coordinates. One value a row.
        """
        first, last = self.value(0.0), self.value(1.0)
        change = (last - first).abs()
        length = (last - first).norm(dim=1)
        if not change.shape[1] or len(first) != len(self.base[0]):
            return torch.zeros(len(first)), length
        chosen = change.argmax(1, keepdim=True)
        low, high = torch.zeros(len(first), dtype=torch.float64), torch.ones(len(first), dtype=torch.float64)
        at_low, at_high = first.gather(1, chosen)[:, 0], last.gather(1, chosen)[:, 0]
        whole = (at_high - at_low).abs()
        for _ in range(halvings):
            middle = (low + high) / 2
            at_middle = self.value(middle).gather(1, chosen)[:, 0]
            left = (at_middle - at_low).abs() >= (at_high - at_middle).abs()
            high, at_high = torch.where(left, middle, high), torch.where(left, at_middle, at_high)
            low, at_low = torch.where(left, low, middle), torch.where(left, at_low, at_middle)
        share = (at_high - at_low).abs() / whole.clamp_min(1e-300)
        return torch.where(whole > 0, share, 0), length

    def spread(self) -> tuple[float, float]:
        """Measure how much inputs and outputs differ from one row to another.

        Returns:
            The root mean square deviation of each from its mean over the rows, as a length; NaN for a single row.
        """
        inputs = torch.cat([here.reshape(len(here), -1).double() for here in self.base], 1)
        outputs = self.value(0.0)
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
    one: Call, other: Call | None, draws: Draws, *, seed: int, share: float = 0.1
) -> "Through | None":
    """Make the way between what a module was given in two passes.

    Args:
        one: its call in the first pass.
        other: its call in the second, if there was one of the same shapes.
        draws: where its randomness comes from.
        seed: of the noise that stands in where the two inputs are the same.
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
    return in_double(_fewer(whole))


def _fewer(way: Through) -> Through:
    """Take the first rows alone where a module gets many: crops of the same inputs, say."""
    count = len(way.base[0])
    if count <= 2 * _ROWS:
        return way
    leaves = [
        leaf[:_ROWS] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else leaf
        for leaf in way.leaves
    ]
    part = replace(way, leaves=leaves, steps=[step[:_ROWS] for step in way.steps])
    try:
        fits = len(part.value(0.0)) == _ROWS
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
        leaves = [leaf.double() if _floats(leaf) else leaf for leaf in way.leaves]
        steps = [step.double() for step in way.steps]
        made = Through(module, way.structure, leaves, way.places, steps, way.draws, double=True)
        with torch.no_grad():
            outputs = [part for part in tree_flatten(made.raw(made.base))[0] if _floats(part)]
    except (
        Exception
    ):  # a user's module may raise anything in float64: then it is measured in its own precision
        return way
    if not outputs or any(part.dtype is not torch.float64 for part in outputs):
        return way
    return made


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 0 and leaf.numel() > 0
