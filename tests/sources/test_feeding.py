"""Feeding: mean, standard deviation, range and layout, as a module, as an array function, and as a naive formula."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.errors import BadReference
from calipers.sources.feeding import Feeding, check_channels, read_feeding
from calipers.sources.network import Network, class_count, make_target
from calipers.sources.reference import parse_reference
from calipers.sources.schemes import MODEL_SCHEMES


class Linear(nn.Module):
    """Scores that are linear in what the network is given, whatever its layout."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, int(np.prod(shape)), generator=generator))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"got {tuple(x.shape)}")
        return x.flatten(1) @ self.weight.T


def naive(images: np.ndarray, feeding: Feeding) -> np.ndarray:
    out = images.astype(np.float64) * (255 if feeding.value_range == "0-255" else 1)
    for channel in range(images.shape[1]):
        mean = 0 if feeding.mean is None else feeding.mean[channel % len(feeding.mean)]
        std = 1 if feeding.std is None else feeding.std[channel % len(feeding.std)]
        out[:, channel] = (out[:, channel] - mean) / std
    return out.transpose(0, 2, 3, 1) if feeding.layout == "nhwc" else out


FEEDINGS = [
    Feeding(),
    Feeding(mean=(0.5, 0.25)),
    Feeding(std=(0.5,)),
    Feeding(mean=(0.1, 0.2), std=(0.5, 2.0), layout="nhwc"),
    Feeding(value_range="0-255"),
    Feeding(mean=(127.0, 100.0), std=(128.0, 50.0), value_range="0-255", layout="nhwc"),
]


@pytest.mark.parametrize("feeding", FEEDINGS)
def test_arrays_are_fed_as_the_formula_says(feeding: Feeding) -> None:
    images = np.random.default_rng(0).random((4, 2, 3, 5), dtype=np.float32)
    fed = feeding.to_array(images)
    assert fed.dtype == np.float32
    assert fed.flags.c_contiguous
    np.testing.assert_allclose(fed, naive(images, feeding), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("feeding", FEEDINGS)
def test_a_module_is_fed_as_the_formula_says(feeding: Feeding) -> None:
    shape = (3, 5, 2) if feeding.layout == "nhwc" else (2, 3, 5)
    net = Linear(shape).eval()
    target = make_target(
        Network(net, (2, 3, 5), 3, feeding, ()), precision="fp32", device="cpu", name="linear"
    )
    images = np.random.default_rng(1).random((4, 2, 3, 5), dtype=np.float32)
    expected = naive(images, feeding).reshape(4, -1) @ net.weight.detach().double().numpy().T
    found = target.logits(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_another_feeding_is_another_classifier() -> None:
    net = Linear((2, 3, 3)).eval()
    prints = {
        make_target(
            Network(net, (2, 3, 3), 3, feeding, ()), precision="fp32", device="cpu", name="a"
        ).fingerprint
        for feeding in (
            Feeding(),
            Feeding(mean=(0.5,)),
            Feeding(mean=(0.25,)),
            Feeding(std=(0.5,)),
            Feeding(value_range="0-255"),
        )
    }
    assert len(prints) == 5


def test_options_override_what_a_file_says() -> None:
    reference = parse_reference("file:a?mean=0.5&layout=hwc&range=0-255", MODEL_SCHEMES, what="model")
    assert read_feeding(reference, default=Feeding((0.1,), (0.2,))) == Feeding(
        (0.5,), (0.2,), "nhwc", "0-255"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("std=0.5,0", "std is '0.5,0': it divides"),
        ("std=-1", "it divides"),
        ("mean=1,2,3&std=1,2", "mean has 3 values and std 2"),
        ("layout=cnhw", "layout is 'cnhw'"),
        ("range=0-1000", "range is '0-1000'"),
    ],
)
def test_a_feeding_that_means_nothing_is_refused(options: str, words: str) -> None:
    with pytest.raises(BadReference, match=words):
        read_feeding(parse_reference(f"file:a?{options}", MODEL_SCHEMES, what="model"))


def test_one_value_a_channel_is_needed() -> None:
    check_channels(Feeding((0.5,), (1.0, 2.0)), (2, 4, 4), "file:a")
    with pytest.raises(BadReference, match="mean has 3 values for 2 channels: give 1 or 2"):
        check_channels(Feeding((0.1, 0.2, 0.3)), (2, 4, 4), "file:a")


def test_classes_are_counted_by_a_forward_pass() -> None:
    assert class_count(Linear((2, 3, 5)).eval(), (2, 3, 5), Feeding(), "python:a:b") == 3
    assert class_count(Linear((3, 5, 2)).eval(), (2, 3, 5), Feeding(layout="nhwc"), "python:a:b") == 3
    with pytest.raises(
        BadReference, match=r"cannot take inputs of shape \(2, 4, 5\): ValueError: got \(2, 2, 4, 5\)"
    ):
        class_count(Linear((2, 3, 5)).eval(), (2, 4, 5), Feeding(), "python:a:b")
    with pytest.raises(BadReference, match=r"an output of shape \(2, 2, 3, 5\)"):
        class_count(nn.Identity().eval(), (2, 3, 5), Feeding(), "python:a:b")


def test_a_network_in_training_mode_is_not_run_to_count_its_classes() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    class_count(net, (4,), Feeding(), "python:a:b")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
