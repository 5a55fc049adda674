"""Preprocessing: values by channel, in float32 before the cast."""

import pytest
import torch
from torch import nn

from calipers.errors import UsageError
from calipers.target.preprocessing import Preprocessed, channel_buffers


def test_values_stand_along_the_axis_of_channels() -> None:
    shift, scale = channel_buffers([0.1, 0.2, 0.3], [2.0], (3, 5, 4))
    assert shift is not None and scale is not None
    assert (shift.shape, scale.shape) == ((1, 3, 1, 1), (1, 1, 1, 1))
    assert shift.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(("mean", "std", "wanted"), [([0.5], None, 0.25), (None, [0.5], 1.5)])
def test_what_is_left_out_changes_nothing(
    mean: list[float] | None, std: list[float] | None, wanted: float
) -> None:
    net = Preprocessed(nn.Identity(), *channel_buffers(mean, std, (1,)), torch.float32)
    assert net(torch.tensor([[0.75]])).item() == wanted


def test_without_either_the_input_is_only_cast() -> None:
    assert channel_buffers(None, None, (3, 5, 4)) == (None, None)
    net = Preprocessed(nn.Identity(), None, None, torch.bfloat16)
    assert torch.equal(net(torch.tensor([[0.3]])), torch.tensor([[0.3]]).bfloat16())


def test_the_cast_comes_after_the_division() -> None:
    net = Preprocessed(nn.Identity(), *channel_buffers([0.5], [0.1], (1,)), torch.bfloat16)
    x = torch.linspace(0, 1, 101)[:, None]
    late, early = ((x - 0.5) / torch.tensor(0.1)).bfloat16(), (x.bfloat16() - 0.5) / torch.tensor(0.1)
    assert torch.equal(net(x), late)
    assert not torch.equal(late, early.bfloat16())


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], None, "mean has 2 values for 3 channels: give 1 or 3"),
        (None, [1.0, 0.0, 1.0], "give finite values, and above 0 for std"),
        ([float("nan")], None, "give finite values"),
    ],
)
def test_values_that_mean_nothing_are_refused(
    mean: list[float] | None, std: list[float] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        channel_buffers(mean, std, (3, 5, 4))
