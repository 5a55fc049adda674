"""What is measured of every module of a network by itself, and how it hides a gradient by that.

Each module is run between what it was given at two points of the ball around each input. A module that takes long is
measured on fewer inputs. One whose parts explain what it does to the gradient is not looked at again.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.certificates.smoothing.smoothed import SmoothedTarget
from calipers.diagnostics.capture import Pass, capture
from calipers.diagnostics.through import Through, across, between, fewer
from calipers.randomness import Draws, Role, check_seed
from calipers.target import Access, Target
from calipers.threat.norms import sample
from calipers.threat.threat_model import ThreatModel

__all__ = [
    "EXPLODES",
    "JUMP",
    "KINDS",
    "MISMATCH",
    "MOST_ROWS",
    "RANDOM",
    "REUSED",
    "VANISHES",
    "Kind",
    "Measured",
    "measure_modules",
]

Kind = Literal["shattered", "stochastic", "exploding", "vanishing"]

KINDS: Final[tuple[Kind, ...]] = ("shattered", "stochastic", "exploding", "vanishing")
"""The ways in which a module hides a gradient."""

RANDOM: Final = 1e-6
"""From what change between two calls with one input a module is random."""
MISMATCH: Final = {True: 0.1, False: 0.5}
"""From what disagreement a derivative is wrong; in float64, and in less."""
JUMP: Final = {True: 1e-3, False: 0.05}
"""From what share of the change a jump is one, likewise."""
EXPLODES: Final = 100.0
"""From what ratio of predicted to true change a derivative explodes."""
VANISHES: Final = 1e-3
"""Below what ratio it vanishes."""
REUSED: Final = 8
"""From how many uses of one weight in one pass a computation is long."""
MOST_ROWS: Final = 8
"""How many inputs are looked at."""

_HALVINGS: Final = {True: (30, 45), False: (12, 18)}
_CALLS = 65
_OVERHEAD = 1e-3


@final
@dataclass(frozen=True)
class Measured:
    """What was measured of one module.

    Args:
        place: its path in the target's own module, in which the network is called ``net``.
        layer: the name of its class.
        differs: the largest change of its output from one call to another with the same input, over the size of the
            output.
        random: whether it, or a module inside it, draws at random.
        around: whether a module inside it does.
        present: whether autograd gave a derivative.
        mismatch: by which share derivative and finite differences disagree, the median over rows; NaN if not measured.
        jump: the share of the change of its output that is left when the way is halved to nothing, likewise; NaN too
            where it decides nothing, or where the time did not suffice.
        ratio: the change that the derivative predicts over the change that happens, likewise.
        gain: the change that happens over the spread of the outputs, over the same for the inputs, likewise.
        reuse: how often the most used weight inside it was used in one pass.
        backwards: backward operations that ran inside it in one forward pass.
        double: whether it was measured in float64.
        rows: on how many inputs this was measured.
        matters: whether its output changes between the inputs at all, for a reason that is not in a module inside it.
        why: what autograd said where it refused.
    """

    place: str
    layer: str
    differs: float = 0.0
    random: bool = False
    around: bool = False
    present: bool = True
    mismatch: float = math.nan
    jump: float = math.nan
    ratio: float = math.nan
    gain: float = math.nan
    reuse: int = 0
    backwards: int = 0
    double: bool = True
    rows: int = 0
    matters: bool = True
    why: str = ""

    @property
    def path(self) -> str:
        """Its path in the network, as :class:`~calipers.gradients.bpda.BPDA` names it."""
        return _shown(self.place)

    @property
    def deep(self) -> bool:
        """Whether it runs backward passes of its own, or uses the same weights over and over."""
        return self.backwards > 0 or self.reuse >= REUSED

    @property
    def silent(self) -> bool:
        """Whether autograd gives a derivative of 0 and no other."""
        return self.present and self.ratio == 0

    @property
    def wrong(self) -> bool:
        """Whether its derivative disagrees with the differences of its outputs, for a reason that is its own.

        Random modules inside one choose otherwise at the smallest step, more often the more there are of them: then the
        differences are those of the choices, and say nothing unless the derivative is 0.
        """
        return self.mismatch > MISMATCH[self.double] and (self.silent or not self.around)

    @property
    def asks_for_jumps(self) -> bool:
        """Whether all else that was measured leaves open if the output jumps."""
        settled = self.ratio > EXPLODES or self.wrong
        return self.matters and self.present and not settled and (self.silent or not self.random)

    @property
    def open(self) -> bool:
        """Whether the time did not suffice to say that the output does not jump."""
        return self.asks_for_jumps and math.isnan(self.jump) and not self.silent

    def within(self, place: str) -> bool:
        """Say whether it lies inside another module.

        Args:
            place: that of the other.

        Returns:
            The answer; no module lies inside itself.
        """
        return self.place.startswith(f"{place}.")

    def hides(self) -> tuple[Kind, ...]:
        """Say how this module hides a gradient, by the thresholds of this file."""
        found: list[Kind] = []
        if self.matters and not self.present:
            if self.backwards == 0:
                found.append("shattered")
            if self.deep:
                found.append("vanishing")
        elif self.matters:
            # an output that changes without a derivative jumps somewhere, unless it is seen not to
            jumps = self.asks_for_jumps and (
                self.jump > JUMP[self.double] or (self.silent and math.isnan(self.jump))
            )
            if self.ratio > EXPLODES:  # too steep for finite differences to say more
                found.append("exploding")
            elif self.wrong or jumps:
                found.append("shattered")
                if (self.deep and self.silent) or 0 < self.ratio < VANISHES:
                    found.append("vanishing")
            elif (self.ratio < VANISHES and (self.silent or not self.around)) or self.gain < VANISHES:
                found.append("vanishing")
        if self.differs > RANDOM:
            found.append("stochastic")
        return tuple(kind for kind in KINDS if kind in found)


def measure_modules(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    threat: ThreatModel,
    *,
    seed: int = 0,
    budget: float = 20.0,
) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """Measure every module of a network, the innermost first, and the user's own before those of torch.

    Args:
        target: the classifier.
        x: inputs.
        threat: norm and size of the perturbations.
        seed: of every draw.
        budget: seconds, about; each module has a share by the time that it takes in a forward pass.

    Returns:
        What was measured; and the paths that the time did not suffice for, or that torch.jit compiled.
    """
    check_seed(seed)
    net = _network(target)
    if net is None or not len(x):
        return (), ()
    rows = x[:MOST_ROWS].detach().to(target.device).float()
    draws = Draws(seed, Role.MODEL, tuple(range(len(rows))))
    capture(
        nn.Identity(), rows[:1], draws.of([0])
    )  # what torch loads for it the first time is not the network's
    start = time.perf_counter()
    one, other = (_nearby(rows, threat, target.bounds, draws.fold(turn)) for turn in (0, 1))
    pass_one = capture(net, one, draws.fold(2))
    pass_other = capture(net, other, draws.fold(2), counting=False)
    measured: list[Measured] = []
    left: list[str] = []
    paths = sorted((path for path in pass_one.calls if path), key=lambda path: _turn(pass_one, path))
    costs = [_cost(pass_other, path) / pass_one.times[path] for path in paths]
    for place, path in enumerate(paths):
        spare = budget - (time.perf_counter() - start)
        if spare <= 0:
            left.append(_shown(path))
            continue
        inside = [each for each in measured if each.within(path)]
        # cheap modules need none of their part, so that it may be an equal one
        share = spare * max(costs[place] / sum(costs[place:]), 1 / len(costs[place:]))
        measured.append(
            _measure(path, pass_one, pass_other, draws.fold(3 + place), inside, seconds=share, seed=seed)
        )
    return tuple(measured), (*left, *_compiled(net))


def _compiled(net: nn.Module) -> list[str]:
    # no hook shows what these are given
    found = [path for path, module in net.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    return [_shown(path) for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _turn(seen: Pass, path: str) -> tuple[int, int]:
    """Say when a module is measured: what calls no other first, and torch's own layers behind those of the user."""
    module = seen.calls[path].module
    if next(module.children(), None) is not None:
        return 2, -path.count(".")
    return int(type(module).__module__.startswith("torch.nn")), 0


def _cost(seen: Pass, path: str) -> float:
    # a module around one that explains it is called a few times, to see if it draws
    return seen.own[path] + seen.seconds[path] / 10 + _OVERHEAD


def _measure(
    path: str,
    one: Pass,
    other: Pass,
    draws: Draws,
    inside: Sequence[Measured],
    *,
    seconds: float,
    seed: int,
) -> Measured:
    call = one.calls[path]
    base = Measured(
        path,
        type(call.module).__name__,
        reuse=one.reuse.get(path, 0),
        backwards=one.backwards[path],
    )
    known = {kind for each in inside for kind in each.hides()}
    explained = bool(known & {"shattered", "exploding", "vanishing"})
    base = replace(base, random="stochastic" in known, around="stochastic" in known)
    if explained and base.random:
        return replace(base, matters=False)
    began = time.perf_counter()
    once = other.seconds[path] / one.times[path]
    way = between(call, other.calls.get(path), draws, rows=_rows(once, seconds), seed=seed)
    if way is None:
        return replace(base, matters=False)
    way, first, each = _affordable(way, seconds)
    base = replace(base, double=way.double, rows=len(way.base[0]))
    if not base.random:
        differs = _differs(way, first)
        base = replace(base, differs=differs, random=differs > RANDOM)
    if explained:
        return replace(base, matters=False)
    last = way.value(1.0)
    if not _moves(first, last):
        # a saturated module may give one output everywhere in the ball; from one input to the next it does not
        way = across(way)
        last = way.value(1.0)
        if not _moves(first, last):
            return replace(base, matters=False)
    slopes = way.slopes(cotangents=6 if _CALLS * each < seconds / 2 else 2, seed=seed)
    if not slopes.present:
        return replace(base, present=False, why=slopes.refusal)
    length = (last - first).norm(dim=1)
    moved = length > 0
    base = replace(
        base,
        mismatch=float(slopes.mismatch.median()) if slopes.finite else 1.0,
        ratio=float((slopes.predicted[moved] / length[moved]).median()),
        gain=_gain(way, first, length),
    )
    least, most = _HALVINGS[way.double]
    halvings = int((seconds - (time.perf_counter() - began)) / max(each, 1e-6))
    if not base.asks_for_jumps or halvings < least:
        return base
    jump = way.jump(first, last, halvings=min(most, halvings), until=JUMP[way.double] / 100)
    return replace(base, jump=float(jump[moved if len(jump) == len(moved) else ...].median()))


def _rows(once: float, seconds: float) -> int:
    """Say on how many inputs a module may be run in some time, where one run on all of them takes so long."""
    rows = MOST_ROWS
    while rows > 2 and _CALLS * once * rows / MOST_ROWS > seconds:
        rows //= 2
    return rows


def _affordable(way: Through, seconds: float) -> tuple[Through, Tensor, float]:
    """Take fewer inputs as long as a module takes too long for the time, and run it once."""
    while True:
        began = time.perf_counter()
        first = way.value(0.0)
        each = time.perf_counter() - began
        rows = len(way.base[0])
        part = fewer(way, rows // 2) if rows >= 4 and _CALLS * each > seconds else way
        if part is way:
            return way, first, each
        way = part


def _gain(way: Through, first: Tensor, length: Tensor) -> float:
    inputs, outputs = way.spread(first)
    if len(length) < 2 or not (inputs > 0 and outputs > 0):
        return math.nan
    return float(((length / outputs) / (way.change().cpu() / inputs)).median())


def _moves(first: Tensor, last: Tensor) -> bool:
    return bool(((last - first).norm(dim=1) > 1e-12 * first.norm(dim=1)).any())


def _differs(way: Through, first: Tensor) -> float:
    # other draws of the same input; a module that draws once for a batch shows it in some row at least
    size = float(first.norm(dim=1).mean().clamp_min(1e-12))
    apart = [(way.value(0.0, draws=way.draws.fold(turn)), first) for turn in (1, 2)]
    return max(
        float((again - begun).norm(dim=1).max()) / size if again.shape == begun.shape else math.inf
        for again, begun in apart
    )


def _shown(path: str) -> str:
    return path.removeprefix("net.")


class _Noisy(nn.Module):
    """Adds fresh noise to each input, as one draw of a smoothed classifier does; only its scale is the noise's own."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x)


def _network(target: Target) -> nn.Module | None:
    if isinstance(target, SmoothedTarget):
        if target.base.access < Access.GRADIENTS:
            return None
        whole = nn.Sequential()
        whole.add_module("noise", _Noisy(target.noise.scale))
        whole.add_module("base", target.base.module)
        return whole.eval()
    return target.module if target.access is Access.GRADIENTS else None


def _nearby(x: Tensor, threat: ThreatModel, bounds: tuple[float, float], draws: Draws) -> Tensor:
    low, high = bounds
    eps = (high - low) / 20 if threat.eps is None or threat.eps == 0 else threat.eps
    moved = [
        sample((1, *x.shape[1:]), torch.full((1,), eps), threat.norm, draws[row].generator(0)).to(x)
        for row in range(len(x))
    ]
    return (x + torch.cat(moved)).clamp(low, high)
