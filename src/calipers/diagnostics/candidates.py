"""Candidates: the views of the gradient that the findings suggest, the likeliest first."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from calipers.diagnostics.capture import Pass, capture
from calipers.diagnostics.case import Case
from calipers.diagnostics.substitutes import Substitute, ancestors, learned_for, substitutes_for
from calipers.gradients.bpda import BPDA
from calipers.gradients.double import Double
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.gradients.finite_differences import NES
from calipers.gradients.transformations import AdditiveNoise
from calipers.target import Access

__all__ = ["MARGIN", "Candidate", "Suspects", "candidates"]

MARGIN = "The margin is the loss: it does not saturate."
"""Why the loss is what it is, wherever it is not flat."""

_NOISE = 0.5
_NEIGHBOURS, _DIRECTIONS = 20, 64


class Suspects(NamedTuple):
    """What the findings blame.

    Args:
        hiding: modules that shatter, explode or vanish the gradient.
        noisy: modules that draw at random.
    """

    hiding: frozenset[str]
    noisy: frozenset[str]


@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to have the gradient.

    Args:
        what: in words.
        single: how one gradient is had, of one draw.
        reasons: what speaks for it, a sentence each.
        draws: over how many draws, neighbours or directions it is averaged as it stands; 0 where there is nothing to
            be averaged, and -1 where that is still to be measured.
        over: the neighbours, where it is averaged over them.
        sigma: the step of differences of scores, where there is no gradient at all; 0 for a gradient.
        loss: what is followed: the margin, or the cross-entropy where the margin is flat.
    """

    what: str
    single: GradientEstimator
    reasons: tuple[str, ...] = ()
    draws: int = 0
    over: AdditiveNoise | None = None
    sigma: float = 0.0
    loss: Literal["margin", "cross_entropy"] = "margin"

    @property
    def least(self) -> int:
        """The fewest draws that make sense."""
        return (8 if self.sigma else 4 if self.over else 1) if self.draws else 0

    def rows(self, draws: int) -> int:
        """Count the rows that pass through the network for one gradient of one input.

        Args:
            draws: the average is over so many.

        Returns:
            The rows.
        """
        return 2 * draws + 1 if self.sigma else max(draws, 1)

    def view(self, draws: int) -> GradientEstimator:
        """Make the estimator.

        Args:
            draws: the average is over so many.

        Returns:
            The estimator.
        """
        if self.sigma:
            return NES(draws, sigma=self.sigma)
        if self.over is not None:
            return EOT(draws, inner=self.single, over=self.over)
        return EOT(draws, inner=self.single) if draws > 1 else self.single

    def words(self, draws: int) -> str:
        """Say it in words.

        Args:
            draws: the average is over so many.

        Returns:
            The words.
        """
        averaged = draws > 1 and not self.sigma and self.over is None
        loss = "" if self.loss == "margin" else " of the cross-entropy"
        return self.what + loss + (f", averaged over {draws} draws" if averaged else "")


def candidates(
    case: Case, suspects: Suspects, *, seconds: float, told: Callable[[str], None]
) -> Iterator[Candidate]:
    """Give the views that the findings suggest, the likeliest first; the plain one before all.

    Args:
        case: the case, whose inputs serve to look at the modules.
        suspects: the modules that the findings blame.
        seconds: how long the fits of surrogates may take together, about.
        told: told in words what is being done.

    Yields:
        The candidates.
    """
    random = bool(suspects.noisy) or case.target.stochastic
    draws = -1 if random else 0
    yield Candidate("the plain gradient", Autograd(), (MARGIN,), draws)
    if case.target.access is Access.GRADIENTS:
        for chosen in _Replaced(case, suspects, seconds, told).choices():
            yield _with(chosen, draws)
    size = case.coordinate
    if not random:
        if case.target.access is Access.GRADIENTS:
            why = "The gradient is computed in float64, which rounds less of it to 0."
            yield Candidate("the plain gradient in float64", Double(), (why,))
        yield Candidate(
            "the gradient averaged over neighbours",
            Autograd(),
            ("The gradient is averaged over neighbours, so that jumps do not matter.",),
            _NEIGHBOURS,
            AdditiveNoise("gaussian", _NOISE * size),
        )
    yield Candidate(
        "differences of scores",
        Autograd(),
        ("The gradient is had from differences of scores, which nothing hides.",),
        _DIRECTIONS,
        sigma=size / 2,
    )


class _Replaced:
    """The choices of stand-ins, one for each module that must have one."""

    def __init__(self, case: Case, suspects: Suspects, seconds: float, told: Callable[[str], None]) -> None:
        self._net, self._images = case.target.module, case.x
        self._draws = case.draws(range(len(case.x)))
        self._size = case.coordinate
        self._hidden = sorted(suspects.hiding)
        self._both = sorted(suspects.hiding | suspects.noisy)
        self._more_noisy = bool(suspects.noisy - suspects.hiding)
        self._seconds, self._told = seconds, told
        self._pass: Pass | None = None

    def choices(self) -> Iterator[Sequence[Substitute]]:
        """Give the quick stand-ins first, then those that are learned, then those of the modules around."""
        if not self._both:
            return
        options = {path: self._quick(path) for path in self._both}
        firsts = [options[path][0] for path in self._hidden if options[path]]
        if len(firsts) == len(self._hidden) and firsts:
            yield firsts
        for path in self._hidden:
            for other in options[path][1:]:
                yield from _joined(options, self._hidden, path, other)
        bare = [options[path][0] for path in self._both if options[path]]
        if self._more_noisy and len(bare) == len(self._both):
            yield bare
        for path in self._hidden:
            if _joined(options, self._hidden, path, None):
                for other in self._learned(path):
                    yield from _joined(options, self._hidden, path, other)
        yield from self._around()

    def _around(self) -> Iterator[Sequence[Substitute]]:
        known = [path.removeprefix("net.") for path, _ in self._net.named_modules() if path]
        nearest = [ancestors(path, known)[:1] for path in self._hidden]
        if not self._hidden or not all(nearest):
            return
        places = sorted({each[0] for each in nearest})
        outer = [
            place
            for place in places
            if not any(place.startswith(f"{other}.") for other in places if other != place)
        ]
        quick = [self._quick(place) for place in outer]
        if all(quick):
            yield [each[0] for each in quick]
        fitted = [self._learned(place) for place in outer]
        if all(fitted):
            yield [each[0] for each in fitted]

    def _seen(self) -> Pass:
        if self._pass is None:
            self._pass = capture(self._net, self._images, self._draws)
        return self._pass

    def _quick(self, path: str) -> tuple[Substitute, ...]:
        return substitutes_for(self._net, path, self._images, self._draws, eps=self._size, seen=self._seen())

    def _learned(self, path: str) -> list[Substitute]:
        self._told(f"learning what {path} does")
        share = self._seconds / len(self._both)
        found = learned_for(
            self._net, path, self._images, self._draws, eps=self._size, seconds=share, seen=self._seen()
        )
        return [] if found is None else [found]


def _joined(
    options: dict[str, tuple[Substitute, ...]], hidden: list[str], path: str, other: Substitute | None
) -> list[list[Substitute]]:
    """Join a stand-in of one module with the likeliest of the others, if all of those have one."""
    rest = [options[each][0] for each in hidden if each != path and options[each]]
    if len(rest) < len(hidden) - 1:
        return []
    return [[*rest, other] if other is not None else rest]


def _with(chosen: Sequence[Substitute], draws: int) -> Candidate:
    what = "BPDA with " + ", ".join(f"{each.what} for {each.path}" for each in chosen)
    reasons = tuple(f"{each.path} gets {each.what} as backward: {each.why}." for each in chosen)
    return Candidate(what, BPDA({each.path: each.function for each in chosen}), reasons, draws)
