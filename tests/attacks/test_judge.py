"""The judge: boundary cases, abstentions, detectors, wanted classes, bytes, and classifiers that draw."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.judge import Judge, Verdict, reaches
from calipers.errors import UsageError
from calipers.randomness import Draws, Role
from calipers.statistics.intervals import clopper_pearson_interval
from calipers.target import Target
from calipers.testing.known_answers import half_space, noisy_half_space
from calipers.threat.threat_model import ABSTAIN, Norm, Targeted, ThreatModel, Untargeted


class _Scores(nn.Module):
    """Scores that are read off the input: three coordinates, three classes; a fourth rejects."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def _draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, Role.JUDGE, tuple(range(count)))


def _reader(columns: int, *, detector: bool = False, bounds: tuple[float, float] = (-9.0, 9.0)) -> Target:
    return Target(
        _Scores().eval(),
        num_classes=columns - int(detector),
        input_shape=(columns,),
        bounds=bounds,
        detector=detector,
        probe=False,
    )


def _judge(
    target: Target,
    candidate: Tensor,
    threat: ThreatModel,
    *,
    x: Tensor | None = None,
    judge: Judge | None = None,
) -> Verdict:
    clean = torch.zeros_like(candidate) if x is None else x
    labels = torch.zeros(len(candidate), dtype=torch.int64)
    return (judge or Judge())(target, clean, candidate, labels, threat, draws=_draws(len(candidate)))


FREE = ThreatModel(Norm.LINF)


# ------------------------------------------------------------------------------------------ what is a success


def test_any_other_class_is_a_success_and_the_label_is_none() -> None:
    found = _judge(_reader(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]), FREE)
    assert found.success.tolist() == [False, True, True]
    assert found.prediction.tolist() == [0, 1, 2]
    assert found.wins.tolist() == [0, 1, 1]
    assert not bool(found.undetermined.any())


def test_a_wanted_class_is_wanted_and_no_other() -> None:
    goal = Targeted((2, 2, 2, 0))
    found = _judge(
        _reader(3), torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1.0, 0, 0]]), replace(FREE, goal=goal)
    )
    assert found.success.tolist() == [False, False, True, True]


@pytest.mark.parametrize("row", [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
@pytest.mark.parametrize(
    ("abstain", "success", "undetermined"),
    [("right", False, False), ("wrong", True, False), ("neither", False, True)],
)
def test_a_tie_is_an_abstention_that_counts_as_the_goal_says(
    row: list[float], abstain: str, success: bool, undetermined: bool
) -> None:
    goal = Untargeted(abstain)  # type: ignore[arg-type]
    found = _judge(_reader(3), torch.tensor([row]), replace(FREE, goal=goal))
    assert found.prediction.tolist() == [ABSTAIN]
    assert found.success.tolist() == [success]
    assert found.undetermined.tolist() == [undetermined]


@pytest.mark.parametrize("abstain", ["right", "wrong", "neither"])
def test_an_abstention_is_never_the_wanted_class(abstain: str) -> None:
    goal = Targeted((1,), abstain)  # type: ignore[arg-type]
    found = _judge(_reader(3), torch.tensor([[0.0, 1.0, 1.0]]), replace(FREE, goal=goal))
    assert found.success.tolist() == [False]
    assert found.undetermined.tolist() == [abstain == "neither"]


def test_a_score_that_is_no_number_is_an_abstention() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x.flatten(1)
            return torch.where(scores > 5, torch.nan, scores)

    target = Target(Broken().eval(), num_classes=3, input_shape=(3,), bounds=(-9.0, 9.0), probe=False)
    found = _judge(target, torch.tensor([[0.0, 6.0, 0.0]]), FREE)
    assert found.success.tolist() == [False]
    assert found.undetermined.tolist() == [True]


def test_a_rejected_input_is_no_success_unless_a_rejection_counts_as_wrong() -> None:
    rows = torch.tensor([[0.0, 1, 0, 2], [0.0, 2, 0, 1], [2.0, 1, 0, 1]])
    target = _reader(4, detector=True)
    assert _judge(target, rows, FREE).success.tolist() == [False, True, False]
    assert _judge(target, rows, FREE).undetermined.tolist() == [True, False, False]
    wrong = replace(FREE, goal=Untargeted("wrong"))
    assert _judge(target, rows, wrong).success.tolist() == [True, True, False]
    right = replace(FREE, goal=Untargeted("right"))
    assert _judge(target, rows, right).undetermined.tolist() == [False, False, False]


def test_the_boundary_of_a_half_space_is_no_success_and_a_hair_beyond_it_is_one() -> None:
    known = half_space([1.0, 1.0], -1.0)
    x = torch.tensor([[0.0, 0.0]])
    on, beyond = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5000001]])
    assert _judge(known.target, on, FREE, x=x).success.tolist() == [False]
    assert _judge(known.target, on, FREE, x=x).undetermined.tolist() == [True]
    found = _judge(known.target, beyond, FREE, x=x)
    assert found.success.tolist() == [True]
    assert float(found.distance) >= 0.5000001


def test_a_candidate_beyond_its_ball_is_judged_where_it_comes_to_lie() -> None:
    known = half_space([1.0, 0.0], -1.0)
    x, far = torch.tensor([[0.0, 0.0]]), torch.tensor([[5.0, 0.0]])
    for eps, success in ((0.99, False), (1.01, True)):
        found = _judge(known.target, far, ThreatModel(Norm.L2, eps), x=x)
        assert found.success.tolist() == [success]
        assert float(found.distance) <= eps
        assert abs(float(found.adversarial[0, 0]) - eps) < 1e-4


def test_a_candidate_beyond_the_box_is_judged_at_its_edge() -> None:
    known = half_space([1.0, 0.0], -1.0, bounds=(0.0, 1.0))
    x, far = torch.tensor([[0.5, 0.0]]), torch.tensor([[5.0, 0.0]])
    found = _judge(known.target, far, FREE, x=x)
    assert found.adversarial.tolist() == [[1.0, 0.0]]
    assert found.success.tolist() == [False]


def test_a_candidate_that_is_no_number_is_the_clean_input() -> None:
    found = _judge(_reader(3), torch.full((1, 3), torch.nan), FREE, x=torch.tensor([[1.0, 0.0, 0.0]]))
    assert found.adversarial.tolist() == [[1.0, 0.0, 0.0]]
    assert found.success.tolist() == [False]
    assert found.distance.tolist() == [0.0]


def test_a_box_whose_edge_float32_cannot_hold_loses_no_success() -> None:
    known = half_space([1.0, 0.0], -0.09, bounds=(0.0, 0.1))
    found = _judge(known.target, torch.tensor([[0.1, 0.05]]), FREE, x=torch.tensor([[0.0, 0.05]]))
    assert found.success.tolist() == [True]


def test_no_input_and_more_inputs_than_a_batch_are_judged() -> None:
    target = _reader(3)
    assert len(_judge(target, torch.zeros(0, 3), FREE).success) == 0
    rows = torch.eye(3).repeat(80, 1)
    assert _judge(target, rows, FREE).success.tolist() == [False, True, True] * 80


def test_the_verdict_of_a_candidate_is_the_same_in_any_batch() -> None:
    torch_net = nn.Sequential(nn.Flatten(), nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 3)).eval()
    target = Target(torch_net, num_classes=3, input_shape=(40,), bounds=(-9.0, 9.0))
    seen: list[int] = []
    target.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    rows = torch.empty(130, 40).normal_(generator=torch.Generator().manual_seed(0))
    many = _judge(target, rows, FREE)
    for row in (0, 99, 100, 129):
        assert bool(_judge(target, rows[row : row + 1], FREE).success[0]) == bool(many.success[row])
    assert len(set(seen)) == 1, "forwards of several shapes differ in their last digits"


# ------------------------------------------------------------------------------------------------ 8-bit images


def test_what_only_float32_can_hold_is_no_success_as_bytes() -> None:
    known = half_space([1.0, 0.0], -100.4 / 255, bounds=(0.0, 1.0))
    x = torch.tensor([[100 / 255, 0.0]])
    candidate = torch.tensor([[100.45 / 255, 0.0]])
    assert _judge(known.target, candidate, FREE, x=x).success.tolist() == [True]
    found = _judge(known.target, candidate, FREE, x=x, judge=Judge(quantize=True))
    assert found.success.tolist() == [False]
    assert found.distance.tolist() == [0.0]
    further = torch.tensor([[100.6 / 255, 0.0]])
    found = _judge(known.target, further, FREE, x=x, judge=Judge(quantize=True))
    assert found.success.tolist() == [True]
    assert found.distance.tolist() == [1 / 255]
    assert found.adversarial.tolist() == [[float(torch.tensor(101 / 255)), 0.0]]


def test_bytes_are_asked_for_of_8_bit_images_alone() -> None:
    with pytest.raises(UsageError, match="input 1 is no 8-bit image"):
        _judge(
            _reader(3, bounds=(0.0, 1.0)),
            torch.zeros(2, 3),
            FREE,
            x=torch.tensor([[0.0, 1.0, 1 / 255], [0.0, 0.5, 0.0]]),
            judge=Judge(quantize=True),
        )


# --------------------------------------------------------------------------------- classifiers that draw


def _noisy(flip: float, side: float, judge: Judge, *, seed: int = 0, count: int = 4) -> Verdict:
    known = noisy_half_space([1.0, 0.0], flip=flip)
    x = torch.tensor([[-1.0, 0.0]]).repeat(count, 1)
    candidate = torch.tensor([[side, 0.0]]).repeat(count, 1)
    labels = torch.zeros(count, dtype=torch.int64)
    return judge(known.target, x, candidate, labels, FREE, draws=_draws(count, seed))


def test_the_rate_is_that_of_fresh_draws_and_the_flips_without_an_attack_stand_beside_it() -> None:
    found = _noisy(0.3, 1.0, Judge(draws=400))
    assert found.draws == 400
    for counts, rate in ((found.wins, 0.7), (found.flips, 0.3)):
        interval = clopper_pearson_interval(counts.numpy(), 400, confidence=1 - 1e-6)
        assert ((interval.lower < rate) & (rate < interval.upper)).all()
    assert found.success.tolist() == [True] * 4
    assert found.prediction.tolist() == [1] * 4


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.3, 0.4])
def test_a_majority_is_a_success_only_where_the_interval_lies_above_one_half(flip: float) -> None:
    for side in (-1.0, 1.0):
        found = _noisy(flip, side, Judge(draws=60, alpha=0.01))
        interval = clopper_pearson_interval(found.wins.numpy(), 60, confidence=0.99)
        assert (found.success.numpy() == (interval.lower > 0.5)).all()
        assert (found.undetermined.numpy() == ((interval.lower <= 0.5) & (interval.upper >= 0.5))).all()
        assert bool(found.success.all()) == (side > 0 and flip < 0.3) or flip >= 0.3


def test_a_coin_is_undetermined() -> None:
    found = _noisy(0.499, 1.0, Judge(draws=100))
    assert not bool(found.success.any())
    assert bool(found.undetermined.all())


def test_one_lucky_draw_suffices_for_the_worst_alone() -> None:
    worst, average, majority = (
        _noisy(0.3, -1.0, Judge(draws=50, rule=rule))  # type: ignore[arg-type]
        for rule in ("worst", "average", "majority")
    )
    assert bool(worst.success.all())
    assert not bool(average.success.any())
    assert not bool(majority.success.any())
    assert torch.equal(worst.wins, majority.wins)
    assert bool((worst.flips > 0).all()), "the same luck without an attack is shown beside it"
    assert not bool(average.undetermined.any())
    assert bool(_noisy(0.3, 1.0, Judge(draws=50, rule="average")).success.all())


def test_the_draws_at_the_candidate_are_not_those_at_the_clean_input() -> None:
    found = _noisy(0.4, -1.0, Judge(draws=200), count=8)
    assert not torch.equal(found.wins, found.flips)


def test_the_same_seed_gives_the_same_verdict_and_another_seed_draws_anew() -> None:
    first, again, other = (_noisy(0.4, 1.0, Judge(draws=200), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.wins, again.wins)
    assert torch.equal(first.flips, again.flips)
    assert not torch.equal(first.wins, other.wins)


def test_a_coin_is_called_a_success_no_more_often_than_alpha() -> None:
    """A rate of one half exactly: 2 000 candidates, at most alpha / 2 of them above."""
    known = noisy_half_space([1.0, 0.0], flip=0.4999999)
    count, alpha = 2000, 0.05
    x = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    labels = torch.zeros(count, dtype=torch.int64)
    judge = Judge(draws=40, alpha=alpha)
    found = judge(known.target, -x, x, labels, FREE, draws=_draws(count))
    bound = clopper_pearson_interval(np.array([int(found.success.sum())]), count, confidence=1 - 1e-6)
    assert bound.lower[0] <= alpha / 2


# ------------------------------------------------------------------------------------------------------- rules


def test_reaching_a_goal_follows_its_table() -> None:
    answers = torch.tensor([[0, 1, 2, ABSTAIN]])
    labels = torch.tensor([0, 0, 0, 0])
    expected: list[tuple[Untargeted | Targeted, list[bool]]] = [
        (Untargeted("neither"), [False, True, True, False]),
        (Untargeted("right"), [False, True, True, False]),
        (Untargeted("wrong"), [False, True, True, True]),
        (Targeted((1, 1, 1, 1)), [False, True, False, False]),
        (Targeted((1, 1, 1, 1), "wrong"), [False, True, False, False]),
    ]
    for goal, reached in expected:
        assert reaches(answers, labels, goal).tolist() == [reached]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Judge(draws=0),
        lambda: Judge(alpha=0.0),
        lambda: Judge(alpha=1.0),
    ],
)
def test_a_judge_that_means_nothing_is_refused(make: Callable[[], Judge]) -> None:
    with pytest.raises(UsageError) as refused:
        make()
    assert "\n" not in str(refused.value)


class _Silent(nn.Module):
    """Gives the label, another class, or no number at all, at random: 0.1, 0.35 and 0.55 of the draws."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(len(x))
        scores = torch.zeros(len(x), 3)
        scores[drawn < 0.1, 0] = 1
        scores[drawn >= 0.1, 1] = 1
        scores[drawn >= 0.45] = torch.nan
        return scores


@pytest.mark.parametrize("rule", ["majority", "average"])
def test_draws_that_abstain_do_not_make_a_randomized_classifier_stand(rule: str) -> None:
    target = Target(
        _Silent().eval(), num_classes=3, input_shape=(2,), bounds=(-9.0, 9.0), stochastic=True, probe=False
    )
    judge = Judge(draws=1000, rule=rule)  # type: ignore[arg-type]
    found = _judge(target, torch.zeros(2, 2), FREE, judge=judge)
    assert found.success.tolist() == [False, False]
    assert found.undetermined.tolist() == [True, True]
    right = _judge(target, torch.zeros(2, 2), replace(FREE, goal=Untargeted("right")), judge=judge)
    assert right.undetermined.tolist() == [False, False]
    wrong = _judge(target, torch.zeros(2, 2), replace(FREE, goal=Untargeted("wrong")), judge=judge)
    assert wrong.success.tolist() == [True, True]
