"""The binarization test: an attack has to find an adversarial example that is known to exist.

An input and points drawn at the edge of the ball of 0.95 eps get one class, and one point at the edge of the whole ball
the other, by a linear readout of the features before the last layer that separates them. Then the same attack is run on
the features with that readout. What it does not find, it would not find on the classifier either.

Reference: Zimmermann et al. 2022, arXiv:2206.13991.

Differs from the paper: the threshold on the success is ours, 0.95, and red begins where the upper end of the Wilson
interval lies below it, while a success below 0.95 whose interval reaches it is open; the test is called too easy where
200 random points do as well as the attack, by McNemar's exact test; fewer inner points where the readout cannot
separate them; a detector has no readout here.
"""

import math
from dataclasses import fields, replace
from time import perf_counter
from typing import final

import torch
from torch import Tensor, nn

from calipers.attacks.base import Attack
from calipers.attacks.box import told_already
from calipers.attacks.random_search import RandomSearch
from calipers.attacks.view import OutOfTime, Trace
from calipers.diagnostics.capture import capture
from calipers.diagnostics.case import Case, given_up_at
from calipers.errors import CalipersError
from calipers.evidence.records import Finding
from calipers.statistics.intervals import wilson_interval
from calipers.statistics.tests import binomial_upper_tail
from calipers.target import Access, Target
from calipers.threat.threat_model import Norm, ThreatModel

__all__ = ["binarization", "last_layer"]

_INNER = (200, 100, 50, 20)
_SHARE = 0.95
_PASS = 0.95
_ALIKE = 0.05
_CLOSE = 0.999
_MOST = 64


def binarization(case: Case, *, seconds: float) -> Finding:
    """Run the test on as many inputs as the time suffices for.

    Args:
        case: the case.
        seconds: how long it may take, about.

    Returns:
        The finding; its statistic is the attack's success, with that of 200 random points beside it.

    Raises:
        OutOfTime: if it was given up on the first input.
    """
    name, began = "binarization", perf_counter()
    if case.target.access < Access.GRADIENTS or case.target.stochastic:
        return case.finding(name, math.nan, _PASS, None, "it needs a network that is not randomized")
    if case.threat.norm not in (Norm.LINF, Norm.L2):
        return case.finding(
            name, math.nan, _PASS, None, f"it is made for linf and l2, and not {case.threat.norm}"
        )
    if case.target.detector:
        return case.finding(name, math.nan, _PASS, None, "the readout would stand without the detector")
    path = last_layer(case.target, case.x[:2])
    if path is None:
        return case.finding(name, math.nan, _PASS, None, "the last layer takes the input itself")
    solved, random = list[bool](), list[bool]()
    for row in range(min(len(case.x), _MOST)):
        if len(solved) >= 2 and (perf_counter() - began) * (1 + 1 / len(solved)) > seconds:
            break
        made = _binarized(case, path, row)
        if made is None:
            continue
        until = given_up_at(began, seconds)
        try:
            fell = _falls(case, case.attack, made, row, until)
            hit = _falls(case, RandomSearch(queries=200, where="corners"), made, row, until)
        except OutOfTime:
            if not solved:
                raise
            break
        except CalipersError as problem:
            return case.finding(name, math.nan, _PASS, None, str(problem))
        solved.append(fell)
        random.append(hit)
    spent = perf_counter() - began
    if not solved:
        told = "no readout separates the points"
        return case.finding(name, math.nan, _PASS, None, told, seconds=spent)
    return _judged(case, solved, random, spent)


def _judged(case: Case, solved: list[bool], random: list[bool], spent: float) -> Finding:
    tried, count = len(solved), sum(solved)
    interval = wilson_interval([count], [tried])
    low, high = float(interval.lower[0]), float(interval.upper[0])
    ahead = sum(one and not other for one, other in zip(solved, random, strict=True))
    behind = sum(other and not one for one, other in zip(solved, random, strict=True))
    alike = float(binomial_upper_tail(ahead, ahead + behind, 0.5)) > _ALIKE
    words = (
        f"success where one adversarial example exists: {count} of {tried}, between {low:.2f} and {high:.2f} (95 %); "
        f"200 random points: {sum(random)}"
    )
    red: bool | None = high < _PASS
    if not red and alike:
        red, words = None, f"{words}, which do as well: the test is too easy"
    if red is False and (count < _PASS * tried or case.scant(tried)):
        red = None
    power = f"{tried} inputs"
    return case.finding("binarization", count / tried, _PASS, red, words, power=power, seconds=spent)


def last_layer(target: Target, x: Tensor) -> str | None:
    """Find the module that turns features into scores: the last one that gets more numbers than there are classes.

    Args:
        target: the classifier.
        x: some inputs.

    Returns:
        Its path; None where it takes the input itself.
    """
    from calipers.randomness import Draws, Role

    found = capture(target.module, x, Draws(0, Role.MODEL, tuple(range(len(x)))))
    for path, call in reversed(found.calls.items()):
        given = call.arguments[0] if call.arguments else None
        if not path or list(call.module.children()) or not isinstance(given, Tensor) or len(given) != len(x):
            continue
        if given[0].numel() > target.num_classes and given.is_floating_point():
            return None if given.shape == x.shape and torch.equal(given, x) else path
    return None


@final
class _Binarized(nn.Module):
    """The features of a network with a linear readout of two classes."""

    weight: Tensor
    bias: Tensor

    def __init__(self, body: nn.Module, path: str, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.body, self.path = body, path
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def features(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            kept.append(arguments[0])

        handle = self.body.get_submodule(self.path).register_forward_pre_hook(keep)
        try:
            self.body(x)
        finally:
            handle.remove()
        return kept[-1].flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.features(x)
        score = found.to(self.weight.dtype) @ self.weight + self.bias
        return torch.stack([-score / 2, score / 2], 1).float()


def _binarized(case: Case, path: str, row: int) -> Target | None:
    """Make the two-class problem of one input; None where no readout separates its points."""
    eps, bounds, norm = case.threat.eps or 0.0, case.target.bounds, case.threat.norm
    x, stream = case.x[row : row + 1], case.draws([row])[0]
    points = RandomSearch(where="corners")  # both at the edge: else mere size would tell them apart
    body = case.target.module
    count = _INNER[0]
    shape = (count - 1, *x.shape[1:])
    inner = points._points(x[0], shape, ThreatModel(norm, _SHARE * eps), bounds, stream.generator(1))
    outer = points._points(x[0], (1, *x.shape[1:]), ThreatModel(norm, eps), bounds, stream.generator(2))
    probe = _Binarized(body, path, torch.zeros(1), torch.zeros(()))
    with torch.no_grad():
        found = probe.features(torch.cat([outer, x, inner])).double()
        spread = case.target.logits(x).double()
    for size in _INNER:
        fitted = _separate(found[: size + 1])
        if fitted is not None:
            weight, bias = fitted
            scores = found[: size + 1] @ weight + bias
            near = float(scores[1:].max())
            cut = near + _CLOSE * (float(scores[0]) - near)
            wide = float((scores[0] - scores[1:].mean()).clamp_min(1e-12))
            scale = max(float(spread.max() - spread.mean()), 1e-3) / wide
            net = _Binarized(body, path, weight * scale, torch.as_tensor((bias - cut) * scale))
            made = Target(
                net.eval(),
                num_classes=2,
                input_shape=case.target.input_shape,
                bounds=bounds,
                device=case.target.device,
                probe=False,
            )
            return (
                made
                if bool((made.predict(x) == 0).all()) and bool((made.predict(outer) == 1).all())
                else None
            )
    return None


def _separate(points: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fit a logistic readout with the first point on one side and all others on the other; None if it cannot be."""
    middle, spread = points.mean(0), points.std(0).clamp_min(1e-6)
    plain = (points - middle) / spread
    sign = -torch.ones(len(points), dtype=points.dtype, device=points.device)
    sign[0] = 1
    share = torch.where(sign > 0, 0.5, 0.5 / (len(points) - 1))
    weight = plain[0].clone().requires_grad_(True)
    bias = torch.zeros((), dtype=points.dtype, device=points.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        scores = plain @ weight + bias
        loss = (share * nn.functional.softplus(-sign * scores)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    found = weight.detach() / spread
    shift = bias.detach() - middle @ found
    scores = points @ found + shift
    if not bool(torch.isfinite(scores).all()) or float(scores[0]) <= float(scores[1:].max()):
        return None
    return found, shift


def _falls(case: Case, attack: Attack, made: Target, row: int, until: float) -> bool:
    if any(each.name == "loss" for each in fields(attack)) and vars(attack)["loss"] == "dlr":
        attack = replace(attack, loss="margin")  # type: ignore[call-arg]
    x, label = case.x[row : row + 1], torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel(case.threat.norm, case.threat.eps)
    trace = Trace(until=until)
    with told_already():
        return bool(attack(made, x, label, threat, seed=case.seed, indices=[row], trace=trace).success[0])
