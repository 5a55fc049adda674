"""Certifiers by randomized smoothing: hard votes (Theorem 1), soft votes (Lipschitz), and the plain prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calipers.certificates.base import Certifier, Progress
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.plan import ExecutionPlan, plan_for
from calipers.certificates.smoothing.radius import convert_radius
from calipers.certificates.smoothing.sampling import Clock, Item, Sampler, tally_scores, tally_votes
from calipers.certificates.smoothing.smoothed import SmoothedTarget, require_smoothed
from calipers.certificates.smoothing.soft import Lemma, MeanBound, certify_means, score_variances
from calipers.certificates.smoothing.stopping import (
    Bound,
    FixedBudget,
    StoppingRule,
    checkpoints,
    decide,
)
from calipers.certificates.smoothing.votes import certify_votes, predict_votes
from calipers.errors import Unsound, UsageError
from calipers.evidence.records import Certificate, Prediction
from calipers.randomness import Role, check_seed
from calipers.target import Target
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

__all__ = ["SoftCertifier", "VoteCertifier", "VotePredictor"]


def _check_sizes(n0: int, n: int, alpha: float) -> None:
    if n0 < 1:
        raise UsageError(f"n0 is {n0}: at least 1 draw is needed to select a class")
    if n < n0:
        raise UsageError(f"n is {n} and n0 {n0}: the estimate needs at least as many draws as the selection")
    if not 0 < alpha < 1:
        raise UsageError(f"alpha is {alpha}: give a failure probability inside (0, 1), such as 0.001")


def _checked(target: Target, inputs: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    for index, x in inputs:
        target.check_inputs(x[None], indices=[index])
        yield index, x


def _pick(selection: NDArray[np.float64], num_classes: int) -> int:
    """The class that the selection sample chose; -1 where every draw failed."""
    return int(selection[:num_classes].argmax()) if selection[:num_classes].any() else ABSTAIN


@final
@dataclass(frozen=True)
class VoteCertifier(Certifier):
    """Certifies a smoothed classifier from hard votes.

    ``n0`` draws select the class and are used for nothing else; ``n`` fresh draws, or fewer under a stopping rule,
    bound its probability from below and, two-sided, every other class's from above.

    Reference: Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918, Theorem 1 and procedure CERTIFY.

    Differs from the paper: two-sided by default; several inputs share a batch; an input may stop early, with bounds
    that hold at any time.

    Args:
        n0: draws of the selection sample.
        n: draws of the estimation sample, or the most of them under :class:`DecideRadii`.
        alpha: the probability that a certificate fails, for each input.
        bound: ``two-sided`` (p_A and p_B) or ``one-sided`` (p_B = 1 - p_A).
        stopping: :class:`FixedBudget` or :class:`DecideRadii`.
    """

    revision: ClassVar[int] = 1

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    bound: Bound = "two-sided"
    stopping: StoppingRule = FixedBudget()

    def __post_init__(self) -> None:
        _check_sizes(self.n0, self.n, self.alpha)
        if self.bound not in ("two-sided", "one-sided"):
            raise UsageError(f"bound is {self.bound!r}: use two-sided or one-sided")

    def stream(
        self,
        target: Target,
        inputs: Iterable[tuple[int, Tensor]],
        threat: ThreatModel,
        *,
        seed: int,
        plan: ExecutionPlan | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Certificate]:
        """Certify inputs as they come; see :class:`Certifier`."""
        smoothed = require_smoothed(target, "hard")
        radius = _radius_function(smoothed, threat.norm)
        classes = smoothed.num_classes
        sampler = Sampler(
            smoothed.base,
            smoothed.noise,
            plan_for(smoothed.base, plan, samples=self.n),
            seed=check_seed(seed),
            tally=tally_votes,
            width=classes + 1,
        )
        clock = Clock(sampler, progress)
        after = _following(checkpoints(self.stopping, self.n))

        def settle(ready: list[Item]) -> list[bool]:
            for item in ready:
                item.selected = _pick(item.selection, classes)
            if isinstance(self.stopping, FixedBudget):
                return [True] * len(ready)
            done = decide(
                np.stack([item.estimate for item in ready]).astype(np.int64),
                stopping=self.stopping,
                selected=np.array([item.selected for item in ready]),
                budget=self.n,
                radius=radius,
                alpha=self.alpha,
                bound=self.bound,
            )
            return [bool(stop) for stop in done]

        for item in sampler.run(
            _checked(smoothed, inputs), n0=self.n0, checkpoints=after, settle=settle, landed=clock.told
        ):
            yield self._conclude(
                smoothed, item, threat.norm, radius, seed, clock.seconds(self.n0 + item.drawn)
            )

    def _conclude(
        self,
        target: SmoothedTarget,
        item: Item,
        norm: Norm,
        radius: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
        seed: int,
        seconds: float,
    ) -> Certificate:
        counts = item.estimate.astype(np.int64)
        found = certify_votes(
            counts,
            selected=item.selected,
            radius=radius,
            alpha=self.alpha,
            bound=self.bound,
            stopping=self.stopping,
            budget=self.n,
            theorem=target.noise.theorem,
        )
        return Certificate(
            index=item.index,
            label=-1,
            prediction=found.prediction,
            method=repr(self),
            target=target.fingerprint,
            input_digest="",
            seed=seed,
            seconds=seconds,
            radius=found.radius,
            norm=norm.value,
            alpha=self.alpha,
            bound=self.bound,
            theorem=found.theorem,
            selected=item.selected,
            counts=tuple(int(count) for count in counts),
            selection=tuple(int(count) for count in item.selection),
            p_lower=found.p_lower,
            p_upper=found.p_upper,
            samples=int(counts.sum()),
            budget=self.n,
            stopping=repr(self.stopping),
            noise=repr(target.noise),
        )


@final
@dataclass(frozen=True)
class SoftCertifier(Certifier):
    """Certifies a smoothed classifier from mean softmax scores, by the Lipschitz constant of the smoothed scores.

    Reference: Salman et al. 2019, arXiv:1906.04584, Lemma 1 and Lemma 2; ``"tight-constant"`` is Lemma 1 with its best
    constant, 1/sqrt(2 pi sigma^2).

    Args:
        n0: draws of the selection sample.
        n: draws of the estimation sample.
        alpha: the probability that a certificate fails, for each input.
        mean_bound: ``empirical-bernstein`` or ``hoeffding``; Clopper-Pearson holds for votes only.
        lemma: which certificate is made of the bounds.
    """

    revision: ClassVar[int] = 1

    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    mean_bound: MeanBound = "empirical-bernstein"
    lemma: Lemma = "lemma-2"

    def __post_init__(self) -> None:
        _check_sizes(self.n0, self.n, self.alpha)

    def stream(
        self,
        target: Target,
        inputs: Iterable[tuple[int, Tensor]],
        threat: ThreatModel,
        *,
        seed: int,
        plan: ExecutionPlan | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Certificate]:
        """Certify inputs as they come; see :class:`Certifier`."""
        smoothed = require_smoothed(target, "soft")
        if not isinstance(smoothed.noise, Gaussian):
            raise Unsound(
                f"soft votes are certified for Gaussian noise and not for {smoothed.noise!r}: use hard votes"
            )
        convert_radius(1.0, Norm.L2, threat.norm, smoothed.dimension)
        classes = smoothed.num_classes
        sampler = Sampler(
            smoothed.base,
            smoothed.noise,
            plan_for(smoothed.base, plan, samples=self.n),
            seed=check_seed(seed),
            tally=tally_scores,
            width=2 * classes + 1,
        )
        clock = Clock(sampler, progress)

        def settle(ready: list[Item]) -> list[bool]:
            for item in ready:
                item.selected = _pick(item.selection, classes)
            return [True] * len(ready)

        for item in sampler.run(
            _checked(smoothed, inputs),
            n0=self.n0,
            checkpoints=lambda _: self.n,
            settle=settle,
            landed=clock.told,
        ):
            yield self._conclude(smoothed, item, threat.norm, seed, clock.seconds(self.n0 + self.n))

    def _conclude(
        self, target: SmoothedTarget, item: Item, norm: Norm, seed: int, seconds: float
    ) -> Certificate:
        classes = target.num_classes
        sums, squares, failed = np.split(item.estimate, [classes, 2 * classes])
        means = sums / self.n
        variances = score_variances(means, squares, samples=self.n)
        found = certify_means(
            means,
            variances,
            samples=self.n,
            selected=item.selected,
            sigma=target.noise.scale,
            alpha=self.alpha,
            mean_bound=self.mean_bound,
            lemma=self.lemma,
            failed=int(failed[0]),
        )
        radius = float(convert_radius(found.radius, Norm.L2, norm, target.dimension))
        return Certificate(
            index=item.index,
            label=-1,
            prediction=found.prediction,
            method=repr(self),
            target=target.fingerprint,
            input_digest="",
            seed=seed,
            seconds=seconds,
            radius=radius,
            norm=norm.value,
            alpha=self.alpha,
            bound=self.mean_bound,
            theorem=found.theorem,
            selected=item.selected,
            counts=(int(failed[0]),),
            selection=(),
            p_lower=found.p_lower,
            p_upper=found.p_upper,
            samples=self.n,
            budget=self.n,
            stopping=repr(FixedBudget()),
            noise=repr(target.noise),
            votes="soft",
            means=tuple(float(value) for value in means),
            variances=tuple(float(value) for value in variances),
        )


@final
@dataclass(frozen=True)
class VotePredictor:
    """Predicts with a smoothed classifier, and abstains where the votes do not decide.

    Reference: Cohen et al. 2019, arXiv:1902.02918, procedure PREDICT; Hung and Fithian 2019 for its test.

    Args:
        n: draws for each input.
        alpha: the probability, for each input, of a class that is not the smoothed classifier's.
    """

    revision: ClassVar[int] = 1

    n: int = 1000
    alpha: float = 0.001

    def __post_init__(self) -> None:
        _check_sizes(1, self.n, self.alpha)

    def stream(
        self,
        target: Target,
        inputs: Iterable[tuple[int, Tensor]],
        *,
        seed: int,
        plan: ExecutionPlan | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Prediction]:
        """Predict inputs as they come.

        Args:
            target: a smoothed classifier with hard votes.
            inputs: pairs of the index in the data set and the input.
            seed: the seed of the run; the draws are those of the judge.
            plan: how forwards are run; measured here if None.
            progress: told how many forwards were run.

        Yields:
            One prediction an input, in the order in which they are finished.
        """
        smoothed = require_smoothed(target, "hard")
        sampler = Sampler(
            smoothed.base,
            smoothed.noise,
            plan_for(smoothed.base, plan, samples=self.n),
            seed=check_seed(seed),
            tally=tally_votes,
            width=smoothed.num_classes + 1,
            role=Role.JUDGE,
        )
        clock = Clock(sampler, progress)

        def settle(ready: list[Item]) -> list[bool]:
            return [True] * len(ready)

        for item in sampler.run(
            _checked(smoothed, inputs), n0=0, checkpoints=lambda _: self.n, settle=settle, landed=clock.told
        ):
            counts = item.estimate.astype(np.int64)
            yield Prediction(
                index=item.index,
                label=-1,
                prediction=int(predict_votes(counts, alpha=self.alpha)),
                method=repr(self),
                target=smoothed.fingerprint,
                input_digest="",
                seed=seed,
                seconds=clock.seconds(self.n),
                alpha=self.alpha,
                counts=tuple(int(count) for count in counts),
                samples=int(counts.sum()),
                noise=repr(smoothed.noise),
            )


def _radius_function(
    smoothed: SmoothedTarget, norm: Norm
) -> Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]:
    noise, dimension = smoothed.noise, smoothed.dimension
    noise.radius(0.9, 0.1, norm, dimension=dimension)

    def radius(p_lower: NDArray[np.float64], p_upper: NDArray[np.float64]) -> NDArray[np.float64]:
        return noise.radius(p_lower, p_upper, norm, dimension=dimension)

    return radius


def _following(points: tuple[int, ...]) -> Callable[[int], int]:
    """From the draws so far to those of the next checkpoint."""
    after = dict(zip((0, *points), points, strict=False))
    return after.__getitem__
