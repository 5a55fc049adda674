"""Layers that hide a gradient, and the linear classifier of small images that they are put before or after."""

import math
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "CLASSES",
    "LEVELS",
    "SHAPE",
    "WAVES",
    "Dropout",
    "NearestMean",
    "Purifier",
    "PythonScores",
    "Quantizer",
    "Readout",
    "Saturation",
    "Thermometer",
    "class_means",
    "cosines",
    "decode_smooth",
    "encode_smooth",
    "ramp",
]

CLASSES: Final = 3
SHAPE: Final = (1, 8, 8)
WAVES: Final = 4
LEVELS: Final = 10
_PIXELS = 64
_MIDDLE, _APART = 0.5, 0.6
_ROUNDS, _WIDTH, _RATE, _COUPLING = 8, 0.05, 6.0, 5e-4
_DIGITS = 3


@final
class Thermometer(nn.Module):
    r"""Encodes a pixel in l levels: :math:`\tau(x)_k = \lfloor \min(\max(x / (k/l), 0), 1) \rfloor` for k = 1..l.

    Reference: Athalye et al. 2018 (arXiv:1802.00420), section 5.1.2.

    Args:
        levels: l.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch levels 8 8"]:
        """Encode.

        Args:
            x: images.

        Returns:
            One channel a level.
        """
        code: Tensor = ramp(x, levels=self.levels).floor()
        return code


def ramp(x: Float[Tensor, "batch 1 8 8"], *, levels: int = LEVELS) -> Float[Tensor, "batch levels 8 8"]:
    r"""Encode a pixel without the steps: :math:`\hat\tau(x)_k = \min(\max(x / (k/l), 0), 1)`.

    Args:
        x: images.
        levels: l.

    Returns:
        One channel a level.
    """
    edges = torch.arange(1, levels + 1, device=x.device, dtype=x.dtype) / levels
    return (x / edges.view(1, -1, 1, 1)).clamp(0, 1)


@final
class Quantizer(nn.Module):
    """Rounds pixels to multiples of a step.

    Args:
        step: the step, in input units.
    """

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 1 8 8"]:
        """Round.

        Args:
            x: images.

        Returns:
            Rounded images.
        """
        return (x / self.step).round() * self.step


@final
class Dropout(nn.Module):
    """Keeps a few features of an image, drawn anew in each call, and rebuilds the image from them, right in the mean.

    The features are the image's coordinates in a random orthonormal basis.

    Args:
        kept: the probability that a feature is kept.
    """

    basis: Tensor

    def __init__(self, kept: float) -> None:
        super().__init__()
        self.kept = kept
        generator = torch.Generator().manual_seed(11)
        square = torch.randn((_PIXELS, _PIXELS), generator=generator, dtype=torch.float64)
        self.register_buffer("basis", torch.linalg.qr(square).Q)

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 1 8 8"]:
        """Drop features.

        Args:
            x: images.

        Returns:
            Images with the mean x.
        """
        features = (x.double().flatten(1) - _MIDDLE) @ self.basis.double()
        mask = torch.rand(features.shape, device=x.device) < self.kept
        rebuilt = _MIDDLE + (features * mask / self.kept) @ self.basis.double().T
        return rebuilt.view_as(x)


@final
class Saturation(nn.Module):
    """Softmax of scores times a sharpness: 0 and 1 in floating point, except within a hair of the boundary.

    Args:
        sharpness: the factor.
    """

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, scores: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        """Compute probabilities.

        Args:
            scores: the classifier's.

        Returns:
            Probabilities.
        """
        return (self.sharpness * scores).softmax(1)


@final
class Purifier(nn.Module):
    r"""Moves an image towards smooth ones by gradient descent, and gives the smooth part of where it ends.

    In the cosine basis an image has 16 slow amplitudes u and 48 fast ones v. The energy is

    .. math:: E(u, v) = \sum_k (1 - \cos(v_k / s)) (s^2 + c\, u_{k \bmod 16}) ,

    whose minimum v = 0 is every smooth image: those are left alone. The steps are too long for it, so that what is not
    smooth goes astray before it is thrown away: u moves by a little, and its derivative with respect to v grows
    fivefold with each step.
    """

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 1 8 8"]:
        """Purify.

        Args:
            x: images.

        Returns:
            Smooth images.
        """
        slow, fast = cosines(x.device)
        centered = x.double().flatten(1) - _MIDDLE
        u, v = centered @ slow, centered @ fast
        signs = torch.ones(v.shape[1], dtype=v.dtype, device=x.device)
        signs[1::2] = -1
        owner = torch.arange(v.shape[1], device=x.device) % WAVES**2
        for _ in range(_ROUNDS):
            weight = _WIDTH**2 + _COUPLING * signs * u[:, owner]
            well = signs * (1 - (v / _WIDTH).cos())
            u, v = (
                u.index_add(1, owner, well, alpha=-_RATE * _COUPLING),
                v - _RATE * weight * (v / _WIDTH).sin() / _WIDTH,
            )
        return decode_smooth(u)


def encode_smooth(x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 16"]:
    """Compute the amplitudes of the 16 slowest waves of an image.

    Args:
        x: images.

    Returns:
        Amplitudes, float64.
    """
    return (x.double().flatten(1) - _MIDDLE) @ cosines(x.device)[0]


def decode_smooth(z: Float[Tensor, "batch 16"]) -> Float[Tensor, "batch 1 8 8"]:
    """Make the smooth image of some amplitudes: h(z), which the purifier leaves alone.

    Args:
        z: amplitudes.

    Returns:
        Images in the precision of the amplitudes.
    """
    slow = cosines(z.device)[0].to(z.dtype)
    image: Tensor = _MIDDLE + (z @ slow.T).view(-1, *SHAPE)
    return image


class _Opaque(torch.autograd.Function):
    """Scores computed outside torch, and a backward that keeps the graph alive with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Tensor) -> Tensor:
        ctx.like = x
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(ctx.like), None


@final
class PythonScores(nn.Module):
    """The linear classifier in NumPy, its scores rounded to three digits, behind a backward that gives zeros."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", NearestMean().weight)

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 3"]:
        """Compute scores.

        Args:
            x: images.

        Returns:
            Rounded scores.
        """
        found = self.scores(x.detach().cpu().numpy())
        scores: Tensor = _Opaque.apply(x, torch.from_numpy(found).to(x.device))  # type: ignore[no-untyped-call]
        return scores

    def scores(self, images: NDArray[np.float32]) -> NDArray[np.float64]:
        """Compute scores as a Python program would.

        Args:
            images: (batch, 1, 8, 8).

        Returns:
            Rounded scores, (batch, 3).
        """
        flat = images.reshape(len(images), -1).astype(np.float64) - _MIDDLE
        weight: NDArray[np.float64] = self.weight.cpu().numpy().astype(np.float64)
        return np.asarray(np.round(flat @ weight.T, _DIGITS), dtype=np.float64)


@final
class NearestMean(nn.Module):
    """The nearest class mean; the means have one length, so that its scores are products alone, computed in float64."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        slow, _ = cosines(torch.device("cpu"))
        self.register_buffer("weight", (class_means() @ slow.T).float())

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 3"]:
        """Compute scores.

        Args:
            x: images.

        Returns:
            Scores, float64.
        """
        scores: Tensor = (x.double().flatten(1) - _MIDDLE) @ self.weight.double().T
        return scores


@final
class Readout(nn.Module):
    """Sums thermometer levels to the middle of each step.

    Args:
        levels: how many.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, code: Float[Tensor, "batch levels 8 8"]) -> Float[Tensor, "batch 1 8 8"]:
        """Rebuild images.

        Args:
            code: one channel a level.

        Returns:
            Images.
        """
        image: Tensor = (code.sum(1, keepdim=True) + 0.5) / self.levels
        return image


def class_means() -> Float[Tensor, "classes waves"]:
    """Make three class means of one length.

    Returns:
        Amplitudes of the slow waves, float64.
    """
    generator = torch.Generator().manual_seed(7)
    square = torch.randn((WAVES**2, CLASSES), generator=generator, dtype=torch.float64)
    corners = torch.linalg.qr(square).Q.T
    corners = corners - corners.mean(0)
    means: Tensor = _APART * corners / corners.norm(dim=1, keepdim=True)
    return means


def cosines(device: torch.device) -> tuple[Float[Tensor, "64 16"], Float[Tensor, "64 48"]]:
    """Make the orthonormal cosine waves of 8 x 8 pixels.

    Args:
        device: where they are needed.

    Returns:
        The slow ones, at most 3 half waves a side, and the others, float64.
    """
    side = SHAPE[1]
    place = torch.arange(side, dtype=torch.float64, device=device)
    waves = torch.cos(math.pi / side * (place[:, None] + 0.5) * place[None])
    waves = waves / waves.norm(dim=0, keepdim=True)
    both = torch.einsum("ik,jl->ijkl", waves, waves)
    slow = both[:, :, :WAVES, :WAVES].reshape(_PIXELS, -1)
    fast = torch.cat(
        [both[:, :, WAVES:].reshape(_PIXELS, -1), both[:, :, :WAVES, WAVES:].reshape(_PIXELS, -1)], 1
    )
    return slow, fast
