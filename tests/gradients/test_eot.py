"""EOT: the gradient of an expectation, unbiased, exact where the distribution is finite, and averaged as asked."""

import pytest
import torch
from torch import Tensor, nn

from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimate, repeat_draws
from calipers.gradients.finite_differences import NES
from calipers.gradients.transformations import AdditiveNoise, Drawn, Finite, Member, Transformations
from calipers.randomness import Draws, Role
from calipers.target import Access, Oracle, Target
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.testing.known_answers import concentric_balls, half_space, noisy_half_space
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Targeted, Untargeted


def mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


def halved(x: Tensor) -> Tensor:
    return 0.5 * x


def shifted(copies: Tensor, generator: torch.Generator) -> Tensor:
    """Move each copy around by a whole number of places, drawn for it."""
    places = torch.randint(0, copies.shape[-1], (len(copies),), generator=generator)
    return torch.stack([copy.roll(int(place), -1) for copy, place in zip(copies, places, strict=True)])


class TestOnADeterministicTarget(GradientEstimatorContract):
    """The mean of equal gradients is the gradient."""

    def make(self) -> EOT:
        return EOT(5)


class TestAveragedProbabilities(GradientEstimatorContract):
    def make(self) -> EOT:
        return EOT(6, average="probabilities", max_batch=13)


class TestAveragedLogits(GradientEstimatorContract):
    def make(self) -> EOT:
        return EOT(3, average="logits", max_batch=7)


class TestExact(GradientEstimatorContract):
    """A finite distribution, taken member by member."""

    weights = (0.5, 0.2, 0.3)

    def make(self) -> EOT:
        return EOT(8, over=Finite((identity, mirrored, halved), self.weights), max_batch=16)

    def truth(self, target: Target, objective, x, y, goal) -> GradientEstimate:
        return _mixture(self.weights, super().truth, target, objective, x, y, goal)

    # the loss of the mean scores is not the mean loss: see the tests of averages below
    def test_it_agrees_with_the_truth_in_direction_and_scale(self) -> None:  # type: ignore[override]
        target, x, y = self._problem(7)
        for goal in (Untargeted(), Targeted((0, 1, 2, 3, 0, 1, 2))):
            found = self._estimate(target, cross_entropy, x, y, goal)
            for row in range(7):
                one = slice(row, row + 1)
                own = Targeted((goal.classes[row],)) if isinstance(goal, Targeted) else goal
                wanted = self.truth(target, cross_entropy, x[one], y[one], own)
                assert torch.allclose(found.gradient[one], wanted.gradient, atol=1e-5)
                assert torch.allclose(found.value[one], wanted.value, atol=1e-5)
                assert torch.allclose(found.logits[one], wanted.logits, atol=1e-5)


class TestSampled(TestExact):
    """The same distribution, fewer samples than it has members: right in the mean."""

    exact = False
    weights = (0.5, 0.2, 0.3)

    def make(self) -> EOT:
        return EOT(2, over=Finite((identity, mirrored, halved), self.weights))

    def test_it_agrees_with_the_truth_in_direction_and_scale(self) -> None:  # type: ignore[override]
        target, x, y = self._problem(5)
        repeats = 600
        found = torch.stack(
            [
                self._estimate(target, cross_entropy, x, y, Untargeted(), seed=seed).gradient
                for seed in range(repeats)
            ]
        )
        wanted = torch.cat(
            [
                self.truth(target, cross_entropy, x[row : row + 1], y[row : row + 1], Untargeted()).gradient
                for row in range(5)
            ]
        )
        error = (found.mean(0) - wanted).abs() / (found.std(0) / repeats**0.5 + 1e-6)
        assert float(error.max()) < 4.5
        assert float(found.std(0).max()) > 1e-2


class TestWithNES(GradientEstimatorContract):
    exact = False
    closeness = 2e-3
    repeats = 48

    def make(self) -> EOT:
        return EOT(3, inner=NES(20, sigma=0.003))


def _mixture(weights, truth, target: Target, objective, x, y, goal) -> GradientEstimate:
    """The expectation, written out, with the derivative of each transformation by hand."""
    plain, mirror, half = (
        truth(target, objective, transform(x), y, goal) for transform in (identity, mirrored, halved)
    )
    parts = (plain.gradient, mirror.gradient.flip(-1), 0.5 * half.gradient)
    found = zip(weights, parts, (plain, mirror, half), strict=True)
    rows = [(weight * part, weight * each.value, weight * each.logits) for weight, part, each in found]
    return GradientEstimate(
        sum(row[1] for row in rows), sum(row[0] for row in rows), sum(row[2] for row in rows)
    )


def _draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, Role.SEARCH, tuple(range(count)))


def _estimate(
    estimator, target, x: Tensor, y: Tensor, objective=margin, goal=None, seed: int = 0
) -> GradientEstimate:
    return estimator.estimate(target, objective, x, y, goal or Untargeted(), draws=_draws(len(x), seed))


class _Noisy(nn.Module):
    """Scores of a small network at an input with noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 3))
        with torch.no_grad():
            for part in self.parameters():
                part.normal_(0, 0.7, generator=torch.Generator().manual_seed(part.numel()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x + 0.3 * torch.randn_like(x))


def _noisy() -> Target:
    return Target(_Noisy().eval(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0), stochastic=True)


X = torch.randn((6, 4), generator=torch.Generator().manual_seed(2))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def test_on_a_noisy_half_space_it_is_unbiased_within_its_own_interval() -> None:
    """The mean margin is (1 - 2q) times that of the half-space, and so is its gradient."""
    flip, samples, repeats = 0.3, 25, 400
    known = noisy_half_space([3.0, 4.0], 1.0, flip=flip)
    x, y = torch.tensor([[1.0, -2.0]]).expand(repeats, 2), torch.ones(repeats, dtype=torch.int64)
    found = _estimate(EOT(samples), known.target, x, y)
    expected = (1 - 2 * flip) * torch.tensor([-1.2, -1.6])
    error = found.gradient.std(0) / repeats**0.5
    assert bool(((found.gradient.mean(0) - expected).abs() < 4 * error).all())
    # one estimate is the mean of 25 signs: its spread is that of Bernoulli draws
    spread = 2 * (flip * (1 - flip) / samples) ** 0.5 * expected.norm() / (1 - 2 * flip)
    assert float(found.gradient.std(0).norm()) == pytest.approx(float(spread), rel=0.15)
    distance = (3 * 1.0 + 4 * -2.0 + 1) / 5
    assert float(found.value.mean()) == pytest.approx(-2 * distance * (1 - 2 * flip), abs=0.1)


def test_more_samples_come_nearer_by_their_square_root() -> None:
    target = _noisy()
    repeats = 60
    x, y = X[:1].expand(repeats, 4), Y[:1].expand(repeats)
    few, many = (
        float(_estimate(EOT(samples, max_batch=4096), target, x, y).gradient.std(0).norm())
        for samples in (4, 64)
    )
    assert few / many == pytest.approx(4, rel=0.3)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize("average", ["loss", "probabilities", "logits"])
def test_each_average_is_the_gradient_of_its_definition(average, objective) -> None:
    """A naive graph of all samples of one input, with the same draws, says what is averaged."""
    target, samples = _noisy(), 9
    goal = Targeted((1, 2, 0, 2, 0, 1))
    found = _estimate(EOT(samples, average=average), target, X, Y, objective, goal)
    leaf = X.clone().requires_grad_(True)
    copies = leaf.repeat_interleave(samples, 0)
    scores = target.logits(copies, draws=repeat_draws(_draws(6), range(6), samples))
    if average == "loss":
        labels = Y.repeat_interleave(samples)
        wanted = Targeted(tuple(chosen for chosen in goal.classes for _ in range(samples)))
        value = objective(scores, labels, wanted).view(6, samples).mean(1)
        logits = scores.view(6, samples, 3).mean(1)
    else:
        each = scores.view(6, samples, 3)
        logits = each.mean(1) if average == "logits" else each.softmax(-1).mean(1).log()
        value = objective(logits, Y, goal)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(found.gradient, gradient, atol=1e-5)
    assert torch.allclose(found.value, value, atol=1e-5)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert float(gradient.flatten(1).norm(dim=1).min()) > 1e-3


def test_the_three_averages_differ_where_the_network_is_not_linear() -> None:
    found = [
        _estimate(EOT(200, average=average), _noisy(), X, Y, cross_entropy).gradient
        for average in ("loss", "probabilities", "logits")
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).norm() / found[0].norm()) > 0.01


def test_averaged_probabilities_do_not_underflow() -> None:
    """Scores 400 apart leave probabilities of e^-400; the loss of their mean still has its gradient."""
    known = half_space([1.0, 0.0], gain=200.0)
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    for objective in (cross_entropy, margin):
        plain = _estimate(Autograd(), known.target, x, y, objective)
        found = _estimate(EOT(3, average="probabilities"), known.target, x, y, objective)
        assert torch.allclose(found.gradient, plain.gradient, rtol=1e-4)
    assert float(plain.gradient[0, 0]) == pytest.approx(-400)


def test_the_exact_expectation_is_the_sampled_one_in_the_limit() -> None:
    exact, sampled = (
        EOT(samples, over=Finite((identity, mirrored, halved), (0.6, 0.1, 0.3))) for samples in (3, 2)
    )
    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    wanted = _estimate(exact, target, X[:1], Y[:1], cross_entropy)
    assert torch.equal(
        wanted.gradient, _estimate(exact, target, X[:1], Y[:1], cross_entropy, seed=9).gradient
    )
    found = _estimate(sampled, target, X[:1].expand(4000, 4), Y[:1].expand(4000), cross_entropy)
    error = (found.gradient.mean(0) - wanted.gradient[0]).abs() / (found.gradient.std(0) / 4000**0.5)
    assert float(error.max()) < 4
    assert float(found.value.mean()) == pytest.approx(float(wanted.value), abs=0.02)


def _linear() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    with torch.no_grad():
        net[0].weight.normal_(generator=torch.Generator().manual_seed(5))
    return net


@pytest.mark.parametrize("average", ["loss", "probabilities", "logits"])
def test_an_exact_expectation_weighs_its_members(average) -> None:
    weights = torch.tensor([0.6, 0.1, 0.3])
    over = Finite((identity, mirrored, halved), (0.6, 0.1, 0.3))
    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    found = _estimate(EOT(30, over=over, average=average), target, X, Y, cross_entropy)
    leaf = X.clone().requires_grad_(True)
    scores = torch.stack([target.logits(move(leaf)) for move in (identity, mirrored, halved)], 1)
    share = weights[None, :, None]
    if average == "loss":
        losses = [cross_entropy(scores[:, place], Y, Untargeted()) for place in range(3)]
        value = (torch.stack(losses, 1) * weights).sum(1)
    else:
        mean = (scores * share).sum(1) if average == "logits" else (scores.softmax(-1) * share).sum(1).log()
        value = cross_entropy(mean, Y, Untargeted())
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.allclose(found.gradient, gradient, atol=1e-5)
    assert torch.allclose(found.value, value, atol=1e-5)


def test_members_of_a_finite_distribution_are_asked_once_each() -> None:
    over = Finite((identity, mirrored, halved))
    for stochastic, rows in ((False, 3), (True, 30)):
        target = Target(_linear(), num_classes=3, input_shape=(4,), stochastic=stochastic, bounds=(-5.0, 5.0))
        view = Oracle(target, Access.GRADIENTS)
        _estimate(EOT(31, over=over), view, X, Y)
        assert (view.counts.forwards, view.counts.backwards) == (6 * rows, 6 * rows)


def test_all_samples_go_in_one_batch_that_is_parted_between_inputs() -> None:
    target, sizes = _noisy(), []
    handle = target.module.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    for batch, expected in ((1024, [60]), (30, [30, 30]), (29, [20, 20, 20]), (3, [10] * 6)):
        sizes.clear()
        _estimate(EOT(10, max_batch=batch), target, X, Y)
        assert sizes == expected
    handle.remove()


def test_the_smoothed_gradient_of_two_balls_has_its_closed_form() -> None:
    """The margin rho^2 - |x + n|^2 is quadratic: noise leaves the mean gradient as it is."""
    known = concentric_balls([0.0, 0.0, 0.0], 1.0)
    x, y = torch.tensor([[0.3, -0.2, 0.1]]).expand(300, 3), torch.zeros(300, dtype=torch.int64)
    for kind, deviation in (("gaussian", 1.0), ("laplace", 2**0.5), ("uniform", 3**-0.5)):
        found = _estimate(EOT(16, over=AdditiveNoise(kind, 0.5)), known.target, x, y)
        spread = 4 * 0.5 * deviation / 16**0.5
        assert torch.allclose(found.gradient.mean(0), 4 * x[0], atol=4 * spread / 300**0.5)
        assert float(found.gradient.std(0).mean()) == pytest.approx(spread, rel=0.1)
        # E |x + n|^2 = |x|^2 + 3 var
        assert float(found.value.mean()) == pytest.approx(
            2 * (0.14 + 3 * (0.5 * deviation) ** 2 - 1), abs=0.15
        )


def test_transformations_of_an_input_do_not_depend_on_the_batch() -> None:
    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    for over in (
        AdditiveNoise("gaussian", 0.5),
        Drawn(shifted),
        Finite((identity, mirrored, halved, mirrored)),
    ):
        estimator = EOT(3, over=over)
        many = _estimate(estimator, target, X, Y).gradient
        alone = estimator.estimate(
            target, margin, X[4:5], Y[4:5], Untargeted(), draws=Draws(0, Role.SEARCH, (4,))
        ).gradient
        assert torch.allclose(many[4:5], alone, atol=1e-6)
        assert not torch.allclose(many, _estimate(estimator, target, X, Y, seed=1).gradient)
        parted = EOT(3, over=over, max_batch=6)
        assert torch.allclose(many, _estimate(parted, target, X, Y).gradient, atol=1e-6)


def test_a_drawn_transformation_is_differentiated_through() -> None:
    """Of a linear network every shift has its own gradient; the mean over all four is their mean."""
    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    x, y = X[:1].expand(500, 4), torch.zeros(500, dtype=torch.int64)
    objective = _first_score
    found = _estimate(EOT(8, over=shifted), target, x, y, objective).gradient
    expected = target.module.net[0].weight[0].mean()
    assert torch.allclose(found.mean(0), expected.expand(4), atol=0.1)
    assert float(found.std(0).max()) > 0.1


def _first_score(logits: Tensor, y: Tensor, goal) -> Tensor:
    return logits[:, 0]


def test_a_distribution_of_ones_own_may_list_its_members() -> None:
    class Scales(Transformations):
        def __call__(self, copies: Tensor, generator: torch.Generator) -> Tensor:
            raise AssertionError("its members are few enough to be taken one by one")

        def members(self) -> tuple[Member, ...]:
            return tuple(Member(lambda x, k=k: k * x, 0.25) for k in range(4))

    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    found = _estimate(EOT(4, over=Scales()), target, X, Y, _first_score).gradient
    assert torch.allclose(found, (1.5 * target.module.net[0].weight[0]).expand(6, 4), atol=1e-5)
    with pytest.raises(UsageError, match="Scales cannot be stored"):
        EOT(4, over=Scales()).describe()


def test_a_transformation_without_a_gradient_is_an_error() -> None:
    target = Target(_linear(), num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0))
    with pytest.raises(GradientsUnavailable, match="make it a module of the target"):
        _estimate(EOT(4, over=Finite((torch.Tensor.detach,))), target, X, Y)


def test_a_stochastic_network_under_bpda_is_averaged_too() -> None:
    """Features dropped by chance outside the graph: the mean of the substituted gradients, over fresh draws."""
    net = nn.Sequential(_Dropped(), _linear()[0]).eval()
    target = Target(net, num_classes=3, input_shape=(4,), bounds=(-5.0, 5.0), stochastic=True)
    found = _estimate(EOT(400, inner=BPDA({"0": identity})), target, X, Y, _squared)
    weight = net[1].weight[0].detach()
    # with s = w (x m) + b and E m = 1/2, the mean of 2 s w is 2 (w x / 2 + b) w
    expected = 2 * (X @ weight / 2 + net[1].bias[0].detach())[:, None] * weight
    assert torch.allclose(found.gradient, expected, atol=0.15 * float(expected.abs().max()))


class _Dropped(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) < 0.5)


def _squared(logits: Tensor, y: Tensor, goal) -> Tensor:
    return logits[:, 0].square()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: EOT(0), "samples 0"),
        (lambda: EOT(max_batch=0), "max_batch 0"),
        (lambda: EOT(3, average="logits", inner=NES()), "cannot average logits"),
        (lambda: EOT(3, inner=EOT(3)), "eot stands inside eot"),
        (lambda: EOT(3, inner=BPDA({"a": identity}, inner=EOT(3))), "eot stands inside eot"),
        (lambda: Finite(()), "names no transformation"),
        (lambda: Finite((identity, halved), (0.5, 0.6)), "with the sum 1"),
        (lambda: Finite((identity, halved), (1.0,)), "give one each"),
        (lambda: Finite((identity, halved), (1.0, 0.0)), "above 0"),
        (lambda: AdditiveNoise("uniform", 0.0), "scale of the noise is 0.0"),
    ],
)
def test_what_means_nothing_is_refused(make, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()
