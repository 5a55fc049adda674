"""Networks by name: the few architectures whose weights calipers reads, trains and ships."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.errors import UsageError


@final
class SmallConvNet(nn.Module):
    """Three convolutions, two of them strided, and two dense layers, for images of 1 x 28 x 28.

    It has no normalization layer, so that its output for one input cannot depend on the others of the batch
    and its layers are plain linear maps and ReLUs.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=4, stride=2, padding=1)
        self.dense1 = nn.Linear(64 * 7 * 7, 128)
        self.dense2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            x: Images, of shape (batch, 1, 28, 28).

        Returns:
            Logits, of shape (batch, num_classes).
        """
        x = functional.relu(self.conv1(x))
        x = functional.relu(self.conv2(x))
        x = functional.relu(self.conv3(x))
        x = functional.relu(self.dense1(x.flatten(1)))
        logits: Tensor = self.dense2(x)
        return logits


@final
class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalization, around a shortcut without parameters.

    Where the block halves the image, the shortcut takes every second pixel and pads the new channels with
    zeros (option A of He et al. 2015, section 3.3), half of them before and half behind the old ones.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output.

        Args:
            x: Features, of shape (batch, in_channels, height, width).

        Returns:
            Features, of shape (batch, out_channels, height / stride, width / stride).
        """
        shortcut = x
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + shortcut)


@final
class CifarResNet(nn.Module):
    """The residual network for images of 3 x 32 x 32 with 6n + 2 layers, after He et al. 2015.

    One 3 x 3 convolution, three stages of n residual blocks with 16, 32 and 64 channels on maps of 32, 16 and
    8 pixels, a global average and one dense layer. The parameters bear the names that public checkpoints of
    these networks use (`conv1`, `bn1`, `layer1` to `layer3`, `linear`).

    Reference: arXiv:1512.03385, section 4.2.
    """

    def __init__(self, num_classes: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch.

        Args:
            x: Images, of shape (batch, 3, 32, 32).

        Returns:
            Logits, of shape (batch, num_classes).
        """
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


@final
class GroupSort(nn.Module):
    """Sort the channels within groups, in increasing order: an activation that only moves values.

    With C channels in groups of g, group i has the channels i, i + C/g, i + 2 C/g and so on, so that a group of
    two takes one channel from each half. What comes out for one input is a permutation of what went in, and
    the module is 1-Lipschitz in every norm.

    In training mode a group of two is sorted by differences, whose derivative is cheaper; what it gives then may
    differ from a permutation by a rounding.

    Args:
        group_size: channels in a group, 2 or more; it must divide the number of channels.

    Reference: Anil, Lucas and Grosse 2019, arXiv:1811.05381, section 4 (with groups of two: MaxMin).
    """

    def __init__(self, group_size: int = 2) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Return the sorted channels.

        Args:
            x: Features, of shape (batch, channels, ...).

        Returns:
            Of the same shape.
        """
        if self.group_size != 2:
            grouped = x.reshape(x.shape[0], self.group_size, -1, *x.shape[2:])
            return grouped.sort(dim=1).values.flatten(1, 2)
        first, second = x.chunk(2, dim=1)
        if self.training:
            excess = functional.relu(first - second)
            return torch.cat((first - excess, second + excess), dim=1)
        return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=1)


def _lipschitz_mlp(num_classes: int) -> nn.Module:
    # 784-512-512-256: dense layers that can be orthogonal, with GroupSort between
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(784, 512), GroupSort(), nn.Linear(512, 512), GroupSort()),
        *(nn.Linear(512, 256), GroupSort(), nn.Linear(256, num_classes)),
    )


def _lipschitz_cnn(num_classes: int) -> nn.Module:
    # Convolutions over patches of 2 x 2 that do not overlap, so that orthogonal kernels are orthogonal maps
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 2, stride=2), GroupSort(), nn.Conv2d(16, 64, 2, stride=2), GroupSort()),
        nn.Flatten(),
        *(
            nn.Linear(64 * 7 * 7, 256),
            GroupSort(),
            nn.Linear(256, 256),
            GroupSort(),
            nn.Linear(256, num_classes),
        ),
    )


def _lipschitz_cnn32(num_classes: int) -> nn.Module:
    # The same for images of three channels, with one 3 x 3 convolution between the patches
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 2, stride=2), GroupSort(), nn.Conv2d(32, 64, 2, stride=2), GroupSort()),
        *(nn.Conv2d(64, 64, 3, padding=1), GroupSort()),
        nn.Flatten(),
        *(nn.Linear(64 * 8 * 8, 224), GroupSort(), nn.Linear(224, num_classes)),
    )


class _Architecture(NamedTuple):
    make: Callable[[int], nn.Module]
    input_shape: tuple[int, int, int]


_ARCHITECTURES: Final[dict[str, _Architecture]] = {
    "cnn28": _Architecture(SmallConvNet, (1, 28, 28)),
    "lipmlp28": _Architecture(_lipschitz_mlp, (1, 28, 28)),
    "lipconv28": _Architecture(_lipschitz_cnn, (1, 28, 28)),
    "lipconv32": _Architecture(_lipschitz_cnn32, (3, 32, 32)),
    "resnet20": _Architecture(lambda num_classes: CifarResNet(num_classes, blocks=3), (3, 32, 32)),
    "resnet32": _Architecture(lambda num_classes: CifarResNet(num_classes, blocks=5), (3, 32, 32)),
    "resnet44": _Architecture(lambda num_classes: CifarResNet(num_classes, blocks=7), (3, 32, 32)),
    "resnet56": _Architecture(lambda num_classes: CifarResNet(num_classes, blocks=9), (3, 32, 32)),
}


def architectures() -> tuple[str, ...]:
    """Return the names that `build` knows, in the order in which they are listed to a user.

    Returns:
        The names.
    """
    return tuple(_ARCHITECTURES)


def input_shape(name: str) -> tuple[int, int, int]:
    """Return the shape of one input of an architecture.

    Args:
        name: One of `architectures()`.

    Returns:
        (channels, height, width).
    """
    return _lookup(name).input_shape


def build(name: str, *, num_classes: int, seed: int = 0) -> nn.Module:
    """Build a network with fresh weights, in training mode.

    Convolutions and dense layers start from He's normal initialization with zero biases. The weights depend
    on the arguments alone, and torch's global generator is left as it was.

    Args:
        name: One of `architectures()`.
        num_classes: Number of logits, at least 2.
        seed: Seed of the initial weights.

    Returns:
        The network, float32, on the CPU.

    Raises:
        UsageError: The name is unknown, or there are fewer than two classes.

    Reference: arXiv:1502.01852, section 2.2, for the initialization.

    >>> sum(p.numel() for p in build("resnet20", num_classes=10).parameters())
    269722
    """
    architecture = _lookup(name)
    if num_classes < 2:
        raise UsageError(f"num_classes is {num_classes}: a classifier needs at least 2 classes")
    with torch.random.fork_rng(devices=[]):
        net = architecture.make(num_classes)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def _lookup(name: str) -> _Architecture:
    try:
        return _ARCHITECTURES[name]
    except KeyError:
        known = ", ".join(_ARCHITECTURES)
        raise UsageError(f"no architecture is called {name!r}: choose one of {known}") from None
