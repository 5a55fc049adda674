"""The view: counts for each input, the trace, what a member may see, and where an objective is aimed."""

import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.view import Trace, View
from calipers.errors import GradientsUnavailable, ScoresUnavailable, UsageError
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd
from calipers.gradients.finite_differences import NES
from calipers.randomness import Draws, Role
from calipers.target import Access, Target
from calipers.testing.known_answers import half_space, staircase
from calipers.threat.objectives import OBJECTIVES, cross_entropy, margin
from calipers.threat.threat_model import Targeted, Untargeted


class _Scores(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1.0 * x.flatten(1)


def _detector() -> Target:
    return Target(
        _Scores().eval(), num_classes=3, input_shape=(4,), bounds=(-9.0, 9.0), detector=True, probe=False
    )


def _draws(count: int) -> Draws:
    return Draws(0, Role.SEARCH, tuple(range(count)))


def _view(target: Target, count: int, trace: Trace | None = None) -> View:
    return View(target, Access.GRADIENTS, Autograd(), count=count, trace=trace)


def test_what_is_asked_is_counted_for_the_inputs_it_was_asked_for() -> None:
    target = half_space([1.0, 2.0]).target
    view = _view(target, 4)
    x, y = torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)
    view.estimate(margin, x, y, Untargeted(), _draws(4))
    some = view.of(torch.tensor([1, 3]))
    some.logits(x[:2].repeat_interleave(5, 0))
    some.of(torch.tensor([False, True])).predict(x[:1])
    some.of(torch.tensor([0])).estimate(margin, x[:1], y[:1], Untargeted(), _draws(1))
    assert view.counts.forwards.tolist() == [1, 7, 1, 7]
    assert view.counts.queries.tolist() == [1, 7, 1, 7]
    assert view.counts.backwards.tolist() == [1, 2, 1, 1]


def test_an_estimator_that_asks_often_is_counted_for_all_it_asks() -> None:
    target = half_space([1.0, 2.0]).target
    view = View(target, Access.SCORES, NES(samples=6), count=3)
    view.estimate(margin, torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), Untargeted(), _draws(3))
    assert len(set(view.counts.forwards.tolist())) == 1
    assert int(view.counts.forwards[0]) >= 6
    assert view.counts.backwards.tolist() == [0, 0, 0]


def test_a_view_gives_no_more_than_it_was_made_for() -> None:
    target = half_space([1.0, 2.0]).target
    decisions = View(target, Access.DECISIONS, None, count=1)
    assert decisions.predict(torch.ones(1, 2)).tolist() == [1]
    with pytest.raises(ScoresUnavailable):
        decisions.logits(torch.ones(1, 2))
    with pytest.raises(UsageError, match="no estimator"):
        decisions.estimate(
            margin, torch.ones(1, 2), torch.ones(1, dtype=torch.int64), Untargeted(), _draws(1)
        )
    with pytest.raises(UsageError, match="a member needs scores"):
        decisions.by(Access.SCORES, None)
    less = Target.from_decisions(
        lambda rows: (rows[:, 0] > 0).astype("int64"), num_classes=2, input_shape=(2,), fingerprint="less"
    )
    with pytest.raises(GradientsUnavailable):
        View(less, Access.GRADIENTS, Autograd(), count=1)


def test_a_member_shares_the_counts_and_sees_what_it_says_it_needs() -> None:
    target = half_space([1.0, 2.0]).target
    view = _view(target, 2)
    member = view.by(Access.DECISIONS, None)
    member.predict(torch.ones(2, 2))
    assert view.counts.queries.tolist() == [1, 1]
    with pytest.raises(ScoresUnavailable):
        member.logits(torch.ones(2, 2))
    assert not member.direct
    assert view.direct


def test_a_gradient_that_is_no_number_is_0_and_only_one_that_was_always_0_is_flat() -> None:
    class Spiky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            root = x[:, :1].clamp_min(0).sqrt()
            return torch.cat([root, 1 - root], 1)

    target = Target(Spiky().eval(), num_classes=2, input_shape=(2,), bounds=(-9.0, 9.0), probe=False)
    view = _view(target, 3)
    assert not bool(view.flat.any()), "no gradient was asked for yet"
    x, y = torch.tensor([[0.0, 0.0], [0.25, 0.0], [-1.0, 0.0]]), torch.zeros(3, dtype=torch.int64)
    found = view.estimate(margin, x, y, Untargeted(), _draws(3))
    assert bool(torch.isfinite(found.gradient).all())
    assert float(found.gradient[0, 0]) < -1e20, "one that is infinite keeps its direction"
    assert float(found.gradient[1, 0]) == -2
    assert float(found.gradient[2, 0]) == 0
    assert view.flat.tolist() == [False, False, True]
    assert view.of(torch.tensor([2, 1])).still_flat.tolist() == [True, False]
    view.of(torch.tensor([2])).estimate(margin, x[1:2], y[:1], Untargeted(), _draws(1))
    assert view.flat.tolist() == [False, False, False]


def test_a_staircase_is_flat() -> None:
    known = staircase([0.0, 1.0], [0, 1, 0])
    view = _view(known.target, 2)
    view.estimate(cross_entropy, torch.tensor([[0.5], [2.0]]), torch.tensor([1, 0]), Untargeted(), _draws(2))
    assert view.flat.tolist() == [True, True]


def test_the_trace_holds_each_estimate_of_each_input() -> None:
    trace = Trace()
    known = half_space([3.0, 4.0])
    view = _view(known.target, 3, trace)
    x, y = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]]), torch.tensor([1, 1, 1])
    view.estimate(margin, x, y, Untargeted(), _draws(3))
    view.of(torch.tensor([2])).estimate(margin, x[2:], y[2:], Untargeted(), _draws(1))
    assert [rows.tolist() for rows in trace.rows] == [[0, 1, 2], [2]]
    assert [value.shape for value in trace.value] == [(3,), (1,)]
    assert trace.reached[0].tolist() == [False, False, True]
    # the margin is minus twice the signed distance, whose gradient has l2 size 1
    assert torch.allclose(trace.gradient[0], torch.full((3,), 2.0))
    assert torch.allclose(trace.value[0], -2 * torch.tensor([1.4, 0.2, -0.2]))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_against_a_detector_an_objective_leads_away_from_the_label_and_from_rejection(name: str) -> None:
    view = _view(_detector(), 1)
    y = torch.tensor([0])
    rejected = torch.tensor([[1.0, 0.5, -3.0, 4.0]])
    found = view.estimate(OBJECTIVES[name], rejected, y, Untargeted(), _draws(1))
    assert float(found.gradient[0, 1]) > 0
    assert float(found.gradient[0, 3]) < 0
    assert found.logits.shape == (1, 4)
    accepted = torch.tensor([[4.0, 0.5, -3.0, 1.0]])
    found = view.estimate(OBJECTIVES[name], accepted, y, Untargeted(), _draws(1))
    assert float(found.gradient[0, 0]) < 0
    assert float(found.gradient[0, 3]) <= 0


def test_where_a_rejection_counts_as_wrong_it_is_a_class_like_others() -> None:
    view = _view(_detector(), 1)
    point = torch.tensor([[4.0, 0.5, -3.0, 3.0]])
    found = view.estimate(margin, point, torch.tensor([0]), Untargeted("wrong"), _draws(1))
    assert found.gradient.tolist() == [[-1.0, 0.0, 0.0, 1.0]]


def test_a_wanted_class_must_pass_the_rejection_score() -> None:
    view = _view(_detector(), 1)
    point = torch.tensor([[1.0, 2.0, -3.0, 3.0]])
    found = view.estimate(margin, point, torch.tensor([0]), Targeted((1,)), _draws(1))
    assert float(found.value) == -1.0
    assert float(found.gradient[0, 1]) == 1.0


def test_the_mean_of_draws_keeps_rows_apart() -> None:
    known = half_space([3.0, 4.0])
    view = View(known.target, Access.GRADIENTS, EOT(samples=4), count=2)
    x, y = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([1, 0])
    found = view.estimate(margin, x, y, Untargeted(), _draws(2))
    assert found.gradient.shape == x.shape
    assert torch.allclose(found.value, torch.tensor([-2.8, -2.8]))
