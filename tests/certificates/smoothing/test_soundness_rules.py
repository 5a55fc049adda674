"""The eight rules without which a certificate by smoothing proves nothing; each test breaks its rule and sees it fail.

A rule is a check that passes as things are, and fails in a variant that breaks the rule.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from calipers.certificates.smoothing import sampling
from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier
from calipers.certificates.smoothing.noise import Gaussian, Noise, RoundedGaussian
from calipers.certificates.smoothing.plan import ExecutionPlan, check_rows
from calipers.certificates.smoothing.radius import gaussian_l2
from calipers.certificates.smoothing.smoothed import SmoothedTarget, smooth
from calipers.certificates.smoothing.stopping import DecideRadii
from calipers.certificates.smoothing.votes import certify_votes
from calipers.errors import TargetError, Unsound
from calipers.evidence.records import Certificate, record_from_json
from calipers.randomness import Role, Stream
from calipers.report.tables import floored
from calipers.runs.reread import reread
from calipers.target import Target
from calipers.testing.known_answers import half_space, staircase
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

L2 = ThreatModel(Norm.L2)


def _certify(
    target: Target, x: Tensor, *, n: int = 2000, seed: int = 0, batch_size: int = 1000, **settings
) -> list[Certificate]:
    certifier = VoteCertifier(**{"n0": 100, "n": n, **settings})
    plan = ExecutionPlan(batch_size, channels_last=False, precision=target.precision)
    if isinstance(target, SmoothedTarget):
        check_rows(target.base, plan)
        _Seen.seen.clear()
    return list(certifier(target, x, L2, seed=seed, plan=plan).certificates)


def _fails(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return True
    return False


# -------------------------------------------------------------------------------------------------------- rule 1


def _votes_with_company(net: nn.Module, *, probe: bool) -> list[tuple[int, ...]]:
    """Counts of one input alone, and beside others that are quite different."""
    target = Target(net.eval(), num_classes=2, input_shape=(2,), bounds=(-9.0, 9.0), probe=probe)
    smoothed = smooth(target, Gaussian(0.5))
    x = torch.tensor([[0.2, 0.0], [8.0, 8.0], [7.0, 8.0], [8.0, 7.0]])
    beside = VoteCertifier(n0=100, n=100)(smoothed, x, L2, seed=0, plan=ExecutionPlan(500))
    alone = VoteCertifier(n0=100, n=100)(smoothed, x[:1], L2, seed=0, plan=ExecutionPlan(500))
    return [beside.certificates[0].counts, alone.certificates[0].counts]


class _Normalized(nn.Module):
    def __init__(self, *, tracking: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False, track_running_stats=tracking)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(x)[:, :1]
        return torch.cat([-first, first], 1)


def test_rule_1_the_classifier_is_one_fixed_function(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = _votes_with_company(_Normalized(tracking=True), probe=True)
    assert one == other
    # broken: statistics of the batch make the votes of an input depend on what shares its batch ...
    with monkeypatch.context() as unchecked:
        unchecked.setattr("calipers.certificates.smoothing.plan.check_rows", lambda *_: True)
        one, other = _votes_with_company(_Normalized(tracking=False), probe=False)
        assert one != other
    # ... which is refused before any certificate, of a target that nobody probed too
    with pytest.raises(TargetError, match="in another place or beside other rows"):
        _votes_with_company(_Normalized(tracking=False), probe=False)
    with pytest.raises(TargetError, match="uses statistics of the batch"):
        _votes_with_company(_Normalized(tracking=False), probe=True)
    with pytest.raises(TargetError, match="training mode"):
        Target(_Normalized(tracking=True), num_classes=2, input_shape=(2,))


# -------------------------------------------------------------------------------------------------------- rule 2


class _Seen(nn.Module):
    """Keeps what it is given, in one list for all of its copies."""

    seen: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        return x[:, :2]


def _noise_is_added_before_the_cast() -> None:
    target = Target(_Seen().eval(), num_classes=2, input_shape=(3,), mean=[0.5], std=[0.25], precision="bf16")
    x = torch.tensor([0.3, 0.7, 0.9])
    _Seen.seen.clear()
    _certify(smooth(target, Gaussian(0.25)), x[None], n=100, batch_size=100)
    drawn = torch.empty(300).normal_(generator=Stream(0, Role.ESTIMATE, 0).generator(0)).view(100, 3)
    wanted = torch.add(x, drawn, alpha=0.25)
    given = _Seen.seen[-1]
    assert given.dtype is torch.bfloat16
    assert torch.equal(given, ((wanted - 0.5) / 0.25).bfloat16())


def test_rule_2_noise_is_added_in_float32_before_any_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    _noise_is_added_before_the_cast()

    def add_in_half(self: Gaussian, prepared: Tensor, noise: Tensor, out: Tensor) -> None:
        out.copy_(prepared.bfloat16() + (self.sigma * noise).bfloat16())

    monkeypatch.setattr(Gaussian, "add", add_in_half)
    assert _fails(_noise_is_added_before_the_cast)


def test_rule_2_noise_is_in_input_units_and_the_precision_is_part_of_the_classifier() -> None:
    def mark(precision: str) -> str:
        return smooth(half_space([1.0, 0.5], precision=precision).target, Gaussian(0.5)).fingerprint

    assert len({mark("fp32"), mark("bf16"), mark("fp16")}) == 3
    # a normalized half-space: the radius is in input units, not in those of the network's input
    known = half_space([1.0, 0.0], 0.0)
    scaled = Target(known.net, num_classes=2, input_shape=(2,), bounds=(-9.0, 9.0), mean=[0.0], std=[0.01])
    found = _certify(smooth(scaled, Gaussian(0.5)), torch.tensor([[0.4, 0.0]]), n=20_000)[0]
    assert 0.3 < found.radius <= 0.4


# -------------------------------------------------------------------------------------------------------- rule 3


class _BitsOfTheSum(nn.Module):
    """Class 1 where every coordinate is a multiple of 2^-27, as float32 sums with 1/8 are and sums with 0 are not."""

    def forward(self, x: Tensor) -> Tensor:
        coarse = ((x.double() * 2**27) % 1 == 0).all(1).float()
        return torch.stack([1 - 2 * coarse, 2 * coarse - 1], 1)


def _no_answer_changes_inside_a_radius(noise: Noise, x: Tensor) -> None:
    target = Target(_BitsOfTheSum().eval(), num_classes=2, input_shape=tuple(x.shape[1:]))
    here, there = _certify(smooth(target, noise), torch.cat([x, torch.zeros_like(x)]))
    assert ABSTAIN not in (here.prediction, there.prediction)
    assert here.radius <= float(x.norm()) or here.prediction == there.prediction


def test_rule_3_float_addition_leaks_the_input_and_sound_mode_does_not() -> None:
    # Gaussian noise in float32: class 1 is certified, and 0.43 away the answer is class 0, with a certificate too
    assert _fails(partial(_no_answer_changes_inside_a_radius, Gaussian(0.25), torch.full((1, 12), 0.125)))
    on_grid = torch.full((1, 12), 32 / 255)
    _no_answer_changes_inside_a_radius(RoundedGaussian(0.25), on_grid)


def test_rule_3_what_the_network_sees_in_sound_mode_is_a_function_of_an_integer() -> None:
    def values(noise: Noise, level: int) -> set[float]:
        target = Target(_Seen().eval(), num_classes=2, input_shape=(2,))
        _Seen.seen.clear()
        _certify(smooth(target, noise), torch.full((1, 2), level / 255), n=20_000)
        return set(torch.cat(_Seen.seen).flatten().tolist())

    sums = {k / 255 for k in range(-2000, 2000)}
    grid = {float(torch.tensor(float(k)) / 255) for k in range(-2000, 2000)}
    for level in (0, 77, 255):
        assert values(RoundedGaussian(0.25), level) <= grid
        assert len(values(Gaussian(0.25), level) & grid) < 100
    assert len(grid) == len(sums)


# -------------------------------------------------------------------------------------------------------- rule 4


class _Ties(nn.Module):
    """Class 0 leads where the first coordinate is positive; elsewhere scores tie, are NaN or infinite."""

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1]
        scores = torch.cat([first.relu(), torch.zeros_like(first), torch.zeros_like(first)], 1)
        scores = torch.where(first < -0.3, torch.nan, scores)
        return torch.where(first < -0.6, torch.inf, scores)


def _failed_draws_count_against_the_class() -> None:
    target = Target(_Ties().eval(), num_classes=3, input_shape=(2,), bounds=(-3.0, 3.0), probe=False)
    found = _certify(smooth(target, Gaussian(0.5)), torch.tensor([[0.2, 0.0], [-0.2, 0.0]]))
    share = found[0].counts[0] / 2000
    assert found[0].counts[1:3] == (0, 0) and found[0].counts[3] == 2000 - found[0].counts[0]
    assert 0 < found[0].radius <= 0.5 * ndtri(share) <= 0.5 * ndtri(0.6554 + 0.04)
    assert (found[1].prediction, found[1].radius) == (ABSTAIN, 0.0)


def test_rule_4_nan_infinite_and_tied_scores_are_an_outcome_against_the_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _failed_draws_count_against_the_class()
    monkeypatch.setattr(sampling, "outcomes", lambda scores, num_classes: scores.nan_to_num().argmax(1))
    assert _fails(_failed_draws_count_against_the_class)


@pytest.mark.parametrize("bound", ["one-sided", "two-sided"])
def test_rule_4_a_class_needs_a_strict_lead(bound: str) -> None:
    def certify(counts: list[int]):
        return certify_votes(counts, selected=0, radius=partial(gaussian_l2, 1.0), alpha=0.001, bound=bound)

    assert certify([500, 500, 0, 0])[:2] == (ABSTAIN, 0.0)
    assert certify([1000, 0, 0, 0]).prediction == 0
    # a failed draw counts for the runner-up, and each of them lowers the radius
    assert certify([900, 50, 0, 50]).radius < certify([900, 50, 50, 0]).radius or bound == "one-sided"
    assert certify([900, 0, 0, 100]).radius == certify([900, 100, 0, 0]).radius
    # the smallest count of 100 000 that the field certifies one-sided at .001 is 50 490
    if bound == "one-sided":
        assert [certify([c, 100_000 - c, 0, 0]).prediction for c in (50_489, 50_490)] == [ABSTAIN, 0]


def test_rule_4_counts_are_integers() -> None:
    found = _certify(smooth(half_space([1.0, 1.0], 0.1).target, Gaussian(0.5)), torch.zeros((1, 2)))[0]
    assert all(type(count) is int for count in (*found.counts, *found.selection))


def test_rule_4_a_printed_radius_is_never_above_the_proved_one() -> None:
    generator = np.random.default_rng(0)
    for radius in (*generator.uniform(0, 4, 500), *(10 ** generator.uniform(-6, 3, 500))):
        assert float(floored(float(radius))) <= radius


# -------------------------------------------------------------------------------------------------------- rule 5


def _streams_are_apart() -> None:
    """Where every input is the same and on the boundary, equal counts betray equal noise."""
    known = half_space([1.0, 1.0], 0.0)
    x = torch.zeros((30, 2))
    found = _certify(smooth(known.target, Gaussian(0.5)), x, n=1000, n0=1000)
    assert sum(row.counts == row.selection for row in found) < 10
    assert len({row.counts for row in found}) > 10
    other = _certify(smooth(known.target, Gaussian(0.5)), x, n=1000, n0=1000, seed=1)
    assert sum(one.counts == two.counts for one, two in zip(found, other, strict=True)) < 10


@pytest.mark.parametrize("dropped", ["role", "index", "seed"])
def test_rule_5_streams_are_keyed_by_seed_role_and_index(
    monkeypatch: pytest.MonkeyPatch, dropped: str
) -> None:
    _streams_are_apart()
    whole = Stream.key
    fixed = {"role": Role.ESTIMATE, "index": 0, "seed": 0}

    def without(self: Stream, chunk: int) -> bytes:
        named = {"seed": self.seed, "role": self.role, "index": self.index, dropped: fixed[dropped]}
        return whole(Stream(**named), chunk)

    monkeypatch.setattr(Stream, "key", without)
    assert _fails(_streams_are_apart)


def _chunks_are_apart() -> None:
    """Ten equal chunks would give counts that are multiples of ten."""
    known = half_space([1.0, 1.0], 0.0)
    found = _certify(smooth(known.target, Gaussian(0.5)), torch.zeros((5, 2)), n=1000)
    assert any(count % 10 for row in found for count in row.counts)


def test_rule_5_streams_are_keyed_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    _chunks_are_apart()
    whole = Stream.key
    monkeypatch.setattr(Stream, "key", lambda self, chunk: whole(self, 0))
    assert _fails(_chunks_are_apart)


def test_rule_5_neither_the_number_of_samples_nor_the_batch_is_part_of_a_key() -> None:
    known = half_space([1.0, 1.0], 0.0)
    smoothed = smooth(known.target, Gaussian(0.5))
    x = torch.zeros((4, 2))
    base = _certify(smoothed, x, n=500)
    for batch_size in (20, 100, 500):
        assert [row.counts for row in _certify(smoothed, x, n=500, batch_size=batch_size)] == [
            row.counts for row in base
        ]
    longer = _certify(smoothed, x, n=1500)
    assert all(
        all(more >= less for more, less in zip(long.counts, short.counts, strict=True))
        for long, short in zip(longer, base, strict=True)
    )
    assert [row.selection for row in longer] == [row.selection for row in base]


def test_rule_5_the_judge_never_sees_the_noise_of_a_certificate() -> None:
    seen = {}
    for role in Role:
        generator = Stream(0, role, 0).generator(0)
        seen[role] = tuple(torch.empty(8).normal_(generator=generator).tolist())
    assert len(set(seen.values())) == len(Role)


# -------------------------------------------------------------------------------------------------------- rule 6


@pytest.mark.parametrize(("alpha", "bound"), [(0.05, "two-sided"), (0.001, "one-sided"), (0.2, "one-sided")])
def test_rule_6_another_question_is_answered_from_the_stored_counts(alpha: float, bound: str) -> None:
    known = half_space([1.0, -1.0], 0.0)
    x = torch.tensor([[0.5, 0.1], [0.1, 0.4], [0.01, 0.0], [2.0, -2.0]])
    smoothed = smooth(known.target, Gaussian(0.5))
    stored = [record_from_json(row.kind, row.to_json()) for row in _certify(smoothed, x, alpha=0.001)]
    again = reread(stored, alpha=alpha, bound=bound, dimension=2)
    fresh = _certify(smoothed, x, alpha=alpha, bound=bound)
    for read, run in zip(again, fresh, strict=True):
        assert (read.prediction, read.radius, read.p_lower, read.p_upper) == (
            run.prediction,
            run.radius,
            run.p_lower,
            run.p_upper,
        )
        assert (read.alpha, read.bound, read.counts) == (alpha, bound, run.counts)


def test_rule_6_every_row_holds_its_full_counts_and_how_they_came_about() -> None:
    known = staircase([-0.5, 0.5], [0, 1, 2])
    smoothed = smooth(known.target, Gaussian(0.7))
    found = _certify(smoothed, torch.tensor([[0.1]]), n=700, n0=30, seed=9)[0]
    assert len(found.counts) == len(found.selection) == 4
    assert (sum(found.counts), sum(found.selection), found.samples, found.budget) == (700, 30, 700, 700)
    assert min(found.counts[:3]) > 0
    assert (found.noise, found.stopping, found.seed) == ("Gaussian(sigma=0.7)", "FixedBudget()", 9)
    assert "n0=30" in found.method and "alpha=0.001" in found.method
    assert found.target == smoothed.fingerprint


def test_rule_6_counts_of_a_run_that_stopped_early_are_read_only_by_bounds_that_allow_it() -> None:
    known = half_space([1.0, -1.0], 0.0)
    smoothed = smooth(known.target, Gaussian(0.5))
    stored = _certify(smoothed, torch.tensor([[0.5, 0.1]]), n=20_000, stopping=DecideRadii((0.1,)))
    assert stored[0].samples < 20_000
    with pytest.raises(Unsound, match="fails more often than alpha; read them with validity 'anytime'"):
        reread(stored, alpha=0.01, bound="two-sided", validity="fixed", dimension=2)
    assert reread(stored, alpha=0.01, bound="two-sided", dimension=2)[0].radius >= 0.1


def test_rule_6_soft_votes_are_read_again_from_means_and_variances() -> None:
    known = half_space([1.0, -1.0], 0.0, gain=3.0)
    smoothed = smooth(known.target, Gaussian(0.5), "soft")
    x, plan = torch.tensor([[0.5, 0.1], [0.1, 0.4]]), ExecutionPlan(1000)
    stored = SoftCertifier(n=2000)(smoothed, x, L2, seed=0, plan=plan).certificates
    fresh = SoftCertifier(n=2000, alpha=0.05, mean_bound="hoeffding")(
        smoothed, x, L2, seed=0, plan=plan
    ).certificates
    again = reread(list(stored), alpha=0.05, bound="hoeffding", dimension=2)
    assert [row.radius for row in again] == [row.radius for row in fresh]


# -------------------------------------------------------------------------------------------------------- rule 7


def _certificate_is_about_the_exact_vote(smoothed: SmoothedTarget, x: Tensor) -> None:
    found = _certify(smoothed, x)[0]
    assert found.target == smoothed.fingerprint != smoothed.base.fingerprint
    assert found.prediction == 0


def test_rule_7_the_certificate_is_for_the_exact_vote() -> None:
    narrow = staircase([-0.1, 0.1], [0, 1, 0])
    x = torch.tensor([[0.0]])
    assert narrow.target.predict(x).tolist() == [1]
    # neither f's own answer nor the number of samples of a prediction has a say
    certified = {
        repr(_certify(smooth(narrow.target, Gaussian(0.5), samples=samples, alpha=alpha), x)[0].counts)
        for samples, alpha in ((10, 0.5), (1000, 0.001))
    }
    assert len(certified) == 1
    _certificate_is_about_the_exact_vote(smooth(narrow.target, Gaussian(0.5)), x)
    few = smooth(narrow.target, Gaussian(0.5), samples=4)
    assert few.predict(x).tolist() == [ABSTAIN]
    assert few.fingerprint == smooth(narrow.target, Gaussian(0.5)).fingerprint
    # broken: a smoothed classifier that passes for its base
    broken = smooth(narrow.target, Gaussian(0.5))
    broken.fingerprint = narrow.target.fingerprint
    assert _fails(partial(_certificate_is_about_the_exact_vote, broken, x))
    with pytest.raises(Unsound, match="is not smoothed"):
        _certify(narrow.target, x)


# -------------------------------------------------------------------------------------------------------- rule 8


def test_rule_8_a_scale_for_each_input_is_no_classifier() -> None:
    # what would go wrong: at 0 a wide noise certifies class 0 far beyond 0.3, at 0.3 a narrow one certifies class 1
    known = staircase([0.25, 0.35], [0, 1, 0], bounds=(-1.0, 1.0))
    wide = _certify(smooth(known.target, Gaussian(0.5)), torch.tensor([[0.0]]))[0]
    narrow = _certify(smooth(known.target, Gaussian(0.01)), torch.tensor([[0.3]]))[0]
    assert wide.prediction == 0 and wide.radius > 0.3
    assert narrow.prediction == 1
    # so one noise is one number, and two noises are two classifiers
    assert wide.target != narrow.target
    for scale in ([0.5, 0.01], np.array([0.5, 0.01]), torch.tensor([0.5, 0.01])):
        with pytest.raises(Unsound, match="another scale for each is not one classifier"):
            Gaussian(scale)  # type: ignore[arg-type]


def test_the_formula_of_theorem_1_is_what_is_certified() -> None:
    """Radii are those of the counts, by the published digits: N = 1 000, every vote, alpha = .001, sigma = 1."""
    known = half_space([1.0, 0.0], 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = _certify(
            smooth(known.target, Gaussian(1.0)), torch.tensor([[20.0, 0.0]]), n=1000, bound="one-sided"
        )
    assert found[0].radius == pytest.approx(2.463263, abs=1e-6)
    assert math.isclose(found[0].p_lower, 0.001 ** (1 / 1000), rel_tol=1e-9)
