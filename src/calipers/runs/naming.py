"""Naming: what a user writes for a method, a noise, a size or a norm, and what is meant by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calipers.errors import UsageError
from calipers.runs.catalog import ATTACKS, METHODS, NOISES
from calipers.runs.descriptions import build_attack, build_noise
from calipers.threat.threat_model import Norm
from calipers.threat.units import parse_size

if TYPE_CHECKING:
    from calipers.attacks.base import Attack
    from calipers.certificates.smoothing.noise import Noise
    from calipers.gradients.estimator import GradientEstimator

__all__ = ["name_attack", "name_noise", "read_norm", "read_radii", "read_size"]

_NOISE_DRAWS = 32


def name_attack(
    text: str,
    *,
    gradient: str | None = None,
    noise: Noise | None = None,
    sized: bool,
    trust_code: bool = False,
) -> Attack:
    """Make the attack that a user named; loads torch.

    A smoothed classifier is searched through its base, by the gradient of its mean softmax score under the noise
    (Salman et al. 2019, arXiv:1906.04584), and a search for the least size is continued along its ray.

    Args:
        text: a name, such as ``pgd`` or ``pgd(steps=100, restarts=5)``, or a repr.
        gradient: how gradients are had, such as ``eot(30) bpda(encoder=identity)``; the attack's own if None.
        noise: the noise of the smoothed classifier that is attacked, if it is smoothed.
        sized: whether a size is given.
        trust_code: whether functions of the user's may be imported.

    Returns:
        The attack.

    Raises:
        UsageError: if the name or an argument is unknown, or the attack has no gradient to be told about.
    """
    from calipers.attacks.ray import Ray
    from calipers.gradients.text import parse_gradient

    name, bracket, rest = text.strip().partition("(")
    known = ATTACKS.get(name.strip().lower(), name.strip())
    if known not in METHODS:
        raise UsageError(f"attack is {text!r}: use one of {', '.join(ATTACKS)}")
    attack = build_attack(f"{known}{bracket}{rest}" if bracket else f"{known}()", trust_code=trust_code)
    if gradient is None and noise is not None:
        word = {"Laplace": "laplace", "Uniform": "uniform"}.get(type(noise).__name__, "gaussian")
        gradient = f"eot({_NOISE_DRAWS}, over={word}({noise.scale!r}), average=probabilities)"
    if gradient is not None:
        told = _under(attack, parse_gradient(gradient, trust_code=trust_code))
        if told is None:
            raise UsageError(f"{known} follows no gradient: leave --gradient out, or choose another attack")
        attack = told
    if noise is not None and not sized and not isinstance(attack, Ray):
        attack = Ray(attack)
    return attack


def _under(attack: Attack, view: GradientEstimator) -> Attack | None:
    """Give an attack a view of gradients, or the members of a combination that follow any; None if none does."""
    from dataclasses import fields, replace

    from calipers.attacks.combine import MinimizeEps, WorstOf
    from calipers.attacks.ray import Ray

    if isinstance(attack, WorstOf):
        told = [_under(one, view) for one in attack.attacks]
        members = tuple(old if new is None else new for old, new in zip(attack.attacks, told, strict=True))
        return WorstOf(members) if any(told) else None
    if isinstance(attack, MinimizeEps | Ray):
        inner = _under(attack.attack, view)
        return None if inner is None else replace(attack, attack=inner)
    if "gradient" not in {each.name for each in fields(attack)}:
        return None
    return replace(attack, gradient=view)  # type: ignore[call-arg]


def name_noise(word: str, scale: str, *, sound: bool = False) -> Noise:
    """Make the noise that a user named; loads no torch.

    Args:
        word: gaussian, laplace or uniform.
        scale: its standard deviation, spread or half width, such as ``0.25`` or ``64/255``.
        sound: whether noise is drawn on the 1/255 grid.

    Returns:
        The noise.

    Raises:
        UsageError: if the word is unknown, the scale is no positive number, or sound noise is not Gaussian.
    """
    if word not in NOISES:
        raise UsageError(f"noise is {word!r}: use one of {', '.join(NOISES)}")
    if sound and word != "gaussian":
        raise UsageError(
            f"noise is {word!r} and --sound draws Gaussian noise on the 1/255 grid: leave one out"
        )
    try:
        size = float(parse_size(scale))
    except UsageError as problem:
        raise UsageError(f"sigma: {problem}") from None
    return build_noise(f"{'RoundedGaussian' if sound else NOISES[word]}({size!r})")


def read_size(text: str) -> float:
    """Read a size that a user wrote.

    Args:
        text: such as ``0.25`` or ``64/255``.

    Returns:
        The size, in input units.
    """
    return float(parse_size(text))


def read_norm(text: str) -> str:
    """Read a norm that a user wrote.

    Args:
        text: such as ``l2``, ``Linf`` or ``2``.

    Returns:
        Its name: l0, l1, l2 or linf.
    """
    return Norm.parse(text).value


def read_radii(text: str) -> tuple[float, ...]:
    """Read radii that a user listed.

    Args:
        text: sizes with commas between, such as ``0.25,0.5`` or ``64/255``.

    Returns:
        The radii, in input units.

    Raises:
        UsageError: if one of them is no size.

    Example:
        >>> read_radii("0.25, 1/2")
        (0.25, 0.5)
    """
    return tuple(float(parse_size(part)) for part in text.split(",") if part.strip())
