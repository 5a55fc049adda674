"""BPDA: the forward is the real one to the bit, the backward is the substitute's, and the network is left alone."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.bpda import BPDA, identity, register_backward
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimate
from calipers.gradients.finite_differences import NES
from calipers.randomness import Draws, Role
from calipers.target import Access, Oracle, Target
from calipers.testing.gradient_contract import GradientEstimatorContract
from calipers.threat.objectives import cross_entropy, margin
from calipers.threat.threat_model import Untargeted


def curve(x: Tensor) -> Tensor:
    """The true function of the module that the contract's network bends with."""
    return torch.tanh(x)


class TestTrueSubstitute(GradientEstimatorContract):
    """With the real derivative for a substitute it is autograd."""

    def make(self) -> BPDA:
        return BPDA({"bend": curve})


class TestIdentityBeforeTheNetwork(GradientEstimatorContract):
    """A preprocessor that does nothing and has no gradient, under the identity: autograd of the network behind it."""

    def make(self) -> BPDA:
        return BPDA({"0": "identity"})

    def target(self) -> Target:
        plain = super().target()
        net = nn.Sequential(_Outside(), plain.module.net).eval()
        return Target(net, num_classes=4, input_shape=self.shape, bounds=(-10.0, 10.0))

    def truth(self, target: Target, objective, x, y, goal) -> GradientEstimate:
        return super().truth(super().target(), objective, x, y, goal)


class TestInsideEOT(GradientEstimatorContract):
    def make(self) -> EOT:
        return EOT(4, inner=BPDA({"bend": curve}))


class TestAroundEOT(GradientEstimatorContract):
    def make(self) -> BPDA:
        return BPDA({"bend": curve}, inner=EOT(3, average="probabilities"))


class _Outside(nn.Module):
    """Leaves torch and comes back."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.array(x.numpy()))


class _Rounded(nn.Module):
    """Rounds to steps of 1/8 in numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.from_numpy(np.round(x.numpy() * 8) / 8)


class _Thermometer(nn.Module):
    """Buckman et al.'s code of ten levels: (b, c, h, w) to (b, 10 c, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, 11).view(1, 1, -1, 1, 1) / 10
        return (x[:, :, None] > steps).float().flatten(1, 2)


def ramp(x: Tensor) -> Tensor:
    """The lecture's backward of it: min(max(x / (k / l), 0), 1)."""
    steps = torch.arange(1, 11).view(1, 1, -1, 1, 1) / 10
    return (x[:, :, None] / steps).clamp(0, 1).flatten(1, 2)


def _draws(count: int) -> Draws:
    return Draws(0, Role.SEARCH, tuple(range(count)))


def _linear(inputs: int, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(inputs, 3)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(seed))
        layer.bias.zero_()
    return layer


def _behind(*modules: nn.Module, inputs: int = 6, codes: int | None = None) -> Target:
    net = nn.Sequential(*modules, nn.Flatten(), _linear(codes or inputs)).eval()
    return Target(net, num_classes=3, input_shape=(inputs,), bounds=(-2.0, 2.0), probe=False)


X = torch.rand((5, 6), generator=torch.Generator().manual_seed(1)) * 2 - 1
Y = torch.tensor([0, 1, 2, 0, 1])


def _estimate(estimator, target, x: Tensor = X, y: Tensor = Y, objective=cross_entropy) -> GradientEstimate:
    return estimator.estimate(target, objective, x, y, Untargeted(), draws=_draws(len(x)))


def test_it_is_the_gradient_of_the_classifier_at_the_preprocessed_input() -> None:
    """The lecture's equation: the gradient of f(g(x)) at x is that of f at g(x)."""
    target = _behind(_Rounded())
    found = _estimate(BPDA({"0": identity}), target)
    plain = _behind()
    expected = _estimate(Autograd(), plain, torch.round(X * 8) / 8)
    assert torch.allclose(found.gradient, expected.gradient)
    elsewhere = _estimate(Autograd(), plain, X)
    assert not torch.allclose(found.gradient, elsewhere.gradient, rtol=1e-3)
    with pytest.raises(GradientsUnavailable):
        _estimate(Autograd(), target)


def test_the_forward_is_the_real_one_to_the_bit() -> None:
    """A value put together as soft + (real - soft) would differ in its last digits."""
    target = _behind(_Rounded(), nn.Tanh(), nn.Linear(6, 6))
    found = _estimate(BPDA({"0": identity, "1": lambda x: 0.3 * x + 17.0}), target)
    assert torch.equal(found.logits, target.logits(X))


def test_the_module_runs_once() -> None:
    target = _behind(_Rounded())
    rounding = target.module.net[0]
    rounding.calls = 0
    _estimate(BPDA({"0": identity}), target)
    assert rounding.calls == 1


def test_a_substitute_may_change_the_shape_as_the_module_does() -> None:
    net = nn.Sequential(_Thermometer(), nn.Flatten(), _linear(80)).eval()
    target = Target(net, num_classes=3, input_shape=(2, 2, 2))
    x = torch.rand((4, 2, 2, 2), generator=torch.Generator().manual_seed(3))
    y = torch.tensor([0, 1, 2, 0])
    found = _estimate(BPDA({"0": ramp}), target, x, y, margin)
    code = _Thermometer()(x).requires_grad_(True)
    (slope,) = torch.autograd.grad(margin(net[2](code.flatten(1)), y, Untargeted()).sum(), code)
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(ramp(leaf), leaf, slope)
    assert torch.allclose(found.gradient, expected, atol=1e-5)
    assert float(found.gradient.norm()) > 0.1
    assert float(_gradient_of(target, x, y).norm()) == 0.0


def _gradient_of(target: Target, x: Tensor, y: Tensor) -> Tensor:
    try:
        return _estimate(Autograd(), target, x, y).gradient
    except GradientsUnavailable:
        return torch.zeros_like(x)


class _Dropped(nn.Module):
    """Keeps each feature by chance, and leaves the graph."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) < 0.5)


class _Inference(nn.Module):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return (x * 4).round() / 4


@pytest.mark.parametrize("module", [_Dropped(), _Inference()], ids=lambda module: type(module).__name__)
def test_a_module_under_no_grad_gets_a_backward(module: nn.Module) -> None:
    stochastic = isinstance(module, _Dropped)
    after = nn.Hardtanh(
        -5, 5, inplace=stochastic
    )  # torch itself allows no change in place of the other's output
    net = nn.Sequential(module, after, _linear(6)).eval()
    target = Target(net, num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0), stochastic=stochastic)
    found = _estimate(BPDA({"0": identity}), target)
    assert bool((found.gradient != 0).all())
    assert torch.equal(found.logits, target.logits(X, draws=_draws(5)))


def test_a_substitute_may_be_a_module_with_weights() -> None:
    layer = nn.Linear(6, 6)
    target = _behind(_Rounded())
    found = _estimate(BPDA({"0": layer}), target)
    at = (torch.round(X * 8) / 8).requires_grad_(True)
    (slope,) = torch.autograd.grad(cross_entropy(target.module.net[2](at), Y, Untargeted()).sum(), at)
    assert torch.allclose(found.gradient, slope @ layer.weight, atol=1e-6)
    assert layer.weight.grad is None


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.two = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.relu = nn.ReLU()
        self.last = _linear(6)
        self.shared = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.two(self.shared(self.one(x)))))


def _ran(name: str, target: Target) -> list[str]:
    """The modules whose backward a name replaces."""
    calls = []

    def noting(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    _estimate(BPDA({name: noting}), target)
    return calls


def test_names_are_paths_ends_of_paths_or_patterns() -> None:
    target = Target(_Blocks().eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    assert len(_ran("one.1", target)) == 1
    assert len(_ran("1", target)) == 2
    assert len(_ran("*.1", target)) == 2
    assert len(_ran("shared", target)) == 2, "a module that is called twice is replaced twice"
    whole = Target(_Outside().eval(), num_classes=6, input_shape=(6,), bounds=(-2.0, 2.0))
    assert len(_ran("net", whole)) == 1


def test_a_name_that_fits_nothing_lists_the_modules() -> None:
    target = Target(_Blocks().eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    with pytest.raises(UsageError, match="no module is called 'encoder': there are one, one.0, one.1, two"):
        _estimate(BPDA({"encoder": identity}), target)


def test_a_module_that_is_never_called_is_an_error() -> None:
    """A substitution without effect would look like a robust model."""
    target = Target(_Blocks().eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    with pytest.raises(UsageError, match="'relu', which the network never called"):
        _estimate(BPDA({"relu": identity}), target)


def test_another_shape_is_an_error_and_nothing_stays_behind() -> None:
    net = nn.Sequential(nn.Linear(6, 6), _linear(6)).eval()
    target = Target(net, num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    with pytest.raises(UsageError, match=r"'1' gives \(5, 3\) and its substitute \(5, 6\)"):
        _estimate(BPDA({"1": identity}), target)
    with pytest.raises(UsageError, match="no module is called 'nowhere'"):
        _estimate(BPDA({"0": identity, "nowhere": identity}), target)
    hooks = [
        held
        for module in target.module.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks)
    ]
    assert not any(hooks)


def test_a_module_that_gives_whole_numbers_is_an_error() -> None:
    class Indices(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).long()

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()[:, :3]

    target = Target(
        nn.Sequential(Indices(), Table()).eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0)
    )
    with pytest.raises(UsageError, match=r"'0' gives torch.int64.*the module around it"):
        _estimate(BPDA({"0": identity}), target)
    assert bool((_estimate(BPDA({"net": lambda x: x[:, :3]}), target).gradient != 0).any())


def test_an_outer_module_and_one_inside_it_may_both_be_named() -> None:
    target = Target(_Blocks().eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    both = _estimate(BPDA({"one": identity, "one.1": identity}), target)
    outer = _estimate(BPDA({"one": identity}), target)
    assert torch.equal(both.gradient, outer.gradient)


class _Named(nn.Module):
    """Calls a module by the names of its arguments, or with a list."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.scaled, self.last, self.how = _Scaled(), _linear(6), how

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self._scale(x))

    def _scale(self, x: Tensor) -> Tensor:
        match self.how:
            case "list":
                return self.scaled(x=[x], by=2.0)
            case "placed":
                return self.scaled(x, 1.0)
        return self.scaled(by=2.0, x=x)


class _Scaled(nn.Module):
    def forward(self, x: Tensor | list[Tensor], by: float) -> Tensor:
        return ((x[0] if isinstance(x, list) else x) * by).round()


def test_arguments_may_be_named_and_must_be_tensors() -> None:
    target = Target(_Named("named").eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    found = _estimate(BPDA({"scaled": lambda x, by: x * by}), target)
    plain = _estimate(Autograd(), _behind(), (2 * X).round())
    assert torch.allclose(found.gradient, 2 * plain.gradient)
    target = Target(_Named("placed").eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    found = _estimate(BPDA({"scaled": identity}), target)
    assert torch.allclose(found.gradient, _estimate(Autograd(), _behind(), X.round()).gradient)
    target = Target(_Named("list").eval(), num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    with pytest.raises(UsageError, match="'scaled' takes no tensor"):
        _estimate(BPDA({"scaled": identity}), target)


def test_hooks_of_the_network_itself_still_run() -> None:
    net = nn.Sequential(nn.Identity(), _linear(6)).eval()
    net[0].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    net[0].register_forward_hook(lambda _, __, output: output.round())
    target = Target(net, num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    found = _estimate(BPDA({"0": identity}), target)
    assert torch.equal(found.logits, target.logits(X))
    plain = _estimate(Autograd(), Target(net[1], num_classes=3, input_shape=(6,)), (2 * X).round())
    assert torch.allclose(found.gradient, 2 * plain.gradient)


def test_a_bf16_network_gives_a_float32_gradient() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), _linear(6)).eval()
    target = Target(net, num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0), precision="bf16")
    found = _estimate(BPDA({"1": "identity"}), target)
    assert found.gradient.dtype is torch.float32
    full = Target(net, num_classes=3, input_shape=(6,), bounds=(-2.0, 2.0))
    expected = _estimate(BPDA({"1": "identity"}), full)
    assert torch.nn.functional.cosine_similarity(found.gradient, expected.gradient).min() > 0.98


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="name at least one"):
        BPDA({})
    with pytest.raises(UsageError, match="name at least one, each once"):
        BPDA((("a", "identity"), ("a", "identity")))
    with pytest.raises(UsageError, match="nes and spsa have none"):
        BPDA({"a": identity}, inner=NES())
    with pytest.raises(UsageError, match="no function is named 'nothing'"):
        BPDA({"a": "nothing"})
    with pytest.raises(GradientsUnavailable):
        _estimate(BPDA({"0": identity}), Oracle(_behind(_Rounded()), Access.SCORES))


def test_a_lambda_works_and_is_not_stored() -> None:
    estimator = BPDA({"0": lambda x: x})
    assert torch.equal(
        _estimate(estimator, _behind(_Rounded())).gradient,
        _estimate(BPDA({"0": "identity"}), _behind(_Rounded())).gradient,
    )
    with pytest.raises(UsageError, match="cannot be stored: register it"):
        estimator.describe()


def test_a_registered_substitute_is_written_by_its_name() -> None:
    register_backward("ramp-of-ten", ramp)
    assert BPDA({"encoder": ramp}).describe() == "bpda(encoder=ramp-of-ten)"
    assert BPDA({"encoder": ramp}) == BPDA({"encoder": "ramp-of-ten"})
