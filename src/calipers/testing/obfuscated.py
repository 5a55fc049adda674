"""Six small classifiers that hide their gradient, each around one linear classifier whose robustness is known exactly.

A search that believes such a gradient finds nothing, and the classifier looks robust. Each target comes with the
classifier that it is built around and with the gradient view under which it falls to the accuracy of that one. The
kinds are those of Athalye, Carlini and Wagner 2018 (arXiv:1802.00420), section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import GradientEstimator
from calipers.gradients.finite_differences import NES
from calipers.target import Target
from calipers.testing.hiding import (
    CLASSES,
    LEVELS,
    SHAPE,
    WAVES,
    Dropout,
    NearestMean,
    Purifier,
    PythonScores,
    Quantizer,
    Readout,
    Saturation,
    Thermometer,
    class_means,
    decode_smooth,
    ramp,
)

__all__ = [
    "OBFUSCATED",
    "Kind",
    "Obfuscated",
    "dropped_features",
    "python_function",
    "quantizer",
    "saturated_softmax",
    "smooth_images",
    "staircase",
    "survives",
    "undefended",
    "unrolled_descent",
]

Kind = Literal["shattered", "stochastic", "exploding or vanishing"]

_SPREAD, _STEP, _KEPT, _SHARPNESS = 0.085, 0.05, 0.15, 1e4


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
    noise = torch.randn((count, WAVES**2), generator=generator, dtype=torch.float64)
    amplitudes = class_means()[labels] + _SPREAD * noise
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
    net = NearestMean()
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
    return _target(NearestMean(), "undefended")


def staircase() -> Obfuscated:
    """Shatter the gradient by thermometer encoding (Buckman et al.): ten steps a pixel, and the lecture's ramp as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("encoder", Thermometer(LEVELS))
    net.add_module("readout", Readout(LEVELS))
    net.add_module("classifier", NearestMean())
    return Obfuscated("shattered", _target(net, "staircase"), BPDA({"encoder": ramp}))


def quantizer() -> Obfuscated:
    """Shatter the gradient by rounding pixels, with the identity as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("quantizer", Quantizer(_STEP))
    net.add_module("classifier", NearestMean())
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
    net.add_module("classifier", NearestMean())
    return Obfuscated("stochastic", _target(net, "dropped features", stochastic=True), EOT(samples))


def saturated_softmax() -> Obfuscated:
    """Make the gradient vanish in a softmax so sharp that its answers are 0 and 1, with the logits as view.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("classifier", NearestMean())
    net.add_module("softmax", Saturation(_SHARPNESS))
    return Obfuscated(
        "exploding or vanishing", _target(net, "saturated softmax"), BPDA({"softmax": identity})
    )


def unrolled_descent() -> Obfuscated:
    """Make the gradient explode in a purifier that descends an energy for some steps, with the identity as view.

    :func:`~calipers.testing.hiding.encode_smooth` and :func:`~calipers.testing.hiding.decode_smooth` are its
    reparameterization, for attacks that search another variable: what is smooth already, the purifier leaves alone.

    Returns:
        The target and the view.
    """
    net = nn.Sequential()
    net.add_module("purifier", Purifier())
    net.add_module("classifier", NearestMean())
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


def _target(net: nn.Module, name: str, *, stochastic: bool = False) -> Target:
    return Target(net.eval(), num_classes=CLASSES, input_shape=SHAPE, stochastic=stochastic, name=name)
