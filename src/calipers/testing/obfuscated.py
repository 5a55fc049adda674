"""Six small classifiers that hide their gradient, each around one linear classifier whose robustness is known exactly.

A search that believes such a gradient finds nothing, and the classifier looks robust. Each target comes with the
classifier that it is built around and with the gradient view under which it falls to the accuracy of that one. The
kinds are those of Athalye, Carlini and Wagner 2018 (arXiv:1802.00420), section 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import GradientEstimator
from calipers.gradients.finite_differences import NES
from calipers.target import Target

__all__ = [
    "OBFUSCATED",
    "Dropout",
    "Kind",
    "Obfuscated",
    "Purifier",
    "PythonScores",
    "Quantizer",
    "Saturation",
    "Thermometer",
    "decode_smooth",
    "dropped_features",
    "encode_smooth",
    "python_function",
    "quantizer",
    "ramp",
    "saturated_softmax",
    "smooth_images",
    "staircase",
    "survives",
    "undefended",
    "unrolled_descent",
]

Kind = Literal["shattered", "stochastic", "exploding or vanishing"]

CLASSES: Final = 3
SHAPE: Final = (1, 8, 8)
_PIXELS, _WAVES = 64, 4
_MIDDLE = 0.5
_APART, _SPREAD = 0.6, 0.085
_LEVELS, _STEP = 10, 0.05
_KEPT = 0.15
_SHARPNESS = 1e4
_ROUNDS, _WIDTH, _RATE, _COUPLING = 8, 0.05, 6.0, 5e-4
_DIGITS = 3


@final
@dataclass(frozen=True, eq=False)
class Obfuscated:
    """A classifier that hides its gradient, and what it hides.

    Args:
        kind: how the gradient is hidden.
        target: the classifier as it is deployed, which the judge asks.
        gradient: the view under which the gradient is there again.
    """

    kind: Kind
    target: Target
    gradient: GradientEstimator


def smooth_images(count: int, *, seed: int) -> tuple[Float[Tensor, "count 1 8 8"], Int[Tensor, " count"]]:
    """Draw images of 8 x 8 pixels in [0, 1], made of the 16 slowest cosine waves, in three classes.

    The waves' amplitudes are normal around the mean of the class, with the same spread in each.

    Args:
        count: how many.
        seed: of the draws.

    Returns:
        The images, float32, and their classes.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn((count, _WAVES**2), generator=generator, dtype=torch.float64)
    amplitudes = _means()[labels] + _SPREAD * noise
    return decode_smooth(amplitudes).clamp(0, 1).float(), labels


def survives(x: Float[Tensor, "batch 1 8 8"], y: Int[Tensor, " batch"], eps: float) -> Bool[Tensor, " batch"]:
    r"""Say which inputs the undefended classifier answers rightly everywhere in an linf ball, the box left out.

    For linear scores the least margin over the ball is :math:`\min_j (s_y - s_j) - \varepsilon \|w_y - w_j\|_1`.

    Args:
        x: images.
        y: their classes.
        eps: the radius of the ball, in input units.

    Returns:
        One answer an input.
    """
    net = _Linear()
    weights, scores = net.weight.double(), net.forward(x)
    rows = torch.arange(len(x))
    margins = scores[rows, y][:, None] - scores
    slopes = (weights[y][:, None] - weights[None]).abs().sum(2)
    left = margins - eps * slopes
    left[rows, y] = torch.inf
    return left.amin(1) > 0


def undefended() -> Target:
    """Make the classifier that all others are built around: the nearest class mean, whose scores are linear.

    Returns:
        The target.
    """
    return _target(_Linear(), "undefended")


def staircase() -> Obfuscated:
    """Shatter the gradient by thermometer encoding (Buckman et al.): ten steps a pixel, and the lecture's ramp as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("encoder", Thermometer(_LEVELS))
    net.add_module("readout", _Readout(_LEVELS))
    net.add_module("classifier", _Linear())
    return Obfuscated("shattered", _target(net, "staircase"), BPDA({"encoder": ramp}))


def quantizer() -> Obfuscated:
    """Shatter the gradient by rounding pixels, with the identity as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("quantizer", Quantizer(_STEP))
    net.add_module("classifier", _Linear())
    return Obfuscated("shattered", _target(net, "quantizer"), BPDA({"quantizer": identity}))


def dropped_features(samples: int = 40) -> Obfuscated:
    """Randomize the gradient by dropping 85 features of 100 in each call, with the mean gradient as view.

    Args:
        samples: draws of the view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("dropout", Dropout(_KEPT))
    net.add_module("classifier", _Linear())
    return Obfuscated("stochastic", _target(net, "dropped features", stochastic=True), EOT(samples))


def saturated_softmax() -> Obfuscated:
    """Make the gradient vanish in a softmax so sharp that its answers are 0 and 1, with the logits as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("classifier", _Linear())
    net.add_module("softmax", Saturation(_SHARPNESS))
    return Obfuscated(
        "exploding or vanishing", _target(net, "saturated softmax"), BPDA({"softmax": identity})
    )


def unrolled_descent() -> Obfuscated:
    """Make the gradient explode in a purifier that descends an energy for some steps, with the identity as view.

    :func:`encode_smooth` and :func:`decode_smooth` are its reparameterization, for attacks that search another
    variable: what is smooth already, the purifier leaves alone.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("purifier", Purifier())
    net.add_module("classifier", _Linear())
    return Obfuscated(
        "exploding or vanishing", _target(net, "unrolled descent"), BPDA({"purifier": identity})
    )


def python_function(samples: int = 128) -> Obfuscated:
    """Leave torch for NumPy and round the scores, with differences of scores as view.

    Args:
        samples: directions of the view.

    Returns:
        The target and the view.
    """
    return Obfuscated("shattered", _target(PythonScores(), "python function"), NES(samples, sigma=0.05))


OBFUSCATED: Final[dict[str, Callable[[], Obfuscated]]] = {
    "staircase": staircase,
    "quantizer": quantizer,
    "dropped features": dropped_features,
    "saturated softmax": saturated_softmax,
    "unrolled descent": unrolled_descent,
    "python function": python_function,
}
"""The six, by name."""


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


def ramp(x: Float[Tensor, "batch 1 8 8"], *, levels: int = _LEVELS) -> Float[Tensor, "batch levels 8 8"]:
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
        slow, fast = _cosines(x.device)
        centered = x.double().flatten(1) - _MIDDLE
        u, v = centered @ slow, centered @ fast
        signs = torch.ones(v.shape[1], dtype=v.dtype, device=x.device)
        signs[1::2] = -1
        owner = torch.arange(v.shape[1], device=x.device) % _WAVES**2
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
    return (x.double().flatten(1) - _MIDDLE) @ _cosines(x.device)[0]


def decode_smooth(z: Float[Tensor, "batch 16"]) -> Float[Tensor, "batch 1 8 8"]:
    """Make the smooth image of some amplitudes: h(z), which the purifier leaves alone.

    Args:
        z: amplitudes.

    Returns:
        Images in the precision of the amplitudes.
    """
    slow = _cosines(z.device)[0].to(z.dtype)
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
        self.register_buffer("weight", _Linear().weight)

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
class _Linear(nn.Module):
    """Scores of the nearest class mean; the means have one length, so that only products are left."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        slow, _ = _cosines(torch.device("cpu"))
        self.register_buffer("weight", (_means() @ slow.T).float())

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = (x.double().flatten(1) - _MIDDLE) @ self.weight.double().T
        return scores


@final
class _Readout(nn.Module):
    """Sums thermometer levels to the middle of each step."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, code: Tensor) -> Tensor:
        return (code.sum(1, keepdim=True) + 0.5) / self.levels


def _target(net: nn.Module, name: str, *, stochastic: bool = False) -> Target:
    return Target(net.eval(), num_classes=CLASSES, input_shape=SHAPE, stochastic=stochastic, name=name)


def _means() -> Float[Tensor, "classes waves"]:
    """Three class means of one length, equally far apart."""
    generator = torch.Generator().manual_seed(7)
    square = torch.randn((_WAVES**2, CLASSES), generator=generator, dtype=torch.float64)
    corners = torch.linalg.qr(square).Q.T
    corners = corners - corners.mean(0)
    means: Tensor = _APART * corners / corners.norm(dim=1, keepdim=True)
    return means


def _cosines(device: torch.device) -> tuple[Float[Tensor, "64 16"], Float[Tensor, "64 48"]]:
    """The orthonormal cosine waves of 8 x 8 pixels: the slow ones, at most 3 half waves a side, and the others."""
    side = SHAPE[1]
    place = torch.arange(side, dtype=torch.float64, device=device)
    waves = torch.cos(math.pi / side * (place[:, None] + 0.5) * place[None])
    waves = waves / waves.norm(dim=0, keepdim=True)
    both = torch.einsum("ik,jl->ijkl", waves, waves)
    slow = both[:, :, :_WAVES, :_WAVES].reshape(_PIXELS, -1)
    fast = torch.cat(
        [both[:, :, _WAVES:].reshape(_PIXELS, -1), both[:, :, :_WAVES, _WAVES:].reshape(_PIXELS, -1)], 1
    )
    return slow, fast
