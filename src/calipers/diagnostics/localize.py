"""localize: which named module shatters, randomizes, explodes or vanishes the gradient, each with its statistic.

Every module is run by itself, between what it was given at two points of the ball around each input:

- **stochastic**: it gives another output when it is called again with the same input.
- **shattered**: autograd refuses it or gives no derivative while its output changes; or the derivative disagrees with
  small finite differences; or its output jumps, which halving the way between the two inputs shows, however steep a
  continuous function is. The jumps of a random module may be those of its own choices, so they count there only where
  its derivative is 0.
- **exploding, vanishing**: the derivative predicts a change of the output that is larger, or smaller, by orders of
  magnitude than the change between the two inputs; or a change that the module makes smaller by orders of magnitude
  against what tells inputs apart.
- a module that runs backward passes of its own, or uses the same weights over and over in one pass, and gives no
  derivative, is a deep computation whose gradient is lost: vanishing.

A module is named where no module inside it explains the same.

Reference: Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.certificates.smoothing.smoothed import SmoothedTarget
from calipers.diagnostics.capture import Pass, capture
from calipers.diagnostics.through import Through, across, between
from calipers.evidence.records import Answer, Finding
from calipers.randomness import Draws, Role, check_seed
from calipers.target import Access, Target
from calipers.threat.norms import sample
from calipers.threat.threat_model import ThreatModel

__all__ = ["KINDS", "Kind", "Measured", "localize", "measure_modules"]

Kind = Literal["shattered", "stochastic", "exploding", "vanishing"]

KINDS: Final[tuple[Kind, ...]] = ("shattered", "stochastic", "exploding", "vanishing")
"""The ways in which a module hides a gradient."""

_ROWS = 8
_LISTED = 6
_DIFFERS: Final = 1e-6
_MISMATCH: Final = {True: 0.1, False: 0.5}
_JUMP: Final = {True: 1e-3, False: 0.05}
_HALVINGS: Final = {True: 45, False: 18}
_EXPLODES: Final = 100.0
_VANISHES: Final = 1e-3
_REUSED: Final = 8


@final
@dataclass(frozen=True)
class Measured:
    """What was measured of one module.

    Args:
        path: its path in the network, as :class:`~calipers.gradients.bpda.BPDA` names it.
        layer: the name of its class.
        differs: the largest change of its output from one call to another with the same input, over the size of the
            output.
        random: whether it, or a module inside it, draws at random.
        present: whether autograd gave a derivative.
        mismatch: by which share derivative and finite differences disagree, the median over rows; NaN if not measured.
        jump: the share of the change of its output that is left when the way is halved to nothing, likewise.
        ratio: the change that the derivative predicts over the change that happens, likewise.
        gain: the change that happens over the spread of the outputs, over the same for the inputs, likewise.
        reuse: how often the most used weight inside it was used in one pass.
        backwards: backward operations that ran inside it in one forward pass.
        double: whether it was measured in float64.
        matters: whether its output changes between the inputs at all.
        why: what autograd said where it refused.
    """

    path: str
    layer: str
    differs: float = 0.0
    random: bool = False
    present: bool = True
    mismatch: float = math.nan
    jump: float = math.nan
    ratio: float = math.nan
    gain: float = math.nan
    reuse: int = 0
    backwards: int = 0
    double: bool = True
    matters: bool = True
    why: str = ""

    @property
    def deep(self) -> bool:
        """Whether it runs backward passes of its own, or uses the same weights over and over."""
        return self.backwards > 0 or self.reuse >= _REUSED

    def hides(self) -> tuple[Kind, ...]:
        """Say how this module hides a gradient, by the thresholds of this file."""
        found: list[Kind] = []
        if self.matters and not self.present:
            if self.backwards == 0:
                found.append("shattered")
            if self.deep:
                found.append("vanishing")
        elif self.matters:
            silent = self.ratio == 0
            jumps = self.jump > _JUMP[self.double] and (silent or not self.random)
            if self.ratio > _EXPLODES:  # too steep for finite differences to say more
                found.append("exploding")
            elif self.mismatch > _MISMATCH[self.double] or jumps:
                found.append("shattered")
                if (self.deep and silent) or 0 < self.ratio < _VANISHES:
                    found.append("vanishing")
            elif self.ratio < _VANISHES or self.gain < _VANISHES:
                found.append("vanishing")
        if self.differs > _DIFFERS:
            found.append("stochastic")
        return tuple(kind for kind in KINDS if kind in found)


def localize(
    target: Target,
    x: Float[Tensor, "batch *dims"],
    threat: ThreatModel,
    *,
    seed: int = 0,
    budget: float = 20.0,
) -> tuple[Finding, ...]:
    """Name the modules that hide the gradient.

    Args:
        target: the classifier; of a smoothed one, a draw is looked at.
        x: inputs, of which the first 8 are used.
        threat: norm and size of the perturbations; a twentieth of the box if it has no size.
        seed: of every draw.
        budget: seconds; modules that are not reached are left open.

    Returns:
        One red finding for each way of each module; one green finding for each way that no module shows, or an open
        one where modules were left out.
    """
    began = time.perf_counter()
    measured, left = measure_modules(target, x, threat, seed=seed, budget=budget)
    seconds = time.perf_counter() - began
    found: list[Finding] = []
    for kind in KINDS:
        blamed = _blamed(measured, kind)
        found += [_red(kind, each) for each in blamed]
        if not blamed:
            found.append(_calm(kind, measured, left, seconds))
    return tuple(found)


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
        budget: seconds.

    Returns:
        What was measured; and the paths that the time did not suffice for.
    """
    check_seed(seed)
    net = _network(target)
    if net is None or not len(x):
        return (), ()
    start, rows = time.perf_counter(), x[:_ROWS].detach().to(target.device).float()
    draws = Draws(seed, Role.MODEL, tuple(range(len(rows))))
    one, other = (_nearby(rows, threat, target.bounds, draws.fold(turn)) for turn in (0, 1))
    pass_one, pass_other = capture(net, one, draws.fold(2)), capture(net, other, draws.fold(2))
    measured: list[Measured] = []
    left: list[str] = []
    paths = sorted((path for path in pass_one.calls if path), key=lambda path: _turn(pass_one, path))
    for place, path in enumerate(paths):
        inside = [each for each in measured if _within(each.path, path)]
        spare = (budget - (time.perf_counter() - start)) / (len(paths) - place)
        if spare <= 0:
            left.append(_shown(path))
            continue
        measured.append(
            _measure(path, pass_one, pass_other, draws.fold(3 + place), inside, spare=spare, seed=seed)
        )
    return tuple(measured), tuple(left)


def _turn(seen: Pass, path: str) -> tuple[int, int]:
    """Say when a module is measured: what calls no other first, and torch's own layers behind those of the user."""
    module = seen.calls[path].module
    if next(module.children(), None) is not None:
        return 2, -path.count(".")
    return int(type(module).__module__.startswith("torch.nn")), 0


def _measure(
    path: str,
    one: Pass,
    other: Pass,
    draws: Draws,
    inside: Sequence[Measured],
    *,
    spare: float,
    seed: int,
) -> Measured:
    call = one.calls[path]
    base = Measured(
        _shown(path),
        type(call.module).__name__,
        reuse=one.reuse.get(path, 0),
        backwards=one.backwards[path],
    )
    way = between(call, other.calls.get(path), draws, seed=seed)
    if way is None:
        return _changed(base, matters=False)
    known = {kind for each in inside for kind in each.hides()}
    began = time.perf_counter()
    first = way.value(0.0)
    each = time.perf_counter() - began
    base = _changed(base, double=way.double)
    if "stochastic" not in known:
        base = _changed(base, differs=_differs(way, first))
    base = _changed(base, random="stochastic" in known or base.differs > _DIFFERS)
    if known & {"shattered", "exploding", "vanishing"}:
        return _changed(base, matters=False)
    change = (way.value(1.0) - first).norm(dim=1)
    if not _moves(change, first):
        # a saturated module may give one output everywhere in the ball; from one input to the next it does not
        way = across(way)
        change = (way.value(1.0) - first).norm(dim=1)
        if not _moves(change, first):
            return _changed(base, matters=False)
    slopes = way.slopes(cotangents=6 if each < spare / 40 else 2, seed=seed)
    if not slopes.present:
        return _changed(base, present=False, why=slopes.refusal)
    halvings = min(_HALVINGS[way.double], max(int(spare / max(each, 1e-6)) - 20, 0))
    jump, length = way.jump(halvings=halvings) if halvings >= 10 else (torch.full((1,), torch.nan), change)
    moved = length > 0
    ratio = slopes.predicted[moved] / length[moved]
    inputs, outputs = way.spread()
    gain = math.nan
    if inputs > 0 and outputs > 0:
        gain = (
            float(((length / outputs) / (way.change().cpu() / inputs)).median())
            if len(length) > 1
            else math.nan
        )
    return _changed(
        base,
        mismatch=float(slopes.mismatch.median()) if slopes.finite else 1.0,
        jump=float(jump[moved].median()) if len(jump) == len(moved) else float(jump.median()),
        ratio=float(ratio.median()),
        gain=gain,
    )


def _moves(change: Tensor, first: Tensor) -> bool:
    return bool((change > 1e-12 * first.norm(dim=1)).any())


def _differs(way: Through, first: Tensor) -> float:
    # other draws of the same input; a module that draws once for a batch shows it in some row at least
    size = float(first.norm(dim=1).mean().clamp_min(1e-12))
    apart = [(way.value(0.0, draws=way.draws.fold(turn)), first) for turn in (1, 2)]
    return max(
        float((again - begun).norm(dim=1).max()) / size if again.shape == begun.shape else math.inf
        for again, begun in apart
    )


def _changed(measured: Measured, **values: object) -> Measured:
    return Measured(**{**measured.__dict__, **values})


def _blamed(measured: Sequence[Measured], kind: Kind) -> list[Measured]:
    guilty = [each for each in measured if kind in each.hides()]
    return [each for each in guilty if not any(_within(other.path, each.path) for other in guilty)]


def _within(inner: str, outer: str) -> bool:
    outer = outer.removeprefix("net.")
    return inner != outer and (outer in ("", "net") or inner.startswith(f"{outer}."))


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


_EXPLAINED: Final[dict[Kind, tuple[str, str]]] = {
    "shattered": (
        "Its gradient is absent or wrong: an attack that believes it goes nowhere.",
        "Replace its backward: BPDA with the identity where it changes its input little, with a smooth stand-in "
        "otherwise.",
    ),
    "stochastic": (
        "The same input gives another output, and another gradient, at each call: one of them says little.",
        "Average the gradient over many draws (EOT), and judge by many fresh draws.",
    ),
    "exploding": (
        "Its derivative promises changes that do not happen: a long computation of which each step feeds the next.",
        "Replace its backward by the identity where it projects (BPDA), or search another variable.",
    ),
    "vanishing": (
        "Its derivative is lost on the way, though the output changes: saturation, or a long computation.",
        "Replace its backward (BPDA), take a loss that does not saturate, or search another variable.",
    ),
}


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_LISTED]) + (", ..." if len(paths) > _LISTED else "")


def _red(kind: Kind, each: Measured) -> Finding:
    statistic, threshold, words = _statistic(kind, each)
    explanation, remedy = _EXPLAINED[kind]
    return Finding(kind, statistic, threshold, "red", words, explanation, remedy, module=each.path)


def _statistic(kind: Kind, each: Measured) -> tuple[float, float, str]:
    match kind:
        case "stochastic":
            return each.differs, _DIFFERS, "change of the output between two calls, over its size"
        case "exploding":
            return each.ratio, _EXPLODES, "predicted change of the output over the change that happens"
        case "vanishing" if each.deep and (not each.present or each.ratio == 0):
            deep = f"{each.reuse} uses of one weight, {each.backwards} backward operations in one forward"
            return float(each.reuse), float(_REUSED), f"no derivative through a long computation ({deep})"
        case "vanishing" if each.ratio < _VANISHES:
            return each.ratio, _VANISHES, "predicted change of the output over the change that happens"
        case "vanishing":
            return each.gain, _VANISHES, "change of the output over its spread, over the same of the input"
    if not each.present:
        why = f": {each.why}" if each.why else ""
        return 0.0, 1.0, f"derivatives that autograd gives{why}"
    if each.jump > _JUMP[each.double]:
        return each.jump, _JUMP[each.double], "share of the output's change that is a jump"
    return each.mismatch, _MISMATCH[each.double], "disagreement of autograd and finite differences"


def _calm(kind: Kind, measured: Sequence[Measured], left: Sequence[str], seconds: float) -> Finding:
    if not measured and not left:
        return Finding(
            kind,
            math.nan,
            math.nan,
            "open",
            "nothing",
            "The classifier shows no modules: ask for the network itself, or attack by scores or decisions alone.",
            "",
            seconds=seconds,
        )
    power = f"{len(measured)} modules, at two points of the ball of {_ROWS} inputs at most"
    verdict: Answer = "green"
    explanation = "No module shows it."
    if left:
        verdict, explanation = (
            "open",
            f"No module shows it, but {len(left)} could not be measured in time: {_listed(left)}.",
        )
    words = "modules that show it"
    return Finding(kind, 0.0, 1.0, verdict, words, explanation, "", power=power, seconds=seconds)
