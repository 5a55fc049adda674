"""A given network that a defense stands around: opened, the sizes that fit its images, and what must fit it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Final, NamedTuple

from calipers.defenses.parts import part_file
from calipers.errors import UsageError
from calipers.sources.models import open_network
from calipers.sources.network import Network
from calipers.sources.shipped import metadata

__all__ = ["MADE_FOR", "Sizes", "check_made_for", "given_network", "network_digest", "sizes_for"]

MADE_FOR: Final = "network"
"""What a part's file calls the digest of the network that it was made for."""

_COLOURS: Final = 3
_RMS: Final = 0.05


class Sizes(NamedTuple):
    """Sizes of perturbations as people write them, in input units.

    Args:
        linf: the usual one.
        half: half of it.
        small: a quarter of it, about.
        l2: a root mean square of 0.05 a pixel.
    """

    linf: str
    half: str
    small: str
    l2: str


def sizes_for(input_shape: tuple[int, ...]) -> Sizes:
    """Give the sizes at which defenses of such images are measured.

    In linf 8/255 for colour, as Athalye, Carlini and Wagner 2018 (arXiv:1802.00420) for CIFAR-10 and ImageNet, and .1
    for grey, as is usual for Fashion-MNIST.

    Args:
        input_shape: channels, height, width.

    Returns:
        The sizes.

    Example:
        >>> sizes_for((3, 32, 32)).l2, sizes_for((1, 28, 28)).l2
        ('2.771', '1.4')
    """
    l2 = f"{_RMS * math.sqrt(math.prod(input_shape)):.4g}"
    if input_shape[0] == _COLOURS:
        return Sizes("8/255", "4/255", "2/255", l2)
    return Sizes("0.1", "0.05", "0.03", l2)


def given_network(reference: str) -> Network:
    """Open the network that a defense is put around.

    Args:
        reference: a model reference, such as ``bundled:cifar10-resnet20-noise-0.25``.

    Returns:
        The network in evaluation mode, and how it is fed.

    Raises:
        UsageError: if its inputs are no square images of 1 or 3 channels, channels first.
    """
    network = open_network(reference)
    shape = network.input_shape
    if len(shape) != 3 or shape[0] not in (1, _COLOURS) or shape[1] != shape[2]:
        raise UsageError(f"{reference} takes inputs of {shape}: a defense is put around square images")
    if network.feeding.layout == "nhwc":
        raise UsageError(f"{reference} takes its channels last: a defense is put around channels first")
    return network


def network_digest(network: Network) -> str:
    """Hash the weights of a network and how it is fed.

    Args:
        network: the network.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(repr((network.input_shape, network.feeding)).encode(), digest_size=16)
    for name, tensor in sorted(network.net.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def check_made_for(network: Network, name: str, folder: Path | None, *, reference: str) -> None:
    """Check that a part was made for this network and no other.

    Args:
        network: the network.
        name: of the part.
        folder: where its file is.
        reference: of the network, for the message.

    Raises:
        UsageError: if it was made for another one.
    """
    path = part_file(name, folder)
    if metadata(path).get(MADE_FOR) != network_digest(network):
        raise UsageError(f"{path} was made for another network than {reference}: train it for this one")
