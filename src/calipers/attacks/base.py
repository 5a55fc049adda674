"""Attack: a search, then one sealed judge; its results, and their records."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calipers.attacks.box import warn_beyond
from calipers.attacks.judge import Judge, Verdict
from calipers.attacks.view import Trace, View
from calipers.errors import InvalidInput, UsageError
from calipers.evidence.records import Attempt
from calipers.gradients.estimator import Autograd, GradientEstimator, goal_of_rows
from calipers.randomness import Draws, Role, check_seed
from calipers.target import Access, Target
from calipers.target.allocator import keep_freed_memory
from calipers.target.arguments import check_arguments
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, Targeted, ThreatModel, Untargeted

__all__ = ["Attack", "AttackResult", "GradientAttack", "Reason"]

Reason = Literal["found", "already wrong", "not found", "no gradient"]


@final
@dataclass(frozen=True, eq=False, repr=False)
class AttackResult:
    """What an attack found, in the order of the inputs.

    Args:
        adversarial: the candidates as they were judged, float32; the clean input where it is wrong already.
        verdict: the judge's findings.
        queries: inputs that were answered for each input, by scores or decisions, the judge's own left out.
        forwards: inputs that were passed forward.
        backwards: inputs that were passed backward.
        reason: why the search of each input ended.
        attempts: the records, with labels and without the digests of the inputs.
    """

    adversarial: Float[Tensor, "batch *dims"]
    verdict: Verdict
    queries: Int[Tensor, " batch"]
    forwards: Int[Tensor, " batch"]
    backwards: Int[Tensor, " batch"]
    reason: tuple[Reason, ...]
    attempts: tuple[Attempt, ...]

    def __repr__(self) -> str:
        found = self.distance[self.success.to(self.distance.device)]
        reach = f", median distance {float(found.median()):.4g}" if len(found) else ""
        return f"AttackResult({len(found)} of {len(self.reason)} inputs fooled{reach})"

    @property
    def success(self) -> Bool[Tensor, " batch"]:
        """Whether the goal is reached inside the box and the ball, by the judge's rule."""
        return self.verdict.success

    @property
    def distance(self) -> Float[Tensor, " batch"]:
        """Sizes of the perturbations, float64, rounded up, in input units."""
        return self.verdict.distance

    def records(self) -> list[Attempt]:
        """Cross the border from results to stored rows.

        Returns:
            One record an input.
        """
        return list(self.attempts)


@dataclass(frozen=True)
class Attack(ABC):
    """A method that looks for an adversarial example of each input.

    A concrete attack is a frozen dataclass of plain values: its repr is its entry in the store. It writes ``_search``
    and nothing else: that every input is checked, that one which is wrong already is not searched, that a candidate is
    inside the box and the ball, and that the real classifier is fooled by it, is seen to here, alike for all.
    """

    norms: ClassVar[tuple[Norm, ...]]
    """The norms in which it searches."""
    sized: ClassVar[bool]
    """Whether it searches within a given size (True), or for the least (False)."""
    revision: ClassVar[int]
    """Raised when results change under the same fields; it rises with those of its members and of its estimator."""

    @property
    @abstractmethod
    def access(self) -> Access:
        """What the search needs of a target: GRADIENTS, SCORES or DECISIONS."""

    @abstractmethod
    def _search(
        self,
        view: View,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        draws: Draws,
    ) -> Float[Tensor, "batch *dims"]:
        """Look for a candidate for each input.

        Args:
            view: the only way to ask the target; it counts, and traces.
            x: clean inputs, float32, inside the box, all of them answered rightly.
            y: their labels.
            threat: norm, size and goal; the goal has one wanted class for each of these inputs, if it is targeted.
            draws: the search's streams, one an input.

        Returns:
            A candidate for each input; one that leaves the ball or the box is moved inside before it is judged.
        """

    def __call__(
        self,
        target: Target,
        x: Float[Tensor, "batch *dims"],
        y: Int[Tensor, " batch"],
        threat: ThreatModel,
        *,
        seed: int,
        indices: Sequence[int] | None = None,
        judge: Judge | None = None,
        trace: Trace | None = None,
        through: Target | None = None,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            target: the classifier.
            x: inputs (batch, *input_shape), float32, in input units.
            y: their labels.
            threat: norm, size and goal of the adversary.
            seed: the seed of the run.
            indices: the index of each input in its data set, which decides its draws; 0, 1, 2, ... if None.
            judge: how success is judged; the usual one if None.
            trace: filled with loss, success and size of the gradient at each step of the search, if given.
            through: the classifier whose scores and gradients the search sees, where it is not the one that is judged:
                the base of a smoothed classifier, under EOT over its noise with common random numbers (Salman et al.
                2019, arXiv:1906.04584), or a substitute. Its queries are counted; classes are asked of ``target``.

        Returns:
            Candidates and verdicts, in the order of the inputs.
        """
        check_arguments(target, x, y)
        numbers = tuple(range(len(x)) if indices is None else (int(index) for index in indices))
        self._check(target, x, y, threat, numbers)
        warn_beyond(target, threat)
        judge = judge or Judge()
        start = time.perf_counter()
        if target.device.type == "cpu":
            keep_freed_memory()
        images = x.detach().to(device=target.device, dtype=torch.float32)
        labels = y.detach().to(target.device)
        fair = Draws(check_seed(seed), Role.JUDGE, numbers)
        clean = judge.answers(target, images, fair)
        judge.settle(
            target, images, images, replace(threat, eps=None)
        )  # refuses what cannot be judged, at once
        before = judge.rule_on(clean, labels, threat.goal, stochastic=target.stochastic)
        rows = (~before).nonzero()[:, 0]
        view = View(
            target if through is None else through,
            self.access,
            self._estimator,
            count=len(x),
            trace=trace,
            real=target,
            common=None if through is None else Draws(seed, Role.SEARCH, numbers),
        )
        candidate = images.clone()
        if len(rows):
            part = rows.to(images.device)
            found = self._search(
                view.of(rows),
                images[part],
                labels[part],
                replace(threat, goal=goal_of_rows(threat.goal, rows.tolist())),
                Draws(seed, Role.SEARCH, numbers).of(rows.tolist()),
            )
            assert found.shape == images[part].shape, f"{self!r} gave candidates of another shape"
            candidate[part] = found.detach().to(images.dtype)
        verdict = judge(target, images, candidate, labels, threat, draws=fair, clean=clean)
        # the clean input lies in every ball: where neither is shown there, a candidate that fails does not stand for it
        unsure = judge.open_at(clean, labels, threat.goal, stochastic=target.stochastic) & ~verdict.success
        unsure &= (verdict.prediction == labels.cpu()) | target.stochastic
        verdict = replace(verdict, undetermined=verdict.undetermined | unsure)
        seconds = (time.perf_counter() - start) / max(len(x), 1)
        reasons = _reasons(before, verdict, view)
        return AttackResult(
            adversarial=verdict.adversarial,
            verdict=verdict,
            queries=view.counts.queries.clone(),
            forwards=view.counts.forwards.clone(),
            backwards=view.counts.backwards.clone(),
            reason=reasons,
            attempts=tuple(
                self._attempt(
                    row, numbers[row], target, labels, threat, judge, verdict, view, reasons, seed, seconds
                )
                for row in range(len(x))
            ),
        )

    def rehearse(self, target: Target, threat: ThreatModel, *, through: Target | None = None) -> None:
        """Ask for one gradient, so that what an attack would refuse is refused before a long run.

        Args:
            target: the classifier.
            threat: norm, size and goal of the adversary.
            through: the classifier whose gradients the search sees, where it is another one.
        """
        self._check_threat(threat)
        warn_beyond(target, threat)
        searched = target if through is None else through
        view = View(searched, self.access, self._estimator, count=1, real=target)
        if self._estimator is not None:
            middle = torch.full((1, *target.input_shape), sum(target.bounds) / 2, device=target.device)
            label = torch.zeros(1, dtype=torch.int64, device=target.device)
            view.estimate(margin, middle, label, Untargeted(), Draws(0, Role.SEARCH, (0,)))

    @property
    def _estimator(self) -> GradientEstimator | None:
        """How gradients are had; None where the search asks for none."""
        return None

    def _check(
        self, target: Target, x: Tensor, y: Tensor, threat: ThreatModel, numbers: tuple[int, ...]
    ) -> None:
        self._check_threat(threat)
        if isinstance(threat.goal, Targeted):
            wanted = threat.goal.classes
            if len(wanted) != len(x):
                raise UsageError(f"the goal names {len(wanted)} classes for {len(x)} inputs: give one each")
            strange = [one for one in wanted if not 0 <= one < target.num_classes]
            if strange:
                raise UsageError(
                    f"the goal wants class {strange[0]} and {target.name} has classes 0 to {target.num_classes - 1}"
                )
            same = [
                row for row, (one, label) in enumerate(zip(wanted, y.tolist(), strict=True)) if one == label
            ]
            if same:
                raise UsageError(
                    f"the goal wants class {wanted[same[0]]} of input {same[0]} of the batch, which is its label: want "
                    "another one, since the right answer fools nobody"
                )
        if len(numbers) != len(x) or len(set(numbers)) != len(numbers):
            raise UsageError(f"{len(numbers)} indices for {len(x)} inputs: give one each, all different")
        target.check_inputs(x, y, indices=numbers)
        unknown = (y < 0).nonzero()
        if len(unknown):
            raise InvalidInput(
                f"input {numbers[int(unknown[0])]} has no label: an attack needs to know which answer is right"
            )

    def _check_threat(self, threat: ThreatModel) -> None:
        if threat.norm not in self.norms:
            raise UsageError(
                f"norm is {threat.norm} and {type(self).__name__} searches in "
                f"{', '.join(str(norm) for norm in self.norms)}: choose another attack"
            )
        if self.sized and threat.eps is None:
            raise UsageError(
                f"{type(self).__name__} searches within a given size and eps is not given: give one, or wrap it as "
                f"MinimizeEps({type(self).__name__}())"
            )

    def _attempt(
        self,
        row: int,
        index: int,
        target: Target,
        labels: Tensor,
        threat: ThreatModel,
        judge: Judge,
        verdict: Verdict,
        view: View,
        reasons: tuple[Reason, ...],
        seed: int,
        seconds: float,
    ) -> Attempt:
        return Attempt(
            index=index,
            label=int(labels[row]),
            prediction=int(verdict.prediction[row]),
            method=repr(self),
            target=target.fingerprint,
            input_digest="",
            seed=seed,
            seconds=seconds,
            success=bool(verdict.success[row]),
            undetermined=bool(verdict.undetermined[row]),
            distance=float(verdict.distance[row]),
            norm=threat.norm.value,
            eps=threat.eps,
            goal=repr(goal_of_rows(threat.goal, [row])),
            judge=repr(judge),
            wins=int(verdict.wins[row]),
            draws=verdict.draws,
            flips=int(verdict.flips[row]),
            queries=int(view.counts.queries[row]),
            forwards=int(view.counts.forwards[row]),
            backwards=int(view.counts.backwards[row]),
            reason=reasons[row],
        )


@dataclass(frozen=True)
class GradientAttack(Attack):
    """An attack that follows a gradient, however it is had.

    Args:
        gradient: how gradients are had: that of the network itself, of a stand-in (BPDA), of an expectation (EOT), or
            from scores alone (NES, SPSA).
    """

    gradient: GradientEstimator = field(default_factory=Autograd)

    def __post_init__(self) -> None:
        # the estimator's text stays the same when its estimates change
        object.__setattr__(self, "revision", self.revision + self.gradient.revision - 1)

    @property
    def access(self) -> Access:
        """What the estimator needs."""
        return self.gradient.access

    @property
    def _estimator(self) -> GradientEstimator:
        return self.gradient


def _reasons(before: Tensor, verdict: Verdict, view: View) -> tuple[Reason, ...]:
    found: list[Reason] = []
    for row in range(len(before)):
        if bool(before[row]):
            found.append("already wrong")
        elif bool(verdict.success[row]):
            found.append("found")
        elif view.flat[row]:
            found.append("no gradient")
        else:
            found.append("not found")
    return tuple(found)
