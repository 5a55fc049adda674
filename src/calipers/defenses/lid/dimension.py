"""Local intrinsic dimension at each layer of a network, among a reference that holds the clean original or not."""

from collections.abc import Sequence
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from calipers.errors import UsageError
from calipers.sources.architectures import CifarResNet, SmallConvNet

__all__ = [
    "MINIBATCH",
    "ReferenceLID",
    "layer_names",
    "layer_outputs",
    "local_intrinsic_dimension",
    "minibatch_features",
]

MINIBATCH: Final = 100
"""How many references are looked at together, as in the paper."""

_NEIGHBOURS: Final = 10


def local_intrinsic_dimension(
    distances: Float[Tensor, "batch references"], *, neighbours: int, skip: int = 0
) -> Float[Tensor, " batch"]:
    r"""Estimate the dimension in which the neighbours of each point lie, from their distances alone.

    .. math:: \mathrm{LID} = -k \Bigl/ \sum_{i=1}^{k} \log \frac{r_i}{r_k}

    Reference: Ma et al. 2018, arXiv:1801.02613, equation 4, with the factor as in the authors' code.

    Args:
        distances: from each point to all references.
        neighbours: k.
        skip: how many of the nearest are left out.

    Returns:
        The estimates, above 0.

    Raises:
        UsageError: if there are too few references.
    """
    if not 2 <= neighbours <= distances.shape[1] - skip:
        raise UsageError(
            f"neighbours is {neighbours} of {distances.shape[1] - skip} references: give at least 2, and no more"
        )
    nearest = distances.topk(neighbours + skip, largest=False).values[:, skip:]
    total = nearest.clamp_min(1e-6).log().sum(1) - neighbours * nearest[:, -1].clamp_min(1e-6).log()
    return -neighbours / total.clamp_max(-1e-3)


def layer_names(net: nn.Module) -> tuple[str, ...]:
    """Name the layers whose outputs are looked at: the input first, the logits last.

    Args:
        net: a ``cnn28``, or a residual network for CIFAR-10.

    Returns:
        The names.

    Raises:
        UsageError: if it is another network.
    """
    if isinstance(net, SmallConvNet):
        return "input", "conv1", "conv2", "conv3", "dense1", "dense2"
    if isinstance(net, CifarResNet):
        blocks = (f"block{number}" for number in range(1, len(_blocks(net)) + 1))
        return "input", "conv1", *blocks, "mean", "linear"
    raise UsageError(f"{type(net).__name__} has no layers that are known: give a cnn28 or a residual network")


def layer_outputs(
    net: nn.Module, x: Float[Tensor, "batch channels height width"]
) -> list[Float[Tensor, "batch _"]]:
    """Compute what each layer gives, the input first and the logits last.

    Args:
        net: a ``cnn28``, or a residual network for CIFAR-10.
        x: images, normalized.

    Returns:
        One flat output a layer of :func:`layer_names`.

    Raises:
        UsageError: if it is another network.
    """
    found = [x]
    if isinstance(net, SmallConvNet):
        for conv in (net.conv1, net.conv2, net.conv3):
            found.append(functional.relu(conv(found[-1])))
        found.append(functional.relu(net.dense1(found[-1].flatten(1))))
        found.append(net.dense2(found[-1]))
    elif isinstance(net, CifarResNet):
        found.append(functional.relu(net.bn1(net.conv1(x))))
        for block in _blocks(net):
            found.append(block(found[-1]))
        found.append(found[-1].mean(dim=(2, 3)))
        found.append(net.linear(found[-1]))
    else:
        layer_names(net)
    return [output.flatten(1) for output in found]


def _blocks(net: CifarResNet) -> list[nn.Module]:
    return [block for stage in (net.layer1, net.layer2, net.layer3) for block in stage.children()]


def _distances(x: Tensor, references: Tensor) -> Tensor:
    return torch.cdist(x, references, compute_mode="use_mm_for_euclid_dist")


@final
class ReferenceLID(nn.Module):
    """The dimension of each input at each layer, among minibatches of a fixed reference, averaged over these.

    Differs from the paper, where the minibatch is drawn anew: an answer here is that of one fixed function. The paper
    tunes the number of neighbours for each data set; among 100 images of ten classes 10 tells most on training images.

    Args:
        net: the network.
        references: images of the data, normalized, a multiple of ``minibatch`` of them.
        neighbours: k.
        minibatch: how many references are looked at together.
    """

    def __init__(
        self,
        net: nn.Module,
        references: Float[Tensor, "references channels height width"],
        *,
        neighbours: int = _NEIGHBOURS,
        minibatch: int = MINIBATCH,
    ) -> None:
        super().__init__()
        self.neighbours, self.minibatch = neighbours, minibatch
        self.layers = layer_names(net)
        with torch.no_grad():
            outputs = layer_outputs(net, references)
        for layer, output in zip(self.layers, outputs, strict=True):
            self.register_buffer(layer, output)

    def forward(self, outputs: Sequence[Float[Tensor, "batch _"]]) -> Float[Tensor, "batch layers"]:
        """Estimate.

        Args:
            outputs: those of :func:`layer_outputs`.

        Returns:
            One dimension a layer.
        """
        found = []
        for layer, output in zip(self.layers, outputs, strict=True):
            parts = _distances(output, self.get_buffer(layer))
            each = local_intrinsic_dimension(parts.reshape(-1, self.minibatch), neighbours=self.neighbours)
            found.append(each.view(len(output), -1).mean(1))
        return torch.stack(found, 1)


def minibatch_features(
    net: nn.Module,
    clean: Float[Tensor, "batch channels height width"],
    x: Float[Tensor, "batch channels height width"],
    *,
    leaky_reference: bool,
    neighbours: int = _NEIGHBOURS,
    minibatch: int = MINIBATCH,
) -> Float[Tensor, "batch layers"]:
    """Estimate dimensions as the authors' evaluation does: among the clean images of the input's own minibatch.

    There, the reference of an adversarial example holds the very image that it was made from, and the nearest reference
    is left out: it is the image itself, of a clean input. Nobody who deploys the detector has that image.

    Args:
        net: the network.
        clean: clean images, normalized.
        x: what is made of each of them, normalized: the image itself, with noise, adversarial.
        leaky_reference: as in the paper's code, or with the own original taken out of the reference and nobody else.
        neighbours: k.
        minibatch: how many are looked at together.

    Returns:
        One dimension a layer.
    """
    rows = []
    for start in range(0, len(x), minibatch):
        part = slice(start, start + minibatch)
        with torch.no_grad():
            pairs = zip(layer_outputs(net, x[part]), layer_outputs(net, clean[part]), strict=True)
        columns = []
        for output, reference in pairs:
            apart = _distances(output, reference)
            if not leaky_reference:
                apart.fill_diagonal_(torch.inf)
            columns.append(local_intrinsic_dimension(apart, neighbours=neighbours, skip=int(leaky_reference)))
        rows.append(torch.stack(columns, 1))
    return torch.cat(rows)
