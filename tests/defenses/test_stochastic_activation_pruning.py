"""Stochastic activation pruning: the law of its draws, its scale, its rows, and that BPDA goes through it."""

from collections.abc import Iterator

import pytest
import torch
from scipy.special import bdtr, bdtrc
from torch import nn

from calipers.attacks.judge import Judge
from calipers.defenses.base import Row
from calipers.defenses.stochastic_activation_pruning import (
    LaterPruning,
    PrunedConvNet,
    PrunedResNet,
    Pruning,
    StochasticActivationPruning,
    drawn_at_least_once,
    prune,
)
from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.estimator import Autograd
from calipers.randomness import Draws, Role
from calipers.runs.catalog import load_model, named_defense
from calipers.runs.descriptions import build_attack, build_judge
from calipers.sources.architectures import SmallConvNet, build
from calipers.sources.datasets import load_dataset
from calipers.target.chance import drawn_from
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted

LIMIT = 1e-6


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with drawn_from(Draws(20, Role.TRAIN, (0,)), torch.device("cpu")):
        yield


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    return torch.stack([torch.as_tensor(one.image) for one in examples]), torch.tensor(
        [one.label for one in examples]
    )


def row_of(role: str, text: str = "") -> Row:
    return next(row for row in StochasticActivationPruning().rows() if row.role == role and text in row.what)


@pytest.mark.parametrize("draws", [1, 3, 40, 700])
def test_a_unit_is_drawn_with_the_probability_of_the_multinomial(draws: int) -> None:
    odds = torch.tensor([0.5, 0.3, 0.15, 0.049, 0.001, 0.0])
    times = 20_000
    hits = drawn_at_least_once(odds.expand(times, -1), draws).sum(0)
    wanted = 1 - (1 - odds.double().numpy()) ** draws
    for found, rate in zip(hits.tolist(), wanted.tolist(), strict=True):
        if rate in (0.0, 1.0):
            assert found == rate * times
        else:
            assert bdtr(found, times, rate) > LIMIT
            assert found == 0 or bdtrc(found - 1, times, rate) > LIMIT


def test_how_many_different_units_are_drawn_follows_the_multinomial() -> None:
    # Units of independent (Poisson) draws would have a wider spread than those of a fixed number of draws
    units, draws, times = 12, 12, 20_000
    odds = torch.full((times, units), 1 / units)
    found = drawn_at_least_once(odds, draws).sum(1).double()
    naive = torch.multinomial(odds, draws, replacement=True)
    wanted = torch.tensor([len(set(row)) for row in naive.tolist()]).double()
    assert abs(float(found.mean() - wanted.mean())) < 5 * float(wanted.std()) * (2 / times) ** 0.5
    assert float(found.var() / wanted.var()) == pytest.approx(1, abs=0.06)


def test_rows_without_activity_draw_nothing_and_stay_zero() -> None:
    odds = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert drawn_at_least_once(odds, 5).tolist() == [[False] * 3, [False, True, False]]
    assert bool((Pruning()(torch.zeros(2, 4)) == 0).all())


def test_a_survivor_is_divided_by_the_probability_that_it_survives() -> None:
    h = torch.rand((64, 2, 3, 3))
    pruned = Pruning(0.5)(h)
    for row in range(len(h)):
        p = h[row].double() / h[row].double().sum()
        scaled = h[row].double() / (1 - (1 - p) ** 9)
        survivors = pruned[row] != 0
        assert 0 < int(survivors.sum()) <= 9
        assert torch.allclose(pruned[row][survivors].double(), scaled[survivors], rtol=1e-5)


@pytest.mark.parametrize("make", [Pruning, LaterPruning, lambda: Pruning(0.3)])
def test_the_mean_of_the_draws_is_the_layer_without_pruning(make: type[nn.Module]) -> None:
    h = torch.randn(1, 40) if make is LaterPruning else torch.rand(1, 40)
    found = make()(h.expand(40_000, -1)).double()
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - h[0].double()).abs() < 5 * error + 1e-6).all())


def test_tiny_and_lone_activations_have_finite_values_and_gradients() -> None:
    h = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-30, 1e-38], [1e-40, 0.0, 0.0], [3e15, 3e8, 1.0]])
    h = h.repeat(50, 1).requires_grad_(True)
    found = Pruning()(h)
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(h.grad).all())
    assert bool((found[0] == torch.tensor([1.0, 0.0, 0.0])).all()), "a lone activation is kept as it is"


def test_the_gradient_of_one_draw_differentiates_the_division() -> None:
    h = torch.rand((1, 6), dtype=torch.float64) + 0.1
    layer = Pruning()

    def with_these_draws(x: torch.Tensor) -> torch.Tensor:
        with drawn_from(Draws(3, Role.TRAIN, (0,)), torch.device("cpu")):
            return layer(x)

    assert bool((with_these_draws(h) == 0).any()), "something is pruned"
    assert torch.autograd.gradcheck(with_these_draws, h.requires_grad_(True), eps=1e-7)


def test_rows_of_a_batch_draw_independently_and_repeat_with_their_seed() -> None:
    x = images(1)[0].expand(8, 1, 28, 28)
    target = StochasticActivationPruning().target()
    draws = Draws(1, Role.JUDGE, tuple(range(8)))
    first = target.logits(x, draws=draws)
    assert len(torch.unique(first, dim=0)) == 8
    assert torch.equal(first, target.logits(x, draws=draws))


def test_pruning_with_many_draws_is_the_network_itself() -> None:
    net = build("cnn28", num_classes=10).eval()
    x = images(4)[0]
    assert torch.allclose(prune(net, fraction=3000.0)(x), net(x), atol=1e-3)


def test_the_residual_network_is_the_paper_s_form() -> None:
    net = build("resnet20", num_classes=10).eval()
    pruned = prune(net, fraction=3000.0)
    assert isinstance(pruned, PrunedResNet)
    layers = [name for name, module in pruned.named_modules() if isinstance(module, Pruning)]
    assert len(layers) == 19, "one after the first ReLU and two in each of 9 blocks"
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(pruned(x), net(x), rtol=1e-3, atol=1e-3)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match="Linear has no ReLUs"):
        prune(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="fraction is 0"):
        Pruning(0.0)


def test_the_reimplementation_prunes_convolutions_before_the_relu() -> None:
    net = build("cnn28", num_classes=10).eval()
    assert isinstance(net, SmallConvNet)
    later = PrunedConvNet(net, LaterPruning, later=True).eval()
    seen: list[torch.Tensor] = []
    later.prune1.register_forward_hook(lambda module, given, found: seen.append(given[0]))
    later(images(2)[0])
    assert bool((seen[0] < 0).any())
    assert isinstance(later.prune4, nn.Identity)


def test_bpda_comes_nearer_to_the_gradient_of_the_network_without_pruning() -> None:
    x, y = images(3)
    defense = StochasticActivationPruning()
    target, plain = defense.target(), defense.target("undefended")
    draws = Draws(0, Role.SEARCH, (0, 1, 2))
    wanted = Autograd().estimate(plain, margin, x, y, Untargeted(), draws=draws).gradient

    def cosine(gradient: torch.Tensor) -> float:
        return float(nn.functional.cosine_similarity(gradient.flatten(1), wanted.flatten(1)).mean())

    bpda = BPDA({"prune*": identity}).estimate(target, margin, x, y, Untargeted(), draws=draws)
    one = Autograd().estimate(target, margin, x, y, Untargeted(), draws=draws)
    assert cosine(bpda.gradient) > cosine(one.gradient) + 0.1


def test_rows_are_stored_and_rebuilt() -> None:
    defense = named_defense("stochastic-activation-pruning")
    for row in defense.rows():
        assert build_attack(repr(row.attack)) == row.attack
        assert build_judge(repr(row.judge)) == row.judge
        assert row.variant in defense.targets()
    assert load_model("iclr2018:stochastic-activation-pruning").stochastic


def test_adaptive_beats_naive_and_the_clean_accuracy_stays() -> None:
    x, y = images(16)
    target = StochasticActivationPruning().target()
    found = {}
    for role in ("naive", "adaptive"):
        row = row_of(role)
        text = repr(row.attack).replace("samples=100", "samples=20").replace("samples=10,", "samples=4,")
        attack = build_attack(text.replace("steps=20", "steps=8"))
        assert attack != row.attack
        threat = ThreatModel(Norm.LINF, float(row.eps), Untargeted())
        found[role] = attack(target, x, y, threat, seed=0, judge=Judge(draws=8)).verdict
    naive, adaptive = (float(found[role].wins.sum()) / 8 for role in ("naive", "adaptive"))
    assert adaptive > naive + 2
    assert float(found["naive"].flips.sum()) / 8 < 0.25 * len(x)
