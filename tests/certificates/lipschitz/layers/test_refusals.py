"""Refusals: layers without a useful constant are named with their place and the reason, in one line."""

import pytest
import torch
from drawn_layers import Function
from torch import Tensor, nn
from torch.nn import functional

from calipers.certificates.lipschitz.layers.registry import known_modules
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.errors import NotLipschitz, UnknownLayer, Unsound


class Inside(nn.Module):
    """A layer at the place ``body.norm`` of a network."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"norm": layer})

    def forward(self, x: Tensor) -> Tensor:
        return self.body["norm"](torch.relu(x))  # type: ignore[no-any-return]


def sharp(layer: nn.Module) -> nn.Module:
    layer.weight.data.fill_(-2.0)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "useless"),
    [
        (nn.LayerNorm(4), (4,), "LayerNorm", "316.2"),
        (sharp(nn.LayerNorm((4,))), (4,), "LayerNorm", "632.5"),
        (nn.LayerNorm(4, eps=1e-6), (4,), "LayerNorm", "1000"),
        (nn.GroupNorm(2, 4), (4, 3), "GroupNorm", "316.2"),
        (nn.InstanceNorm1d(4), (4, 3), "InstanceNorm1d", "316.2"),
        (nn.InstanceNorm2d(4), (4, 3, 3), "InstanceNorm2d", "316.2"),
        (nn.RMSNorm(4, eps=1e-5), (4,), "RMSNorm", "316.2"),
    ],
)
def test_normalization_by_the_input_itself_is_refused_as_useless(
    layer: nn.Module, shape: tuple[int, ...], kind: str, useless: str
) -> None:
    with pytest.raises(NotLipschitz, match="finite and useless") as caught:
        lipschitz_upper_bound(Inside(layer).eval(), shape)
    assert str(caught.value).startswith(f"body.norm ({kind}): ")
    assert useless in str(caught.value)
    assert "max|gamma|/sqrt(eps)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_batch_normalization_without_stored_statistics_is_refused(module: nn.Module) -> None:
    shape = (4,) if isinstance(module, nn.BatchNorm1d) else (4, 2, 2)
    with pytest.raises(NotLipschitz, match="statistics of the batch"):
        lipschitz_upper_bound(Inside(module).eval(), shape)


def test_batch_normalization_by_the_batch_as_a_function_is_refused() -> None:
    mean, variance = torch.zeros(4), torch.ones(4)
    for options in ({"training": True}, {"running_mean": None, "running_var": None, "training": True}):
        given = {"running_mean": mean, "running_var": variance, **options}
        with pytest.raises(NotLipschitz, match="statistics of the batch"):
            lipschitz_upper_bound(
                Function(lambda x, given=given: functional.batch_norm(x, **given)).eval(),  # type: ignore[misc]
                (4, 3),
            )


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]  # type: ignore[no-any-return]


def written_out(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.transpose(1, 2), -1) @ x


@pytest.mark.parametrize(
    "module",
    [
        Attention(),
        Function(lambda x: functional.scaled_dot_product_attention(x, x, x)),
        Function(written_out),
        Function(lambda x: torch.bmm(x, x.transpose(1, 2))),
        nn.TransformerEncoderLayer(4, 2, batch_first=True),
    ],
)
def test_dot_product_attention_is_refused_as_unbounded(module: nn.Module) -> None:
    with pytest.raises(NotLipschitz, match="attention.*no Lipschitz constant exists"):
        lipschitz_upper_bound(module.eval(), (3, 4))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.RNN(4, 4, batch_first=True), "recurrent"),
        (nn.LSTM(4, 4, batch_first=True), "recurrent"),
        (nn.GRU(4, 4, batch_first=True), "recurrent"),
        (Function(lambda x: x * x), "depend on the input"),
        (Function(lambda x: x * torch.sigmoid(x)), "depend on the input"),
        (Function(lambda x: 1.0 / x), "near zero"),
        (Function(lambda x: x / (1.0 + x.abs())), "near zero"),
        (Function(lambda x: torch.einsum("btc,bsc->bts", x, x)), "slope grows"),
        (Function(functional.normalize), "finite and useless"),
        (Function(lambda x: torch.div(x, 2.0, rounding_mode="floor")), "jumps"),
        (Function(lambda x: x // 1.0), "jumps"),
        (Function(lambda x: (x > 0) * 1.0), "jumps"),
        (Function(lambda x: x.argmax(1) * 1.0), "jumps"),
        (nn.LocalResponseNorm(2), "statistics of each input"),
    ],
    ids=str,
)
def test_layers_without_a_constant_are_refused_with_the_reason(module: nn.Module, words: str) -> None:
    with pytest.raises(NotLipschitz, match=words):
        lipschitz_upper_bound(module.eval(), (3, 4))


def test_a_table_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(10, 4)).eval()
    with pytest.raises(Unsound, match="looks up a table"):
        lipschitz_upper_bound(net, (3,))
    table = torch.randn(5, 2)
    with pytest.raises(Unsound):
        lipschitz_upper_bound(Function(lambda x: table[x.long()]).eval(), (3,))


def test_weights_that_depend_on_the_input_are_refused() -> None:
    weight = torch.eye(4)
    for function in (
        lambda x: functional.linear(weight, x),
        lambda x: functional.linear(x, x),
        lambda x: functional.conv1d(x[:, None], x[:1, None]),
    ):
        with pytest.raises(Unsound, match="depend on the|batch"):
            lipschitz_upper_bound(Function(function).eval(), (4,))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_unknown_settings_of_known_functions_are_refused() -> None:
    for function, words in (
        (lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"), "mode 'bilinear'"),
        (lambda x: x.flatten(2).topk(2, sorted=False)[0], "no order"),
        (lambda x: functional.dropout(x, 0.5, True), "at random"),
        (functional.softmax, "no dim"),
        (lambda x: x.mean(1, dtype=torch.float16), "casts to"),
    ):
        with pytest.raises(UnknownLayer, match=words):
            lipschitz_upper_bound(Function(function).eval(), (2, 4, 4))  # type: ignore[arg-type]


def test_a_division_by_zero_and_a_scaling_by_nan_are_refused() -> None:
    zero, nan = torch.tensor([1.0, 0.0]), torch.tensor([1.0, torch.nan])
    with pytest.raises(UnknownLayer, match="by zero"):
        lipschitz_upper_bound(Function(lambda x: x / zero).eval(), (2,))
    with pytest.raises(UnknownLayer, match="NaN"):
        lipschitz_upper_bound(Function(lambda x: x * nan).eval(), (2,))


def test_the_list_of_known_modules_holds_none_that_is_refused() -> None:
    known = known_modules()
    assert {nn.Linear, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Flatten} <= set(known)
    assert not {nn.MultiheadAttention, nn.LSTM, nn.GLU} & set(known)
    assert list(known) == sorted(known, key=lambda kind: kind.__name__)
