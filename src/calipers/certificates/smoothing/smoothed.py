"""smooth: a classifier and a noise make a smoothed classifier, which is itself a target."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from calipers.certificates.smoothing.noise import Noise, RoundedGaussian
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.soft import score_variances
from calipers.certificates.smoothing.stopping import CHUNK
from calipers.certificates.smoothing.votes import predict_vote_table
from calipers.errors import ScoresUnavailable, Unsound, UsageError
from calipers.randomness import Draws, Role
from calipers.statistics.intervals import empirical_bernstein_lower, empirical_bernstein_upper
from calipers.target import Access, Target
from calipers.target.fingerprint import fingerprint_values
from calipers.threat.threat_model import ABSTAIN

__all__ = ["SmoothedTarget", "Votes", "require_smoothed", "smooth"]

Votes = Literal["hard", "soft"]

_GROWTH = 5
_LEAST_SCALE = 2.0**-14
"""Scale of the noise over the largest input, from which float32 numbers lie within 1/512 of the scale of each other."""


class SmoothedTarget(Target):
    """The classifier g(x) = argmax_c P(f(x + noise) = c) (hard votes), or argmax_c E f_c(x + noise) (soft votes).

    It is another classifier than f, with another fingerprint. Its ``predict`` estimates g by a finite sample and
    abstains where the sample does not decide; certificates are about g itself.

    Args:
        base: the base classifier f.
        noise: the noise.
        votes: ``hard`` or ``soft``.
        samples: the draws that ``predict`` and ``logits`` take, which are not part of the classifier's identity.
        alpha: the probability with which ``predict`` may give a class that is not g's.
        search_samples: the draws that it takes where an attack asks (draws in the role of a search); ``samples`` if
            None.

    Raises:
        UsageError: if an argument means nothing.
        ScoresUnavailable: if soft votes are asked of a target without scores.
        Unsound: if the base classifier is itself smoothed, there is not one noise, float32 addition to inputs within
            the bounds would round it away, or sound mode is asked for other bounds than [0, 1].
    """

    def __init__(
        self,
        base: Target,
        noise: Noise,
        votes: Votes = "hard",
        *,
        samples: int = 1000,
        alpha: float = 0.001,
        search_samples: int | None = None,
    ) -> None:
        if votes not in ("hard", "soft"):
            raise UsageError(f"votes is {votes!r}: use hard or soft")
        if not isinstance(noise, Noise):
            raise Unsound(
                f"noise is {noise!r}: one noise for all inputs, such as Gaussian(0.25), is one classifier"
            )
        if isinstance(base, SmoothedTarget):
            raise Unsound(f"{base.name} is already smoothed: smooth its base with one noise")
        if isinstance(noise, RoundedGaussian) and base.bounds != (0.0, 1.0):
            raise Unsound(f"sound mode needs inputs in [0, 1] and {base.name} takes {list(base.bounds)}")
        largest = max(abs(bound) for bound in base.bounds)
        if noise.scale < _LEAST_SCALE * largest:
            raise Unsound(
                f"the scale of {noise!r} is too small for inputs up to {largest:g}: float32 addition would round the "
                f"noise away; scale the inputs, or use at least {_LEAST_SCALE * largest:.2g}"
            )
        if votes == "soft" and base.access < Access.SCORES:
            raise ScoresUnavailable(
                f"{base.name} gives decisions only: soft votes need scores, use votes='hard'"
            )
        if min(samples, search_samples or samples) < 1 or not 0 < alpha < 1:
            raise UsageError(
                f"samples is {samples} and alpha {alpha}: give at least 1, and a value inside (0, 1)"
            )
        self.base = base
        self.noise = noise
        self.votes: Votes = votes
        self.samples = samples
        self.search_samples = search_samples or samples
        self.alpha = alpha
        self._set_question(base.num_classes, base.input_shape, base.bounds, base.stochastic, detector=False)
        self.precision = base.precision
        self.device = base.device
        self.name = f"{base.name} smoothed by {noise!r}"
        self.access = Access.DECISIONS if votes == "hard" else Access.SCORES
        self.fingerprint = fingerprint_values([base.fingerprint, repr(noise), votes])
        self._module = None
        self._function = None

    def outcomes(
        self,
        x: Float[Tensor, "batch *dims"],
        *,
        draws: Draws | None = None,
        plan: ExecutionPlan | None = None,
    ) -> Int[Tensor, " batch"]:
        """Estimate g at each input from ``samples`` fresh draws at most; fewer where hard votes are plain early.

        Args:
            x: raw inputs, float32, in input units.
            draws: the source of noise of each input; seed 0 in the role of a search if None; a judge brings its own.
            plan: how forwards are run.

        Returns:
            One outcome an input, int64: its class, or ``num_classes`` where the sample does not decide.
        """
        tallies = self._tallies(x, draws, plan)
        if self.votes == "soft":
            return torch.from_numpy(_decide_means(tallies.numpy(), self._asked(draws), self.alpha))
        level = self.alpha / len(_stages(self._asked(draws)))
        found = torch.from_numpy(predict_vote_table(tallies.numpy().astype("int64"), alpha=level))
        return torch.where(found == ABSTAIN, self.num_classes, found)

    def logits(
        self,
        x: Float[Tensor, "batch *dims"],
        *,
        draws: Draws | None = None,
        plan: ExecutionPlan | None = None,
    ) -> Float[Tensor, "batch columns"]:
        """Estimate the logarithms of the mean scores, for soft votes.

        Args:
            x: raw inputs, float32, in input units.
            draws: the source of noise of each input; seed 0 in the role of a search if None; a judge brings its own.
            plan: how forwards are run.

        Returns:
            Logarithms of the mean softmax scores.

        Raises:
            ScoresUnavailable: for hard votes.
        """
        if self.votes == "hard":
            raise ScoresUnavailable(
                f"{self.name} votes and has no scores: attack it through votes='soft' or its base"
            )
        means = self._tallies(x, draws, plan)[:, : self.num_classes] / self._asked(draws)
        return means.clamp_min(1e-30).log().float()

    def _asked(self, draws: Draws | None) -> int:
        # How many draws an answer takes.
        return self.search_samples if draws is not None and draws.role is Role.SEARCH else self.samples

    def _tallies(self, x: Tensor, draws: Draws | None, plan: ExecutionPlan | None) -> Tensor:
        from calipers.certificates.smoothing.sampling import Item, Sampler, tally_scores, tally_votes

        source = draws or Draws(0, Role.SEARCH, tuple(range(len(x))))
        classes = self.num_classes
        hard = self.votes == "hard"
        sampler = Sampler(
            self.base,
            self.noise,
            plan or ExecutionPlan(CHUNK, device=self.device.type, precision=self.precision),
            seed=source.seed,
            tally=tally_votes if hard else tally_scores,
            width=classes + 1 if hard else 2 * classes + 1,
            role=source.role,
        )
        rows = torch.zeros((len(x), sampler.width), dtype=torch.float64)
        inputs = ((row, x[row]) for row in range(len(x)))
        places = {index: row for row, index in enumerate(source.indices)}
        if len(places) != len(x):
            raise UsageError(f"{len(x)} inputs came with {len(places)} different draws: give one index each")
        numbered = ((source.indices[row], image) for row, image in inputs)
        stages = _stages(self._asked(draws)) if hard else (self._asked(draws),)
        level = self.alpha / len(stages)

        def settle(ready: list[Item]) -> list[bool]:
            counts = np.stack([item.estimate for item in ready]).astype(np.int64)
            decided = predict_vote_table(counts, alpha=level) != ABSTAIN if hard else True
            ended = np.logical_or(decided, [item.drawn >= stages[-1] for item in ready])
            return [bool(one) for one in ended]

        def following(drawn: int) -> int:
            return next(stage for stage in stages if stage > drawn)

        for item in sampler.run(numbered, n0=0, checkpoints=following, settle=settle):
            rows[places[item.index]] = torch.from_numpy(item.estimate)
        return rows


def require_smoothed(target: Target, votes: Votes) -> SmoothedTarget:
    """Refuse a classifier that is not smoothed, or by other votes.

    Args:
        target: the classifier.
        votes: the votes that are certified.

    Returns:
        The classifier.

    Raises:
        Unsound: if its votes are others, or it has none.
    """
    if not isinstance(target, SmoothedTarget):
        raise Unsound(
            f"{target.name} is not smoothed, and votes certify smoothed classifiers only: use smooth(...)"
        )
    if target.votes != votes:
        raise Unsound(
            f"{target.name} has {target.votes} votes, and this certifies {votes} ones: they are two classifiers"
        )
    return target


def _stages(samples: int) -> tuple[int, ...]:
    """Say after how many draws an answer is looked at: most are plain after a hundred.

    Each look has an equal share of alpha, so that none of them errs except with probability alpha.

    Returns:
        Rising numbers, the last of them ``samples``.
    """
    early = [CHUNK * _GROWTH**power for power in range(8)]
    return (*(stage for stage in early if stage * 2 <= samples), samples)


def _decide_means(tallies: NDArray[np.float64], samples: int, alpha: float) -> NDArray[np.int64]:
    """Return the class whose mean score is the largest beyond doubt, or the number of classes.

    Every class has a lower and an upper bound at alpha / 2K, so that all hold at once; a failed draw counts as score 0
    below and 1 above.
    """
    sums, squares, failed = np.split(tallies, [tallies.shape[1] // 2, tallies.shape[1] - 1], axis=1)
    classes = sums.shape[1]

    level = alpha / (2 * classes)
    least, most = sums / samples, np.minimum((sums + failed) / samples, 1.0)
    least_spread = score_variances(least, squares, samples=samples)
    most_spread = score_variances(most, squares + failed, samples=samples)
    lower = empirical_bernstein_lower(least, least_spread, samples, alpha=level)
    upper = empirical_bernstein_upper(most, most_spread, samples, alpha=level)
    best = sums.argmax(1)
    rows = np.arange(len(sums))
    upper[rows, best] = -np.inf
    decided: NDArray[np.int64] = np.where(lower[rows, best] > upper.max(1), best, classes)
    return decided


def smooth(
    target: Target,
    noise: Noise,
    votes: Votes = "hard",
    *,
    samples: int = 1000,
    alpha: float = 0.001,
    search_samples: int | None = None,
) -> SmoothedTarget:
    """Smooth a classifier.

    Args:
        target: the base classifier.
        noise: the noise, in input units.
        votes: ``hard`` counts classes, ``soft`` averages softmax scores; they are two classifiers.
        samples: the draws that the smoothed classifier's own ``predict`` takes.
        alpha: the probability with which that ``predict`` may err.
        search_samples: the draws that it takes where an attack asks; ``samples`` if None.

    Returns:
        The smoothed classifier.
    """
    return SmoothedTarget(target, noise, votes, samples=samples, alpha=alpha, search_samples=search_samples)
