"""Architectures by name: shapes, parameter counts of the paper, purity, and a public checkpoint."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calipers.errors import UsageError
from calipers.sources.architectures import GroupSort, architectures, build, input_shape

DATA = Path(os.environ.get("CALIPERS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("name", architectures())
def test_an_architecture_gives_one_logit_a_class_for_its_input_shape(name: str) -> None:
    net = build(name, num_classes=7).eval()
    assert net(torch.rand(3, *input_shape(name))).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
)
def test_the_residual_networks_have_the_parameter_counts_of_the_paper(name: str, millions: float) -> None:
    # Table 6 of arXiv:1512.03385.
    count = sum(p.numel() for p in build(name, num_classes=10).parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "layers"), [("resnet20", 20), ("resnet56", 56)])
def test_the_residual_networks_have_the_layers_of_their_name(name: str, layers: int) -> None:
    weighted = [
        m for m in build(name, num_classes=10).modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]
    assert len(weighted) == layers


def test_a_shortcut_takes_every_second_pixel_and_pads_zero_channels_on_both_sides() -> None:
    block = build("resnet20", num_classes=10).eval().get_submodule("layer2.0")
    torch.nn.init.zeros_(block.get_parameter("bn2.weight"))
    x = torch.rand(2, 16, 32, 32)
    y = block(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize("group_size", [2, 3, 6])
@pytest.mark.parametrize("training", [False, True])
def test_groupsort_sorts_the_channels_that_are_a_stride_apart(group_size: int, training: bool) -> None:
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = GroupSort(group_size).train(training)(x)
    stride = 12 // group_size
    for group in range(stride):
        channels = range(group, 12, stride)
        assert torch.allclose(y[:, channels], x[:, channels].sort(dim=1).values, rtol=1e-15, atol=1e-15)


def test_groupsort_permutes_exactly_what_it_is_given_when_it_does_not_train() -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 8)
    y = GroupSort().eval()(x)
    assert torch.equal(y.sort(dim=1).values, x.sort(dim=1).values)


@pytest.mark.parametrize("training", [False, True])
def test_groupsort_passes_each_derivative_to_where_its_value_came_from(training: bool) -> None:
    x = torch.tensor([[3.0, 1.0, 2.0, 5.0]], requires_grad=True)
    (GroupSort().train(training)(x) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    # Pairs (3, 2) and (1, 5) become (2, 3) and (1, 5)
    assert x.grad is not None
    assert x.grad.tolist() == [[3.0, 2.0, 1.0, 4.0]]


def test_building_depends_on_the_seed_alone_and_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    first = build("cnn28", num_classes=10, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    again = build("cnn28", num_classes=10, seed=3).state_dict()
    other = build("cnn28", num_classes=10, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_an_unknown_name_and_a_single_class_are_refused_with_the_value() -> None:
    with pytest.raises(UsageError, match=r"'resnet21'.*resnet20"):
        build("resnet21", num_classes=10)
    with pytest.raises(UsageError, match="'lenet'"):
        input_shape("lenet")
    with pytest.raises(UsageError, match="num_classes is 1"):
        build("cnn28", num_classes=1)


def _public_resnet20() -> torch.nn.Module:
    path = DATA / "models" / "resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    saved = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    net = build("resnet20", num_classes=10)
    net.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()}, strict=True)
    return net.eval()


def test_a_public_resnet20_checkpoint_classifies_the_images_it_was_trained_for() -> None:
    net = _public_resnet20()
    archive = DATA / "cifar10-jpeg.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive} is absent")
    images, labels = [], []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if parts[0] == "test" and member.isfile() and int(parts[2][:4]) < 50:
                file = tar.extractfile(member)
                assert file is not None
                images.append(np.asarray(Image.open(file)))
                labels.append(CIFAR_CLASSES.index(parts[1]))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        answers = net((x - mean[:, None, None]) / std[:, None, None]).argmax(1)
    accuracy = (answers == torch.tensor(labels)).double().mean().item()
    assert len(labels) == 500
    assert 0.77 <= accuracy <= 0.87
