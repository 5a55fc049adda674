"""An oracle gives no more than its kind of access, and counts what it is asked."""

import pytest
import torch
from torch import nn

from calipers.errors import GradientsUnavailable, ScoresUnavailable
from calipers.target import Access, Oracle, Target


def _target() -> Target:
    return Target(nn.Linear(4, 3).eval(), num_classes=3, input_shape=(4,), name="linear")


def _function(access: Access) -> Target:
    make = Target.from_scores if access is Access.SCORES else Target.from_decisions
    answer = (lambda x: x[:, :3]) if access is Access.SCORES else (lambda x: x[:, :3].argmax(1))
    return make(answer, num_classes=3, input_shape=(4,), fingerprint="f", name="function")


X = torch.rand((5, 4), generator=torch.Generator().manual_seed(0))


def test_every_view_answers_as_the_target_does() -> None:
    target = _target()
    for access in Access:
        oracle = Oracle(target, access)
        assert torch.equal(oracle.predict(X), target.predict(X))
        if access >= Access.SCORES:
            assert torch.equal(oracle.logits(X), target.logits(X))
        assert (oracle.num_classes, oracle.bounds) == (3, (0.0, 1.0))


def test_queries_are_counted_in_inputs_and_calls_add_up() -> None:
    oracle = Oracle(_target(), Access.SCORES)
    oracle.logits(X)
    oracle.predict(X[:2])
    assert (oracle.counts.queries, oracle.counts.forwards, oracle.counts.backwards) == (7, 7, 0)


def test_backwards_are_counted_when_they_are_made() -> None:
    oracle = Oracle(_target(), Access.GRADIENTS)
    x = X.clone().requires_grad_()
    scores = oracle.logits(x)
    assert oracle.counts.backwards == 0
    scores[:, 0].sum().backward()
    assert (oracle.counts.forwards, oracle.counts.backwards) == (5, 5)
    assert x.grad is not None and bool(x.grad.any())


def test_a_view_of_gradients_may_name_the_network_and_others_may_not() -> None:
    target = _target()
    assert Oracle(target, Access.GRADIENTS).module is target.module
    for access in (Access.SCORES, Access.DECISIONS):
        with pytest.raises(GradientsUnavailable, match="and not the network"):
            _ = Oracle(target, access).module
    noisy = Target(nn.Linear(4, 3).eval(), num_classes=3, input_shape=(4,), stochastic=True)
    assert [Oracle(each, Access.SCORES).stochastic for each in (target, noisy)] == [False, True]


def test_a_view_of_scores_gives_no_gradient() -> None:
    oracle = Oracle(_target(), Access.SCORES)
    assert not oracle.logits(X.clone().requires_grad_()).requires_grad


def test_a_view_of_decisions_refuses_scores_and_counts_no_query_for_it() -> None:
    oracle = Oracle(_target(), Access.DECISIONS)
    with pytest.raises(ScoresUnavailable, match="this view gives decisions only"):
        oracle.logits(X)
    assert oracle.counts.queries == 0


def test_more_than_the_target_gives_is_refused_at_once() -> None:
    with pytest.raises(GradientsUnavailable, match="function gives scores and not gradients"):
        Oracle(_function(Access.SCORES), Access.GRADIENTS)
    with pytest.raises(ScoresUnavailable, match="function gives decisions and not scores"):
        Oracle(_function(Access.DECISIONS), Access.SCORES)
    assert Oracle(_function(Access.SCORES), Access.DECISIONS).predict(X).shape == (5,)
