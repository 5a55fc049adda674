"""Pruned networks: those that are known with a layer that prunes behind every ReLU, or where that of 2018 stood."""

from collections.abc import Callable
from functools import partial
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from calipers.defenses.stochastic_activation_pruning.layers import Pruning
from calipers.errors import UsageError
from calipers.sources.architectures import CifarResNet, ResidualBlock, SmallConvNet

__all__ = ["PrunedConvNet", "PrunedResNet", "prune", "pruned"]


@final
class PrunedConvNet(nn.Module):
    """The bundled convolutional network with a layer after each ReLU, ``prune1`` to ``prune4``, and its own weights.

    Args:
        net: the network, whose layers are shared.
        make: makes a layer that prunes.
        later: whether the layers stand before the ReLUs of the convolutions instead, and none in the dense part.
    """

    def __init__(self, net: SmallConvNet, make: Callable[[], nn.Module], *, later: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = net.conv1, net.conv2, net.conv3
        self.dense1, self.dense2 = net.dense1, net.dense2
        self.prune1, self.prune2, self.prune3 = make(), make(), make()
        self.prune4 = nn.Identity() if later else make()
        self.later = later

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of a batch, of one draw.

        Args:
            x: images, normalized.

        Returns:
            Logits.
        """
        for conv, layer in (
            (self.conv1, self.prune1),
            (self.conv2, self.prune2),
            (self.conv3, self.prune3),
        ):
            x = functional.relu(layer(conv(x))) if self.later else layer(functional.relu(conv(x)))
        logits: Tensor = self.dense2(self.prune4(functional.relu(self.dense1(x.flatten(1)))))
        return logits


@final
class _PrunedBlock(nn.Module):
    """A residual block with a layer before each of its convolutions, or behind: ``prune1`` and ``prune2``."""

    def __init__(self, block: ResidualBlock, make: Callable[[], nn.Module], *, later: bool) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.stride, self.new_channels = block.stride, block.new_channels
        self.prune1, self.prune2 = make(), make()
        self.later = later

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        if self.later:
            inner = functional.relu(self.bn1(self.prune1(self.conv1(x))))
            outer = self.prune2(self.conv2(inner))
        else:
            inner = functional.relu(self.bn1(self.conv1(self.prune1(x))))
            outer = self.conv2(self.prune2(inner))
        return functional.relu(self.bn2(outer) + shortcut)


@final
class PrunedResNet(nn.Module):
    """A residual network for CIFAR-10 with a layer wherever something reads a ReLU, and its own weights.

    What a ReLU gives goes to a convolution, or to the mean at the end, through a layer; the shortcut carries it as it
    is. So it is in the authors' network, whose ReLUs stand before convolutions and not in the shortcut (He et al. 2016,
    arXiv:1603.05027); around the ReLUs of this one (He et al. 2015) the noise would add up from block to block.

    Differs from the paper: where a stage begins, the authors' shortcut is a convolution and reads what was pruned.

    Args:
        net: the network, whose layers are shared.
        make: makes a layer that prunes.
        later: whether the layers stand behind the convolutions instead, before batch normalization and ReLU.
    """

    def __init__(self, net: CifarResNet, make: Callable[[], nn.Module], *, later: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1, self.linear = net.conv1, net.bn1, net.linear
        blocks = [block for stage in (net.layer1, net.layer2, net.layer3) for block in stage.children()]
        self.blocks = nn.Sequential(
            *(_PrunedBlock(block, make, later=later) for block in blocks if isinstance(block, ResidualBlock))
        )
        self.prune1 = make()
        self.later = later

    def forward(self, x: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of a batch, of one draw.

        Args:
            x: images, normalized.

        Returns:
            Logits.
        """
        if self.later:
            x = self.blocks(functional.relu(self.bn1(self.prune1(self.conv1(x)))))
        else:
            x = self.prune1(self.blocks(functional.relu(self.bn1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def prune(net: nn.Module, *, fraction: float = 1.0) -> nn.Module:
    """Put the defense around a pretrained network, without training.

    Args:
        net: one of the networks of :mod:`calipers.sources.architectures` with ReLUs: ``cnn28``, or a residual network
            for CIFAR-10, as in the paper.
        fraction: draws as a share of the number of activations.

    Returns:
        The network with its own weights and a :class:`Pruning` behind every ReLU, in evaluation mode.
    """
    return pruned(net, partial(Pruning, fraction), later=False)


def pruned(net: nn.Module, make: Callable[[], nn.Module], *, later: bool) -> nn.Module:
    """Put layers that prune into a pretrained network.

    Args:
        net: one of the networks of :mod:`calipers.sources.architectures` with ReLUs.
        make: makes a layer.
        later: whether the layers stand behind the convolutions instead of behind the ReLUs.

    Returns:
        The network with its own weights and the layers, in evaluation mode.

    Raises:
        UsageError: if its ReLUs are not known.
    """
    if isinstance(net, SmallConvNet):
        return PrunedConvNet(net, make, later=later).eval()
    if isinstance(net, CifarResNet):
        return PrunedResNet(net, make, later=later).eval()
    raise UsageError(f"{type(net).__name__} has no ReLUs that are known: give a cnn28 or a residual network")
