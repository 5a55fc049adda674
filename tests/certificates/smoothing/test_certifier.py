"""Certifiers by smoothing keep the contract, are tight where the theorem is, and refuse what they cannot prove."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import betainc, ndtr, ndtri
from torch import Tensor, nn

from calipers.certificates.base import Certifier
from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier, VotePredictor
from calipers.certificates.smoothing.noise import Gaussian, Laplace, Noise, RoundedGaussian, Uniform
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.smoothed import smooth
from calipers.certificates.smoothing.stopping import DecideRadii
from calipers.errors import InvalidInput, Unsound, UsageError
from calipers.randomness import Role, Stream
from calipers.target import Target
from calipers.testing.certifier_contract import CertifierContract
from calipers.testing.known_answers import concentric_balls, half_space, noisy_half_space, staircase
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

L2 = ThreatModel(Norm.L2)
PLAN = ExecutionPlan(1000, channels_last=False)
SIGMA = 0.5


# ------------------------------------------------------------------------------------------------- the contract


class _Smoothing(CertifierContract):
    noise: Noise = Gaussian(SIGMA)
    bound = "two-sided"

    def make(self, effort: int, *, alpha: float) -> Certifier:
        return VoteCertifier(n0=100, n=effort, alpha=alpha, bound=self.bound)

    def present(self, target: Target) -> Target:
        return smooth(target, self.noise)

    def reach(self) -> float:
        return SIGMA


class TestTwoSided(_Smoothing):
    efforts = (200, 2000, 20_000)
    closeness = 0.93


class TestOneSided(_Smoothing):
    bound = "one-sided"
    efforts = (200, 2000, 20_000)
    closeness = 0.93


class TestDecidingRadii(_Smoothing):
    closeness = 0.7

    def make(self, effort: int, *, alpha: float) -> Certifier:
        return VoteCertifier(n0=100, n=effort, alpha=alpha, stopping=DecideRadii((0.2, 0.4, 0.6)))


class TestDecidingRadiiOneSided(TestDecidingRadii):
    def make(self, effort: int, *, alpha: float) -> Certifier:
        stopping = DecideRadii((0.2, 0.4, 0.6))
        return VoteCertifier(n0=100, n=effort, alpha=alpha, bound="one-sided", stopping=stopping)


class TestInLinf(_Smoothing):
    """The linf radius is the l2 radius over the square root of the dimension: far from tight in general."""

    norm = Norm.LINF
    closeness = 0.85


class TestInL1(_Smoothing):
    norm = Norm.L1
    closeness = 0.55


class TestLaplace(_Smoothing):
    norm = Norm.L1
    noise = Laplace(0.4)
    closeness = 0.4


class TestUniform(_Smoothing):
    norm = Norm.L1
    noise = Uniform(0.8)
    closeness = 0.7


class _Soft(CertifierContract):
    gain = 1e6
    lemma = "lemma-2"

    def make(self, effort: int, *, alpha: float) -> Certifier:
        return SoftCertifier(n0=100, n=effort, alpha=alpha, lemma=self.lemma)

    def present(self, target: Target) -> Target:
        return smooth(target, Gaussian(SIGMA), "soft")

    def reach(self) -> float:
        return SIGMA


class TestSoftByLemma2(_Soft):
    closeness = 0.85


class TestSoftByTheTightConstant(_Soft):
    lemma = "tight-constant"
    closeness = 0.8


class TestSoftByLemma1(_Soft):
    lemma = "lemma-1"
    closeness = 0.4


class TestSoftByHoeffding(_Soft):
    closeness = 0.85

    def make(self, effort: int, *, alpha: float) -> Certifier:
        return SoftCertifier(n0=100, n=effort, alpha=alpha, mean_bound="hoeffding")


# ------------------------------------------------------------------------------------------------- known answers


def _certify(certifier: Certifier, target: Target, x: Tensor, *, threat: ThreatModel = L2, seed: int = 0):
    return certifier(target, x, threat, seed=seed, plan=PLAN)


def _slack(p: float, n: int, alpha: float) -> float:
    """The radius over sigma that Theorem 1 loses where the count is six deviations low, by bisection of the tail."""
    count = math.floor(n * p - 6 * math.sqrt(n * p * (1 - p)))
    low, high = 0.0, p
    for _ in range(100):
        middle = (low + high) / 2
        # P(Bin(n, q) >= c) = I_q(c, n - c + 1)
        low, high = (middle, high) if betainc(count, n - count + 1, middle) <= alpha else (low, middle)
    return float(ndtri(p) - ndtri(low))


@pytest.mark.parametrize("bound", ["one-sided", "two-sided"])
@pytest.mark.parametrize(("n", "seed"), [(10_000, 1), (100_000, 2)])
def test_theorem_1_is_tight_on_a_half_space(bound: str, n: int, seed: int) -> None:
    known = half_space([1.0, -2.0, 2.0], 0.5)
    share = torch.tensor([0.2, 0.5, 1.0, 1.5, 2.0])
    x = torch.outer((share * SIGMA) - 0.5 / 3, torch.tensor([1.0, -2.0, 2.0]) / 3)
    distance = known.distance(x, Norm.L2)
    found = _certify(VoteCertifier(n=n, bound=bound), smooth(known.target, Gaussian(SIGMA)), x, seed=seed)
    slack = np.array([_slack(float(ndtr(d / SIGMA)), n, 0.0005) for d in distance]) * SIGMA
    assert (found.radius <= distance).all()
    assert (found.radius >= distance - slack).all()
    assert slack.max() < (0.15 if n == 10_000 else 0.05)


def test_counts_follow_the_known_probability() -> None:
    known = half_space([1.0, -2.0, 2.0], 0.5)
    x = torch.randn((20, 3), generator=torch.Generator().manual_seed(0))
    found = _certify(VoteCertifier(n=5000), smooth(known.target, Gaussian(SIGMA)), x)
    for certificate, p in zip(found.certificates, known.vote_probability(x, SIGMA)[:, 1], strict=True):
        assert abs(certificate.counts[1] - 5000 * p) <= 6 * math.sqrt(5000 * p * (1 - p)) + 3


def test_a_random_half_space_proves_what_its_probability_allows() -> None:
    known = noisy_half_space([0.0, 1.0], flip=0.1)
    x = torch.tensor([[3.0, 0.3], [0.0, 1.0]])
    found = _certify(VoteCertifier(n=20_000), smooth(known.target, Gaussian(SIGMA)), x)
    allowed = SIGMA * ndtri(known.vote_probability(x, SIGMA)[:, 1])
    assert (found.radius <= allowed).all() and (allowed < known.distance(x, Norm.L2)).all()
    assert (found.radius >= 0.9 * allowed).all()


@pytest.mark.parametrize("dimension", [2, 50])
def test_no_radius_leaves_the_smoothed_ball(dimension: int) -> None:
    """By symmetry the smoothed ball is a ball too, where its vote probability is one half."""
    known = concentric_balls([0.0] * dimension, 0.3 * math.sqrt(dimension))
    along = torch.linspace(0, 0.6 * math.sqrt(dimension), 12)
    x = torch.outer(along, torch.ones(dimension)) / math.sqrt(dimension)
    sigma = 0.2
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        inside = known.vote_probability(
            torch.full((1, dimension), middle / math.sqrt(dimension)).double(), sigma
        )
        low, high = (middle, high) if inside[0, 0] > 0.5 else (low, middle)
    found = _certify(VoteCertifier(n=20_000, alpha=1e-4), smooth(known.target, Gaussian(sigma)), x)
    assert (found.radius <= np.abs(along.numpy() - high) + 1e-6).all()
    assert {0, 1} <= set(found.prediction.tolist())


def test_three_classes_on_a_line_are_certified_by_the_runner_up() -> None:
    known = staircase([-0.5, 0.5], [0, 1, 2])
    x = torch.tensor([[0.0]])
    target = smooth(known.target, Gaussian(0.7))
    votes = known.vote_probability(x, 0.7)[0]
    two = _certify(VoteCertifier(n=50_000), target, x).certificates[0]
    one = _certify(VoteCertifier(n=50_000, bound="one-sided"), target, x).certificates[0]
    exact = 0.35 * (ndtri(votes[1]) - ndtri(votes[0]))
    assert two.radius <= exact and two.radius > 0.9 * exact
    assert one.radius < 0.5 * two.radius
    # the smoothed classifier's own radius, by bisection of the exact votes
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        chances = known.vote_probability(torch.tensor([[middle]], dtype=torch.float64), 0.7)[0]
        low, high = (middle, high) if chances.argmax() == 1 else (low, middle)
    assert two.radius < low


def test_uniform_noise_is_tight_on_a_half_line() -> None:
    known = half_space([1.0], 0.0)
    x = torch.tensor([[0.1], [0.3], [0.6]])
    found = _certify(
        VoteCertifier(n=50_000), smooth(known.target, Uniform(0.8)), x, threat=ThreatModel(Norm.L1)
    )
    assert (found.radius <= [0.1, 0.3, 0.6]).all()
    assert found.radius == pytest.approx([0.1, 0.3, 0.6], abs=0.018)


def test_the_three_readings_of_mean_scores_are_ordered() -> None:
    known = half_space([1.0, 1.0], 0.0, gain=1e6)
    x = torch.outer(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([1.0, 1.0])) / math.sqrt(2)
    distance = known.distance(x, Norm.L2)
    radius = {
        lemma: _certify(
            SoftCertifier(n=20_000, lemma=lemma), smooth(known.target, Gaussian(SIGMA), "soft"), x
        ).radius
        for lemma in ("lemma-1", "tight-constant", "lemma-2")
    }
    assert (radius["lemma-1"] < radius["tight-constant"]).all()
    assert (radius["tight-constant"] <= radius["lemma-2"]).all()
    assert (radius["lemma-2"] <= distance).all()
    assert (radius["lemma-1"] <= 0.627 * SIGMA).all() and (radius["tight-constant"] <= 1.254 * SIGMA).all()
    assert radius["tight-constant"] == pytest.approx(2 * radius["lemma-1"], rel=1e-9)
    # near the boundary the tight constant is tight, and far from it only Lemma 2 goes on
    assert radius["tight-constant"][0] > 0.98 * radius["lemma-2"][0]
    assert radius["tight-constant"][2] < 0.8 * radius["lemma-2"][2]


def test_hard_votes_prove_more_than_mean_scores_of_the_same_draws() -> None:
    known = half_space([1.0, 1.0], 0.0, gain=1e6)
    x = torch.tensor([[0.2, 0.2], [0.5, 0.1]])
    hard = _certify(VoteCertifier(n=5000), smooth(known.target, Gaussian(SIGMA)), x)
    soft = _certify(SoftCertifier(n=5000), smooth(known.target, Gaussian(SIGMA), "soft"), x)
    for one, two in zip(hard.certificates, soft.certificates, strict=True):
        assert two.means == pytest.approx([count / 5000 for count in one.counts[:-1]], abs=1e-9)
        assert two.radius < one.radius


def test_variances_of_mean_scores_are_those_of_the_sample() -> None:
    known = half_space([1.0, 1.0], 0.0, gain=1.5)
    x = torch.tensor([[0.3, -0.1]])
    found = _certify(SoftCertifier(n=200), smooth(known.target, Gaussian(SIGMA), "soft"), x).certificates[0]
    stream = Stream(0, Role.ESTIMATE, 0)
    drawn = torch.cat(
        [torch.empty(200).normal_(generator=stream.generator(c)).view(100, 2) for c in range(2)]
    )
    scores = known.target.logits(x + SIGMA * drawn).double().softmax(1).numpy()
    assert found.means == pytest.approx(scores.mean(0), rel=1e-5)
    assert found.variances == pytest.approx(scores.var(0, ddof=1), rel=1e-4)


# ------------------------------------------------------------------------------------------------- stopping


def test_deciding_takes_fewer_samples_and_says_how_many() -> None:
    known = half_space([1.0, 0.0], 0.0)
    x = torch.tensor([[0.02, 0.0], [0.6, 0.0], [2.0, 0.0]])
    certifier = VoteCertifier(n=50_000, stopping=DecideRadii((0.25,)))
    found = _certify(certifier, smooth(known.target, Gaussian(SIGMA)), x).certificates
    assert [certificate.samples for certificate in found] == [
        sum(certificate.counts) for certificate in found
    ]
    assert all(certificate.samples < 5000 and certificate.budget == 50_000 for certificate in found)
    assert [certificate.radius >= 0.25 for certificate in found] == [False, True, True]
    assert "DecideRadii(radii=(0.25,))" in found[0].stopping and "anytime" in found[0].theorem


def test_where_an_input_stops_does_not_depend_on_its_company() -> None:
    known = half_space([1.0, 0.0], 0.0)
    x = torch.stack([torch.linspace(-1, 1, 15), torch.zeros(15)], 1)
    certifier = VoteCertifier(n=20_000, stopping=DecideRadii((0.1, 0.3)))
    target = smooth(known.target, Gaussian(SIGMA))
    every = _certify(certifier, target, x).certificates
    for plan in (ExecutionPlan(20), ExecutionPlan(100), ExecutionPlan(500, threads=2)):
        again = certifier(target, x, L2, seed=0, plan=plan).certificates
        assert [c.counts for c in again] == [c.counts for c in every]
    for index in (0, 7, 11):
        alone = certifier(target, x[index : index + 1], L2, seed=0, indices=[index], plan=PLAN).certificates[
            0
        ]
        assert alone.counts == every[index].counts
    assert len({certificate.samples for certificate in every}) > 3


# ------------------------------------------------------------------------------------------------- what is refused

TARGET = smooth(half_space([1.0, 1.0], 0.0, bounds=(0.0, 1.0)).target, Gaussian(SIGMA))
X = torch.full((2, 2), 0.5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("make", [VoteCertifier, SoftCertifier, VotePredictor])
def test_alpha_outside_its_range_is_refused(make, alpha: float) -> None:
    with pytest.raises(UsageError, match=f"alpha is {alpha}: give a failure probability inside"):
        make(alpha=alpha)


@pytest.mark.parametrize("make", [VoteCertifier, SoftCertifier])
def test_too_few_samples_are_refused(make) -> None:
    with pytest.raises(UsageError, match="n0 is 0: at least 1 draw"):
        make(n0=0)
    with pytest.raises(UsageError, match="n is 50 and n0 100: the estimate needs at least as many"):
        make(n=50)


def test_an_unknown_bound_is_refused() -> None:
    with pytest.raises(UsageError, match="bound is 'both': use two-sided or one-sided"):
        VoteCertifier(bound="both")  # type: ignore[arg-type]


def test_an_unsmoothed_classifier_is_refused() -> None:
    with pytest.raises(
        Unsound, match=r"half-space is not smoothed, and votes certify smoothed classifiers only"
    ):
        _certify(VoteCertifier(n=100), half_space([1.0, 1.0]).target, X)


def test_the_votes_of_another_classifier_are_refused() -> None:
    soft = smooth(TARGET.base, Gaussian(SIGMA), "soft")
    with pytest.raises(
        Unsound, match="has soft votes, and this certifies hard ones: they are two classifiers"
    ):
        _certify(VoteCertifier(n=100), soft, X)
    with pytest.raises(
        Unsound, match="has hard votes, and this certifies soft ones: they are two classifiers"
    ):
        _certify(SoftCertifier(n=100), TARGET, X)


def test_soft_votes_are_refused_for_other_noise() -> None:
    for noise in (Laplace(0.5), Uniform(0.5), RoundedGaussian(0.5)):
        soft = smooth(TARGET.base, noise, "soft")
        with pytest.raises(Unsound, match="soft votes are certified for Gaussian noise"):
            _certify(SoftCertifier(n=100), soft, X)


@pytest.mark.parametrize("norm", [Norm.L0])
@pytest.mark.parametrize("votes", ["hard", "soft"])
def test_a_norm_in_which_nothing_is_proved_is_refused_before_any_forward(norm: Norm, votes: str) -> None:
    certifier = VoteCertifier(n=100) if votes == "hard" else SoftCertifier(n=100)
    seen: list[int] = []
    running = certifier.stream(
        smooth(TARGET.base, Gaussian(SIGMA), votes),
        enumerate(X),
        ThreatModel(norm),
        seed=0,
        plan=PLAN,
        progress=seen.append,
    )
    with pytest.raises(Unsound, match="l0"):
        next(iter(running))
    assert not seen


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.5, math.nan]]), "input 0 has NaN or infinite values"),
        (torch.tensor([[0.5, 1.5]]), "outside the bounds"),
        (torch.zeros((1, 3)), r"inputs have shape \(3,\)"),
    ],
)
def test_inputs_that_cannot_be_measured_are_refused(x: Tensor, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        _certify(VoteCertifier(n=100), TARGET, x)


def test_an_input_of_a_stream_is_named_by_its_index() -> None:
    pairs = [(3, torch.tensor([0.5, 0.5])), (17, torch.tensor([0.5, math.inf]))]
    with pytest.raises(InvalidInput, match="input 17 has NaN or infinite values"):
        list(VoteCertifier(n=100).stream(TARGET, pairs, L2, seed=0, plan=PLAN))


@pytest.mark.parametrize("indices", [[0], [0, 0], [0, 1, 2]])
def test_indices_are_one_for_each_input(indices: list[int]) -> None:
    with pytest.raises(
        UsageError, match=f"{len(indices)} indices for 2 inputs: give one each, all different"
    ):
        VoteCertifier(n=100)(TARGET, X, L2, seed=0, indices=indices, plan=PLAN)


def test_a_seed_that_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="seed is -1"):
        _certify(VoteCertifier(n=100), TARGET, X, seed=-1)


def test_labels_are_one_for_each_input() -> None:
    found = _certify(VoteCertifier(n=100), TARGET, X)
    with pytest.raises(UsageError, match="1 labels were given for 2 inputs"):
        found.records([0])


# ------------------------------------------------------------------------------------------------- records


def test_a_record_holds_what_the_certificate_was_made_of() -> None:
    certifier = VoteCertifier(n0=50, n=330, alpha=0.01, bound="one-sided")
    found = certifier(TARGET, torch.tensor([[0.9, 0.1]]), L2, seed=5, indices=[12], plan=PLAN).certificates[0]
    assert (found.index, found.seed, found.alpha, found.bound) == (12, 5, 0.01, "one-sided")
    assert (sum(found.selection), sum(found.counts), found.samples, found.budget) == (50, 330, 330, 330)
    assert len(found.counts) == len(found.selection) == 3
    assert found.selected == int(np.argmax(found.selection[:-1]))
    assert (found.noise, found.method, found.target) == (
        repr(TARGET.noise),
        repr(certifier),
        TARGET.fingerprint,
    )
    assert (found.norm, found.votes, found.means) == ("l2", "hard", None)
    assert "Cohen et al. 2019, Theorem 1" in found.theorem and "Clopper-Pearson" in found.theorem
    assert found.seconds > 0


def test_class_and_radius_come_of_the_selected_class_and_not_of_the_largest_count() -> None:
    """With one selection draw the wrong class is often selected, and then nothing is proved for the right one."""
    known = half_space([1.0, 1.0], 0.0)
    x = torch.full((40, 2), 0.05)
    found = _certify(VoteCertifier(n0=1, n=2000), smooth(known.target, Gaussian(SIGMA)), x).certificates
    wrong = [certificate for certificate in found if certificate.selected == 0]
    assert 5 < len(wrong) < 35
    assert all(certificate.prediction == ABSTAIN and certificate.radius == 0 for certificate in wrong)
    assert all(certificate.prediction == 1 for certificate in found if certificate.selected == 1)


def test_draws_that_all_fail_abstain() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 3), torch.nan)

    target = Target(Failing().eval(), num_classes=3, input_shape=(2,), probe=False)
    hard = _certify(VoteCertifier(n=200), smooth(target, Gaussian(SIGMA)), X).certificates[0]
    soft = _certify(SoftCertifier(n=200), smooth(target, Gaussian(SIGMA), "soft"), X).certificates[0]
    early = _certify(
        VoteCertifier(n=20_000, stopping=DecideRadii((0.1,))), smooth(target, Gaussian(SIGMA)), X
    ).certificates[0]
    for found in (hard, soft, early):
        assert (found.prediction, found.radius, found.selected) == (ABSTAIN, 0.0, -1)
    assert hard.counts == (0, 0, 0, 200)
    assert early.samples <= 200


def test_draws_that_fail_count_for_every_other_class_in_mean_scores() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = torch.tensor([[30.0, 0.0, 0.0]]).expand(len(x), 3)
            return torch.where(x[:, :1] > -0.2, scores, torch.nan)

    target = Target(Failing().eval(), num_classes=3, input_shape=(2,), bounds=(-1.0, 1.0), probe=False)
    x = torch.zeros((1, 2))
    found = _certify(SoftCertifier(n=20_000), smooth(target, Gaussian(SIGMA), "soft"), x).certificates[0]
    # the half-space of x > -0.2 has the same failures, and 0.2 is its distance
    assert 0.15 < found.radius <= 0.2
    assert found.p_upper >= found.counts[-1] / 20_000 > 0.3


def test_progress_is_told_every_forward_once() -> None:
    told: list[int] = []
    certifier = VoteCertifier(n0=100, n=1000)
    list(certifier.stream(TARGET, enumerate(X), L2, seed=0, plan=ExecutionPlan(100), progress=told.append))
    assert sum(told) == 2 * 1100
    assert all(step >= 0 for step in told)


def test_inputs_are_pulled_only_as_they_are_needed() -> None:
    pulled: list[int] = []

    def source() -> Iterator[tuple[int, Tensor]]:
        for index in range(1000):
            pulled.append(index)
            yield index, X[0]

    running = VoteCertifier(n=1000).stream(TARGET, source(), L2, seed=0, plan=PLAN)
    next(iter(running))
    assert len(pulled) < 10


def test_without_a_plan_one_is_measured_and_the_votes_are_the_same() -> None:
    certifier = VoteCertifier(n=500)
    measured = certifier(TARGET, X, L2, seed=0).certificates
    planned = _certify(certifier, TARGET, X).certificates
    assert [c.counts for c in measured] == [c.counts for c in planned]


def test_sound_mode_certifies_on_the_grid_what_the_half_space_allows() -> None:
    known = half_space([1.0, 1.0], -1.0, bounds=(0.0, 1.0))
    x = torch.tensor([[150.0, 140.0], [200.0, 180.0], [90.0, 128.0]]) / 255
    target = smooth(known.target, RoundedGaussian(0.25))
    found = _certify(VoteCertifier(n=20_000), target, x)
    # rounding moves a coordinate by half a step at most
    assert (found.radius <= known.distance(x, Norm.L2) + math.sqrt(2) * 0.5 / 255).all()
    assert (found.radius >= 0.8 * known.distance(x, Norm.L2)).all()
    assert "on the 1/255 grid" in found.certificates[0].theorem
    with pytest.raises(InvalidInput, match="1/255 grid"):
        _certify(VoteCertifier(n=200), target, x + 1e-3)
    with pytest.raises(Unsound, match="sound mode certifies l2"):
        _certify(VoteCertifier(n=200), target, x, threat=ThreatModel(Norm.LINF))


# ------------------------------------------------------------------------------------------------- prediction


def test_a_prediction_holds_its_counts_and_abstains_where_they_do_not_decide() -> None:
    x = torch.tensor([[0.9, 0.9], [0.5, 0.5]])
    known = half_space([1.0, 1.0], -1.0, bounds=(0.0, 1.0))
    smoothed = smooth(known.target, Gaussian(SIGMA))
    found = list(VotePredictor(n=500).stream(smoothed, enumerate(x), seed=0, plan=PLAN))
    by_index = {prediction.index: prediction for prediction in found}
    assert by_index[0].prediction == 1
    assert by_index[1].prediction == ABSTAIN
    assert all(sum(prediction.counts) == prediction.samples == 500 for prediction in found)


def test_a_prediction_does_not_share_draws_with_a_certificate() -> None:
    known = half_space([1.0, 1.0], -1.0, bounds=(0.0, 1.0))
    smoothed = smooth(known.target, Gaussian(SIGMA))
    x = torch.full((10, 2), 0.5)
    predicted = {
        found.index: found.counts
        for found in VotePredictor(n=1000).stream(smoothed, enumerate(x), seed=0, plan=PLAN)
    }
    certified = {
        found.index: found.counts for found in _certify(VoteCertifier(n=1000), smoothed, x).certificates
    }
    assert sum(predicted[index] == certified[index] for index in range(10)) < 3


def test_equal_certificates_have_equal_records_but_for_the_time() -> None:
    first, second = (_certify(VoteCertifier(n=300), TARGET, X).certificates for _ in range(2))
    assert [replace(one, seconds=0.0) for one in first] == [replace(two, seconds=0.0) for two in second]
