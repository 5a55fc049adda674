"""A stochastic classifier draws from a named stream, repeats with it, and leaves the global generators alone."""

# ruff: noqa: NPY002  (the legacy generator is what user code draws from)

import random

import numpy as np
import torch
from torch import Tensor, nn

from calipers.randomness import Draws, Role
from calipers.target import Target
from calipers.target.chance import drawn_from


class _Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :3]
        return flat + torch.randn_like(flat) + np.random.normal() * 0 + random.random() * 0


def _target() -> Target:
    return Target(_Noisy().eval(), num_classes=3, input_shape=(4,), stochastic=True)


def test_the_same_draws_give_the_same_scores_and_another_fold_others() -> None:
    target, x = _target(), torch.rand(5, 4)
    draws = Draws(7, Role.JUDGE, (3, 1, 4, 8, 5))
    first = target.logits(x, draws=draws)
    assert torch.equal(first, target.logits(x, draws=draws))
    others = [draws.fold(1), Draws(8, Role.JUDGE, draws.indices), Draws(7, Role.SEARCH, draws.indices)]
    for other in others:
        assert not torch.equal(first, target.logits(x, draws=other))


def test_scores_without_draws_are_fresh_each_time() -> None:
    target, x = _target(), torch.rand(5, 4)
    assert not torch.equal(target.logits(x), target.logits(x))


def test_all_three_global_generators_are_drawn_from_the_stream_and_put_back() -> None:
    def sample() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.random()), random.random()

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    draws = Draws(1, Role.MODEL, (0,))
    with drawn_from(draws, torch.device("cpu")):
        first = sample()
    with drawn_from(draws, torch.device("cpu")):
        assert sample() == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_rows_of_draws_keep_their_indices() -> None:
    draws = Draws(1, Role.SEARCH, (10, 11, 12))
    assert draws.of([2, 0]) == Draws(1, Role.SEARCH, (12, 10))


def test_a_classifier_that_is_not_stochastic_is_not_seeded() -> None:
    target = Target(nn.Linear(4, 3).eval(), num_classes=3, input_shape=(4,))
    x = torch.rand(2, 4)
    assert torch.equal(target.logits(x), target.logits(x, draws=Draws(0, Role.JUDGE, (0, 1))))
