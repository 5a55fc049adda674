"""The trained parts of defenses: the network that they share, and files of weights and of training images."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from calipers.errors import MissingFile, StoreNotWritable
from calipers.sources.network import Network
from calipers.sources.reference import parse_reference
from calipers.sources.schemes import MODEL_SCHEMES
from calipers.sources.shipped import MODEL_SUFFIX, shipped_file
from calipers.sources.weights import load_network

__all__ = [
    "BUNDLED",
    "bundled_network",
    "has_part",
    "load_images",
    "load_part",
    "part_file",
    "save_images",
    "save_part",
    "small_network",
    "training_images",
]

BUNDLED: Final = Path(__file__).parent / "bundled"
"""The folder of the parts that ship."""


def small_network(channels: int = 1, *, num_classes: int = 10, width: int = 1) -> nn.Sequential:
    """Build the network of 93 000 weights that defenses are put in front of, for images of 28 x 28 or 32 x 32.

    Args:
        channels: of its input.
        num_classes: the number of logits.
        width: how many times the channels within; the weights grow by its square.

    Returns:
        The network, with torch's own initial weights.
    """
    few, some, many = 16 * width, 32 * width, 64 * width
    return nn.Sequential(
        *(nn.Conv2d(channels, few, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(few, some, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(some, many, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(many, some, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(some * 4 * 4, many), nn.ReLU(), nn.Linear(many, num_classes)),
    )


def bundled_network(name: str) -> Network:
    """Read a pretrained network that ships with calipers, to put a defense around it.

    Args:
        name: what stands after ``bundled:``, such as ``fashion-cnn28-plain``.

    Returns:
        The network in evaluation mode, and how it is fed.
    """
    reference = parse_reference(f"bundled:{name}", MODEL_SCHEMES, what="model")
    return load_network(reference, shipped_file(name, suffix=MODEL_SUFFIX, what="model"))


def has_part(name: str, folder: Path) -> bool:
    """Tell whether a part was trained already.

    Args:
        name: of the part.
        folder: where its file would be.

    Returns:
        Whether it is there.
    """
    return _file(name, folder).is_file()


def part_file(name: str, folder: Path | None) -> Path:
    """Find the file of a part.

    Args:
        name: of the part.
        folder: where to look; among those that ship if None.

    Returns:
        Its path.

    Raises:
        MissingFile: if it is not there.
    """
    path = _file(name, folder or BUNDLED)
    if not path.is_file():
        raise MissingFile(f"there is no file {path}: `calipers train iclr2018` writes it")
    return path


def load_part(net: nn.Module, name: str, folder: Path | None) -> nn.Module:
    """Fill a network with the weights of a part.

    Args:
        net: the network, whose weights are replaced.
        name: of the part.
        folder: where its file is; among those that ship if None.

    Returns:
        The same network in evaluation mode, float32.
    """
    state = {key: value.float() for key, value in load_file(part_file(name, folder)).items()}
    net.load_state_dict(state)
    return net.eval()


def save_part(net: nn.Module, name: str, folder: Path, *, about: dict[str, str]) -> Path:
    """Write the weights of a part in float16, with a note of what they are.

    Args:
        net: the network.
        name: of the part.
        folder: where the file goes.
        about: what the file says of itself: how it was trained, on what, how good it is.

    Returns:
        The file.
    """
    state = {key: value.detach().cpu().half().contiguous() for key, value in net.state_dict().items()}
    return _written(state, name, folder, about)


def save_images(
    images: UInt8[Tensor, "images ..."], name: str, folder: Path, *, about: dict[str, str]
) -> Path:
    """Write images, or patches of images, as a part.

    Args:
        images: bytes.
        name: of the part.
        folder: where the file goes.
        about: what the file says of itself.

    Returns:
        The file.
    """
    return _written({"images": images.contiguous()}, name, folder, about)


def load_images(name: str, folder: Path | None) -> Float[Tensor, "images ..."]:
    """Read images that :func:`save_images` wrote.

    Args:
        name: of the part.
        folder: where its file is.

    Returns:
        The images, float32 in [0, 1].
    """
    return load_file(part_file(name, folder))["images"].float() / 255


def training_images() -> tuple[Float[Tensor, "images 1 28 28"], Int[Tensor, " images"]]:
    """Read the training images that ship: what quilting takes patches from, and LID's reference.

    Returns:
        The first 600 images of Fashion-MNIST's training set, float32 in [0, 1], and their classes.
    """
    with np.load(BUNDLED / "fashion-mnist-train.npz", allow_pickle=False) as archive:
        images = torch.from_numpy(archive["images"]).float() / 255
        return images[:, None], torch.from_numpy(archive["labels"]).long()


def _written(state: dict[str, Tensor], name: str, folder: Path, about: dict[str, str]) -> Path:
    path = _file(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, path, metadata=about)
    except OSError as problem:
        raise StoreNotWritable(
            f"{path} cannot be written ({problem.strerror}): choose another place"
        ) from None
    return path


def _file(name: str, folder: Path) -> Path:
    return folder / f"{name}.safetensors"
