"""Random search: the contract, where its points lie, and a target whose gradient says nothing."""

import pytest
import torch

from calipers.attacks.base import Attack
from calipers.attacks.random_search import RandomSearch
from calipers.errors import UsageError
from calipers.target import Target
from calipers.testing.attack_contract import AttackContract
from calipers.testing.known_answers import half_space, noisy_half_space, staircase
from calipers.threat.norms import size
from calipers.threat.threat_model import Norm, ThreatModel


class TestRandomSearch(AttackContract):
    ratio = 2.5
    """It knows no direction: it is given a ball of which a good part lies beyond the boundary."""

    def make(self) -> Attack:
        return RandomSearch(queries=400, where="corners")


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2, Norm.L1, Norm.L0])
def test_corners_lie_at_the_edge_of_the_ball_and_other_points_inside(norm: Norm) -> None:
    x, eps = torch.full((6,), 0.5), 2.0 if norm is Norm.L0 else 0.25
    threat = ThreatModel(norm, eps)
    for where in ("corners", "uniform"):
        attack = RandomSearch(where=where)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        points = attack._points(x, (500, 6), threat, (0.0, 1.0), generator)
        sizes = size(points - x, norm)
        assert float(sizes.max()) <= eps * (1 + 1e-5)
        if where == "corners" or norm is Norm.L0:
            assert float(sizes.min()) >= eps * (1 - 1e-5)
        else:
            assert float(sizes.min()) < 0.9 * eps
        mean = (points - x).mean(0)
        assert float(mean.abs().max()) < 0.06, "no direction is preferred"


def test_corners_are_vertices_in_linf_and_single_coordinates_in_l1() -> None:
    x = torch.full((4,), 0.5)
    generator = torch.Generator().manual_seed(0)
    attack = RandomSearch(where="corners")
    linf = attack._points(x, (9, 4), ThreatModel(Norm.LINF, 0.25), (0.0, 1.0), generator)
    assert bool(((linf == 0.25) | (linf == 0.75)).all())
    l1 = attack._points(x, (9, 4), ThreatModel(Norm.L1, 0.25), (0.0, 1.0), generator)
    assert bool(((l1 != x).sum(1) == 1).all())


def test_the_first_that_falls_ends_the_search_of_an_input() -> None:
    known = half_space([1.0, 1.0], bounds=(-3.0, 3.0))
    x = torch.tensor([[0.01, 0.0], [1.0, 1.0]])
    found = RandomSearch(queries=100)(
        known.target, x, known.target.predict(x), ThreatModel(Norm.L2, 0.5), seed=0
    )
    assert found.success.tolist() == [True, False]
    assert found.queries.tolist() == [20, 100]


def test_it_finds_by_chance_as_often_as_the_volume_says() -> None:
    """A half-line beyond .3 is (.5 - .3) / 1 of the ball around 0 of size .5: one query finds it for a fifth."""
    known = staircase([0.3], [0, 1], bounds=(-2.0, 2.0))
    x = torch.zeros(400, 1)
    y = torch.zeros(400, dtype=torch.long)
    found = RandomSearch(queries=1)(known.target, x, y, ThreatModel(Norm.LINF, 0.5), seed=0)
    assert 55 <= int(found.success.sum()) <= 105, "80 expected, standard deviation 8"
    many = RandomSearch(queries=40)(known.target, x[:40], y[:40], ThreatModel(Norm.LINF, 0.5), seed=0)
    assert bool(many.success.all())


def test_a_randomized_target_needs_more_than_one_lucky_answer() -> None:
    known = noisy_half_space([1.0, 0.0], 0.0, flip=0.3, bounds=(-3.0, 3.0))
    x = torch.tensor([[0.6, 0.0]])
    far = RandomSearch(queries=5, votes=30)(
        known.target, x, torch.tensor([1]), ThreatModel(Norm.L2, 0.3), seed=0
    )
    assert not bool(far.success.any())
    assert int(far.queries[0]) == 150
    near = RandomSearch(queries=60, votes=30)(
        known.target, x, torch.tensor([1]), ThreatModel(Norm.L2, 1.0), seed=0
    )
    assert bool(near.success.all())


def test_an_abstention_counts_as_the_goal_says() -> None:
    from calipers.threat.threat_model import Untargeted

    torn = Target.from_decisions(
        lambda rows: (rows[:, 0] > 0.3) * -1, num_classes=2, input_shape=(1,), fingerprint="torn"
    )
    x, y = torch.zeros(1, 1), torch.tensor([0])
    for counts, success in (("wrong", True), ("right", False), ("neither", False)):
        threat = ThreatModel(Norm.LINF, 0.9, Untargeted(abstain=counts))  # type: ignore[arg-type]
        assert bool(RandomSearch(queries=40)(torn, x, y, threat, seed=0).success[0]) is success


@pytest.mark.parametrize("wrong", [{"queries": 0}, {"votes": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        RandomSearch(**wrong)  # type: ignore[arg-type]
