"""The catalog: every method and every defense by its name, and where it is; the only list of them all."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from calipers.errors import BadReference
from calipers.runs.nearest import nearest_defense
from calipers.sources.datasets import list_datasets
from calipers.sources.models import LoadedModel, list_models, load_model, open_model, register_loader
from calipers.sources.reference import Reference

if TYPE_CHECKING:
    from calipers.defenses.base import Defense

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "FUNCTIONS_NAMED",
    "GREY_SHAPE",
    "METHODS",
    "NOISES",
    "around_a_network",
    "images_of_parts",
    "list_datasets",
    "list_models",
    "load_model",
    "named_defense",
    "no_such_defense",
    "open_model",
    "with_colour_form",
]

METHODS = {
    "VoteCertifier": "calipers.certificates.smoothing.certifier",
    "SoftCertifier": "calipers.certificates.smoothing.certifier",
    "VotePredictor": "calipers.certificates.smoothing.certifier",
    "LipschitzCertifier": "calipers.certificates.lipschitz.certifier",
    "Gaussian": "calipers.certificates.smoothing.noise",
    "Laplace": "calipers.certificates.smoothing.noise",
    "Uniform": "calipers.certificates.smoothing.noise",
    "RoundedGaussian": "calipers.certificates.smoothing.noise",
    "Autograd": "calipers.gradients.estimator",
    "BPDA": "calipers.gradients.bpda",
    "Double": "calipers.gradients.double",
    "EOT": "calipers.gradients.eot",
    "NES": "calipers.gradients.finite_differences",
    "SPSA": "calipers.gradients.finite_differences",
    "AdditiveNoise": "calipers.gradients.transformations",
    "Drawn": "calipers.gradients.transformations",
    "Finite": "calipers.gradients.transformations",
    "ResizeAndPad": "calipers.defenses.randomization.patterns",
    "Reparameterization": "calipers.gradients.reparameterization",
    "TanhBox": "calipers.gradients.reparameterization",
    "PGD": "calipers.attacks.pgd",
    "DeepFool": "calipers.attacks.deepfool",
    "DDN": "calipers.attacks.ddn",
    "FMN": "calipers.attacks.fmn",
    "CarliniWagner": "calipers.attacks.carlini_wagner",
    "Ray": "calipers.attacks.ray",
    "Judge": "calipers.attacks.judge",
    "FixedBudget": "calipers.certificates.smoothing.stopping",
    "DecideRadii": "calipers.certificates.smoothing.stopping",
    "FGSM": "calipers.attacks.fgsm",
    "APGD": "calipers.attacks.apgd",
    "WorstOf": "calipers.attacks.combine",
    "MinimizeEps": "calipers.attacks.combine",
    "Standard": "calipers.attacks.standard",
    "Square": "calipers.attacks.square",
    "Boundary": "calipers.attacks.boundary",
    "HopSkipJump": "calipers.attacks.hop_skip_jump",
    "RandomSearch": "calipers.attacks.random_search",
    "Transfer": "calipers.attacks.transfer",
    "LogitSpacePGA": "calipers.defenses.thermometer.logit_space",
}
"""Everything that a description may name, and its module."""

ATTACKS = {
    "standard": "Standard",
    "fgsm": "FGSM",
    "pgd": "PGD",
    "apgd": "APGD",
    "deepfool": "DeepFool",
    "ddn": "DDN",
    "fmn": "FMN",
    "carlini-wagner": "CarliniWagner",
    "square": "Square",
    "boundary": "Boundary",
    "hop-skip-jump": "HopSkipJump",
    "random-search": "RandomSearch",
    "transfer": "Transfer",
}
"""The attacks by the names that users write."""

DEFENSES = {
    "thermometer": "calipers.defenses.thermometer:Thermometer",
    "lid": "calipers.defenses.lid:LocalIntrinsicDimension",
    "input-transformations": "calipers.defenses.input_transformations:InputTransformations",
    "stochastic-activation-pruning": "calipers.defenses.stochastic_activation_pruning:StochasticActivationPruning",
    "randomization": "calipers.defenses.randomization:Randomization",
    "pixel-defend": "calipers.defenses.pixel_defend:PixelDefend",
    "defense-gan": "calipers.defenses.defense_gan:DefenseGAN",
    "adversarial-training": "calipers.defenses.adversarial_training:AdversarialTraining",
    "cascade": "calipers.defenses.cascade:Cascade",
}
"""The nine defenses of ICLR 2018, in the order of the case study's table."""

GREY_SHAPE = (1, 28, 28)
"""Channels, height and width of the images that what ships is for."""

NOISES = {"gaussian": "Gaussian", "laplace": "Laplace", "uniform": "Uniform"}
"""The noises by the names that users write."""

FUNCTIONS_NAMED = ("BPDA", "Drawn", "EOT", "Finite", "Reparameterization")
"""The methods whose arguments may name a function of the user's, which is imported only if it may be."""


def named_defense(name: str, *, weights: Path | None = None, network: str | None = None) -> Defense:
    """Make one of the nine defenses; loads torch.

    Args:
        name: one of `DEFENSES`.
        weights: the folder of its trained parts; those that ship if None.
        network: the reference of a network to put it around; None for the form that ships.

    Returns:
        The defense.

    Raises:
        BadReference: if no defense has this name.
    """
    if name not in DEFENSES:
        raise BadReference(no_such_defense(name))
    made: Defense = _kind(name)(weights, network)
    return made


def no_such_defense(name: str) -> str:
    """Say that no defense has a name, and which one or which variant was probably meant.

    Args:
        name: the name.

    Returns:
        One line.
    """
    meant = nearest_defense(
        name, tuple(DEFENSES), lambda: {known: named_defense(known).targets() for known in DEFENSES}
    )
    if "/" in meant:
        hint = f" (iclr2018:{meant} is a variant of one)"
    else:
        hint = f" (did you mean {meant}?)" if meant else ""
    return f"no defense of ICLR 2018 is called {name!r}{hint}: there are {', '.join(DEFENSES)}"


def around_a_network() -> tuple[str, ...]:
    """List the defenses that can be put around a given network; loads torch.

    Returns:
        Their names, in the order of the case study's table.
    """
    return tuple(name for name in DEFENSES if not _kind(name).own_network)


def with_colour_form() -> tuple[str, ...]:
    """List the defenses that train networks of their own on colour images of 32 x 32 too; loads torch.

    Returns:
        Their names, in the order of the case study's table.
    """
    return tuple(name for name in DEFENSES if _kind(name).colour_minutes is not None)


def images_of_parts(weights: Path | None) -> tuple[int, ...]:
    """Say what images the networks of a folder of trained parts are for; loads torch.

    Args:
        weights: the folder; None for what ships.

    Returns:
        Channels, height and width: those of what ships where nothing in the folder says another.
    """
    shapes = [named_defense(name, weights=weights).images() for name in with_colour_form()]
    return next((shape for shape in shapes if shape != GREY_SHAPE), GREY_SHAPE)


def _kind(name: str) -> type[Defense]:
    module, _, kind = DEFENSES[name].partition(":")
    found: type[Defense] = getattr(import_module(module), kind)
    return found


def _load_defense(reference: Reference, device: str) -> LoadedModel:
    # The classifier that iclr2018:NAME or iclr2018:NAME/VARIANT names
    name, _, variant = reference.path.partition("/")
    folder = reference.option("weights")
    defense = named_defense(
        name, weights=Path(folder) if folder else None, network=reference.option("network")
    )
    target = defense.target(variant, device=device)
    target.name = reference.text
    return LoadedModel(target, (("paper", f"{defense.paper.authors}, {defense.paper.source}"),))


register_loader("iclr2018", _load_defense)
