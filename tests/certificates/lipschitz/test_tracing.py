"""Tracing: what could make a traced graph another function than the network is refused, with its place."""

import pytest
import torch
from drawn_layers import Function
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.errors import UnknownLayer, Unsound
from calipers.target import Target


def bound(module: nn.Module, shape: tuple[int, ...] = (4,)) -> float:
    return float(lipschitz_upper_bound(module, shape))


def refused(module: nn.Module, words: str, shape: tuple[int, ...] = (4,)) -> Unsound:
    with pytest.raises(Unsound, match=words) as caught:
        lipschitz_upper_bound(module, shape)
    assert "\n" not in str(caught.value)
    return caught.value


class Block(nn.Module):
    """A network whose forward is given, with one linear layer of norm 2 in it."""

    def __init__(self, function: object = None) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        with torch.no_grad():
            self.inner[0].weight.copy_(2 * torch.eye(4))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.function is None else self.function(self, x)  # type: ignore[no-any-return, operator]


# ----------------------------------------------------------------------------------------------- modes and hooks
def test_training_mode_anywhere_is_refused_with_the_place() -> None:
    net = Block().eval()
    net.inner[1].train()
    error = refused(net, "training mode")
    assert str(error).startswith("inner.1 (ReLU): ")
    refused(Block().train(), "training mode")


def test_forward_hooks_of_any_kind_are_refused() -> None:
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        net = Block().eval()
        getattr(net.inner[0], register)(lambda *_: None)
        assert str(refused(net, "hook")).startswith("inner.0 (Linear): ")
    net = Block().eval()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        refused(net, "global forward hook")
    finally:
        handle.remove()
    assert 2.0 <= bound(net) < 2.001


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_of_the_old_style_is_a_hook_and_is_refused() -> None:
    net = Block().eval()
    nn.utils.spectral_norm(net.inner[0])
    refused(net, "parametrizations")


def test_methods_replaced_on_an_instance_are_refused() -> None:
    net = Block().eval()
    net.inner[1].forward = lambda x: 10 * x
    refused(net, "replaced forward")
    conv = nn.Conv1d(1, 1, 1).eval()
    conv._conv_forward = lambda x, weight, bias: 10 * x  # type: ignore[assignment, method-assign]
    refused(conv, "replaced _conv_forward", (1, 4))


def test_a_forward_replaced_in_a_class_of_torch_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: 10 * x)
    refused(Block().eval(), "forward that is not torch's own")


def test_a_subclass_with_its_own_forward_is_followed_and_not_taken_for_its_parent() -> None:
    class Louder(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 3.0 * functional.linear(input, self.weight, self.bias)

    layer = Louder(4, 4).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    assert 3.0 <= bound(layer) < 3.001


def test_a_subclass_that_replaces_call_is_refused() -> None:
    class Louder(nn.ReLU):
        def __call__(self, x: Tensor) -> Tensor:
            return 3.0 * x

    refused(Louder().eval(), "__call__")


# ----------------------------------------------------------------------------------------------- parametrizations
def test_parametrized_weights_are_computed_and_bounded() -> None:
    orthogonal = parametrizations.orthogonal(nn.Linear(6, 6)).eval()
    assert 1.0 - 1e-6 <= bound(orthogonal, (6,)) <= 1.0 + 1e-5
    normed = parametrizations.weight_norm(nn.Conv2d(2, 3, 3)).eval()
    before = dict(normed.state_dict())
    plain = nn.Conv2d(2, 3, 3).eval()
    plain.weight = nn.Parameter(normed.weight.detach().clone())
    assert bound(normed, (2, 6, 6)) == bound(plain, (2, 6, 6))
    assert parametrize.is_parametrized(normed)
    assert all(torch.equal(before[key], value) for key, value in normed.state_dict().items())


def test_a_parametrization_of_the_users_own_is_computed() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2.0 * weight

    layer = nn.Linear(3, 3)
    layer.weight = nn.Parameter(torch.eye(3))
    parametrize.register_parametrization(layer, "weight", Doubled())
    assert 2.0 <= bound(layer.eval(), (3,)) < 2.001


# ----------------------------------------------------------------------------------------------- number formats
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_and_casts_are_refused(dtype: torch.dtype) -> None:
    assert "inner.0.weight" in str(refused(Block().eval().to(dtype), "real arithmetic"))
    refused(Function(lambda x: x.to(dtype).float()).eval(), "casts to")
    refused(Function(lambda x: x.half().float()).eval(), "real arithmetic")
    refused(Function(lambda x: x.to(torch.int32) * 1.0).eval(), "casts to")


def test_automatic_mixed_precision_inside_a_network_is_refused() -> None:
    def function(net: Block, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net.inner(x)  # type: ignore[no-any-return]

    refused(Block(function).eval(), "autocast")


def test_casts_between_float32_and_float64_pass() -> None:
    assert bound(Function(lambda x: x.to(torch.float32).double().to(x.dtype)).eval()) == 1.0
    assert 2.0 <= bound(Block().double().eval()) < 2.001


def test_weights_that_are_nan_or_infinite_are_refused_and_named() -> None:
    for value in (torch.nan, torch.inf):
        net = Block().eval()
        with torch.no_grad():
            net.inner[0].weight[0, 0] = value
        assert "inner.0" in str(refused(net, "NaN or infinite"))


def test_weights_that_are_no_dense_tensors_are_refused() -> None:
    net = Function(lambda x: x @ net.table).eval()
    net.register_buffer("table", torch.eye(4).to_sparse())
    assert str(refused(net, "layout")).startswith("table (weights): ")


def test_layers_that_are_not_initialized_are_refused() -> None:
    refused(nn.Sequential(nn.LazyLinear(3)).eval(), "not initialized")


# ----------------------------------------------------------------------------------------------- in place
def in_place_then_again(x: Tensor) -> Tensor:
    y = 2.0 * x
    z = y.relu_()
    return z + y


def in_place_under_a_view(x: Tensor) -> Tensor:
    y = 2.0 * x
    y.view(y.shape[0], -1).abs_()
    return y


def in_place_by_a_flag(x: Tensor) -> Tensor:
    y = 2.0 * x
    return functional.relu(y, inplace=True) - y


def in_place_by_an_operator(x: Tensor) -> Tensor:
    y = 2.0 * x
    z = y
    z += x
    return z * 1.0 + y


def in_place_through_detach(x: Tensor) -> Tensor:
    y = 2.0 * x
    y.detach().relu_()
    return y


@pytest.mark.parametrize(
    "function",
    [in_place_then_again, in_place_under_a_view, in_place_by_a_flag, in_place_through_detach],
)
def test_a_tensor_that_is_changed_in_place_and_used_again_is_refused(function: object) -> None:
    refused(Function(function).eval(), "in place", (4, 2))  # type: ignore[arg-type]


def test_a_change_in_place_of_what_is_not_used_again_is_bounded() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Flatten()).eval()
    assert bound(net) == bound(nn.Sequential(net[0], nn.ReLU()).eval())

    def function(x: Tensor) -> Tensor:
        y = 2.0 * x
        y += x
        return y.relu_()

    assert 3.0 <= bound(Function(function).eval()) < 3.001


def test_an_in_place_residual_that_reads_what_was_changed_is_never_bounded_too_low() -> None:
    """``x.relu_() + F(x)`` is a common mistake of residual blocks: ``F`` sees the changed features."""
    refused(Function(in_place_by_an_operator).eval(), "in place|otherwise than its traced graph")


def test_assigning_to_a_slice_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        y = 2.0 * x
        y[:, 0] = 0.0
        return y

    refused(Function(function).eval(), "assigns to a slice")


def test_weights_that_change_when_the_network_runs_are_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.seen.add_(1.0)  # type: ignore[no-any-return, operator]

    refused(Counting().eval(), "state|otherwise|changes")


# ----------------------------------------------------------------------------------------------- graphs
def branching(x: Tensor) -> Tensor:
    return 2.0 * x if x.sum() > 0 else x


def looping(x: Tensor) -> Tensor:
    for row in x:
        x = x + row
    return x


@pytest.mark.parametrize("function", [branching, looping])
def test_control_flow_on_the_input_is_refused(function: object) -> None:
    refused(Function(function).eval(), "control flow")  # type: ignore[arg-type]


def test_a_refused_graph_names_the_module_in_which_it_fails() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.max() > 0 else -x

    error = refused(nn.Sequential(nn.ReLU(), nn.Sequential(Chooses())).eval(), "control flow")
    assert str(error).startswith("1.0 (Chooses): ")


def test_control_flow_on_weights_and_settings_is_followed() -> None:
    def function(net: Block, x: Tensor) -> Tensor:
        return net.inner(x) if float(net.inner[0].weight.sum()) > 0 and not net.training else 9 * x

    assert 2.0 <= bound(Block(function).eval()) < 2.001


def test_control_flow_on_the_shape_of_one_input_is_followed() -> None:
    def function(x: Tensor) -> Tensor:
        assert x.ndim == 2 and len(x.shape) == 2 and x.dim() == 2
        if x.shape[1] % 2 or x.size(-1) != 4:
            raise ValueError(f"{x.shape[1]} channels")
        first, second = x.view(x.size(0), *x.shape[1:]).split(x.shape[1] // 2, 1)
        parts = [*first.chunk(2, 1), second]
        return torch.cat([3.0 * part for part in parts], 1) if len(parts) == 3 else x

    assert 3.0 <= bound(Function(function).eval()) < 3.001
    refused(Function(function).eval(), "5 channels", (5,))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2.0 * x if x.shape[0] == 1 else x,
        lambda x: 2.0 * x if x.size(0) > 1 else x,
        lambda x: 2.0 * x if len(x) > 1 else x,
        lambda x: torch.cat([row[None] for row in x]),
    ],
)
def test_control_flow_on_the_size_of_the_batch_is_refused(function: object) -> None:
    refused(Function(function).eval(), "the batch")  # type: ignore[arg-type]


def test_arguments_with_defaults_keep_them() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: float = 3.0) -> Tensor:
            return scale * x if mask is None else x * mask

    assert 3.0 <= bound(Masked().eval()) < 3.001


def test_networks_that_draw_randomness_are_refused() -> None:
    for function in (
        lambda x: x + torch.randn(1),
        lambda x: x + torch.randn_like(x),
        lambda x: x * torch.rand(1),
        functional.dropout,
    ):
        refused(Function(function).eval(), "random")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: x.flip(0),
        lambda x: x / x.size(0),
        lambda x: x.roll(1, 0),
        lambda x: x.reshape(-1, 2),
        lambda x: x[torch.tensor([1, 2, 0])],
        lambda x: x + x[:1],
        lambda x: x.t().reshape(x.shape),
        lambda x: torch.cat([x[1:], x[:1]]),
        lambda x: torch.softmax(x, 0),
        lambda x: x * torch.arange(x.shape[0])[:, None],
    ],
)
def test_networks_that_mix_or_count_the_inputs_of_a_batch_are_refused(function: object) -> None:
    refused(Function(function).eval(), "batch|inputs")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function", [lambda x: (x, x), lambda x: {"out": x}, lambda x: x.sum(), lambda x: None]
)
def test_networks_that_give_anything_but_one_tensor_are_refused(function: object) -> None:
    refused(Function(function).eval(), "one tensor|batch axis|whole batch")  # type: ignore[arg-type]


def test_modules_outside_the_network_are_refused() -> None:
    outside = nn.Linear(4, 4).eval()
    refused(Function(lambda x: 1.0 * outside(x)).eval(), "not installed as a submodule")


def test_values_that_leave_torch_are_refused() -> None:
    refused(Function(lambda x: x * float(x.sum())).eval(), "cannot be traced|control flow")
    refused(Function(lambda x: x.data * 2).eval(), "attribute 'data'")
    refused(Function(lambda x: x.apply_(lambda v: v)).eval(), "cannot be traced")


def test_a_traced_graph_that_is_not_the_network_is_refused() -> None:
    class Alternating(nn.Module):
        """Another function at each call: tracing records one of them."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * float(self.calls)

    refused(Alternating().eval(), "otherwise than its traced graph")


def test_the_network_is_left_as_it_was() -> None:
    net = Block().eval().requires_grad_(True)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    lipschitz_upper_bound(net, (4,))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.inner[0].weight.dtype is torch.float32
    assert net.inner[0].weight.requires_grad
    assert not net.training


def test_a_target_with_its_preprocessing_is_traced_and_the_standard_deviation_counts() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 4, bias=False)).eval()
    target = Target(net, num_classes=4, input_shape=(2, 3, 3), mean=(0.4, 0.5), std=(0.5, 0.25))
    matrix = net[1].weight.detach().double().reshape(4, 2, 9)
    scale = torch.tensor([0.5, 0.25], dtype=torch.float64).reshape(1, 2, 1)
    true = float(torch.linalg.matrix_norm((matrix / scale).reshape(4, 18), 2))
    assert true <= bound(target.module, (2, 3, 3)) <= true * (1 + 1e-9)


def test_unknown_modules_and_functions_are_refused_by_name() -> None:
    error = refused(nn.Sequential(nn.ReLU(), nn.LPPool1d(2, 2)).eval(), "no Lipschitz bound is known", (1, 4))
    assert isinstance(error, UnknownLayer)
    assert (error.place, error.kind) == ("1", "LPPool1d")
    error = refused(Function(lambda x: torch.fft.fft(x).real).eval(), "no Lipschitz bound is known")
    assert isinstance(error, UnknownLayer)
    assert error.kind == "fft_fft"
