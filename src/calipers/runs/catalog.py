"""The catalog: name -> method, and back from the repr that a store holds to the object; the only list of them all."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from calipers.errors import BadReference, UsageError
from calipers.sources.datasets import list_datasets
from calipers.sources.models import LoadedModel, list_models, load_model, open_model, register_loader
from calipers.sources.reference import Reference
from calipers.threat.threat_model import Norm
from calipers.threat.units import parse_size

if TYPE_CHECKING:
    from calipers.attacks.base import Attack
    from calipers.attacks.judge import Judge
    from calipers.certificates.base import Certifier
    from calipers.certificates.smoothing.certifier import VotePredictor
    from calipers.certificates.smoothing.noise import Noise
    from calipers.certificates.smoothing.stopping import StoppingRule
    from calipers.defenses.base import Defense

__all__ = [
    "ATTACKS",
    "DEFENSES",
    "NOISES",
    "build",
    "build_attack",
    "build_certifier",
    "build_judge",
    "build_noise",
    "build_predictor",
    "build_stopping",
    "list_datasets",
    "list_models",
    "load_model",
    "name_attack",
    "name_noise",
    "named_defense",
    "names",
    "open_model",
    "read_norm",
    "read_radii",
    "read_size",
]

_PLACES = {
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
    "ResizeAndPad": "calipers.defenses.randomization",
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

NOISES = {"gaussian": "Gaussian", "laplace": "Laplace", "uniform": "Uniform"}
"""The noises by the names that users write."""

_NAMES_FUNCTIONS = ("BPDA", "Drawn", "EOT")
_NOISE_DRAWS = 32
_LONGEST = 4000


def names() -> tuple[str, ...]:
    """List the names that a repr may use.

    Returns:
        The names.
    """
    return tuple(_PLACES)


def build(text: str, *, trust_code: bool = False) -> object:
    """Rebuild a method, a noise or a stopping rule from its repr.

    The text is parsed and never evaluated: it is a call of a name in the catalog whose arguments are
    numbers, texts, tuples, lists, None, True, False, or such calls again. A file from a stranger cannot run
    anything by it.

    Args:
        text: the repr, such as ``VoteCertifier(n0=100, n=1000)``; arguments may be left out.
        trust_code: whether a function of the user's that it names (``module:function``) may be imported.

    Returns:
        The object, whose own repr is the canonical text.

    Raises:
        UsageError: if the text is anything else, or the arguments are refused.

    Example:
        >>> build("DecideRadii((0.5, 0.25))")
        DecideRadii(radii=(0.25, 0.5))
    """
    return _value(_parsed(text), trust_code=trust_code)


def changed(text: str, fields: Mapping[str, object]) -> str:
    """Change fields in the repr of a method without making the method, so that no torch is loaded.

    Args:
        text: the repr, with its fields by name.
        fields: new values by name.

    Returns:
        The repr of the method with those fields.

    Raises:
        UsageError: if the text is no such repr, or lacks one of the fields.

    Example:
        >>> changed("VoteCertifier(n0=100, alpha=0.001, stopping=FixedBudget())", {"alpha": 1e-05})
        'VoteCertifier(n0=100, alpha=1e-05, stopping=FixedBudget())'
    """
    tree = _parsed(text)
    there = {keyword.arg for keyword in tree.keywords}
    if set(fields) - there:
        raise UsageError(f"{_short(text)} has no field {', '.join(sorted(set(fields) - there))}")
    for keyword in tree.keywords:
        if keyword.arg is not None and keyword.arg in fields:
            keyword.value = ast.parse(repr(fields[keyword.arg]), mode="eval").body
    return ast.unparse(tree)


def field_of(text: str, name: str) -> object:
    """Read a field of a method from its repr without making the method, so that no torch is loaded.

    Args:
        text: the repr, with its fields by name.
        name: the field.

    Returns:
        Its value.

    Raises:
        UsageError: if the text is no such repr, or lacks the field.

    Example:
        >>> field_of("SoftCertifier(n0=100, lemma='lemma-2')", "lemma")
        'lemma-2'
    """
    for keyword in _parsed(text).keywords:
        if keyword.arg == name:
            return _value(keyword.value)
    raise UsageError(f"{_short(text)} has no field {name}")


def named_defense(name: str, *, weights: Path | None = None) -> Defense:
    """Make one of the nine defenses; loads torch.

    Args:
        name: one of `DEFENSES`.
        weights: the folder of its trained parts; those that ship if None.

    Returns:
        The defense.

    Raises:
        BadReference: if no defense has this name.
    """
    if name not in DEFENSES:
        raise BadReference(f"no defense of ICLR 2018 is called {name!r}: there are {', '.join(DEFENSES)}")
    module, _, kind = DEFENSES[name].partition(":")
    made: Defense = getattr(import_module(module), kind)(weights)
    return made


def _load_defense(reference: Reference, device: str) -> LoadedModel:
    # The classifier that iclr2018:NAME or iclr2018:NAME/VARIANT names
    name, _, variant = reference.path.partition("/")
    folder = reference.option("weights")
    defense = named_defense(name, weights=Path(folder) if folder else None)
    target = defense.target(variant, device=device)
    target.name = reference.text
    return LoadedModel(target, (("paper", f"{defense.paper.authors}, {defense.paper.source}"),))


register_loader("iclr2018", _load_defense)


def build_certifier(text: str) -> Certifier:
    """Rebuild a certifier from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The certifier.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.base import Certifier

    built = build(text)
    if not isinstance(built, Certifier):
        raise UsageError(_wrong_kind(text, "certifier"))
    return built


def build_predictor(text: str) -> VotePredictor:
    """Rebuild a predictor from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The predictor.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.certifier import VotePredictor

    built = build(text)
    if not isinstance(built, VotePredictor):
        raise UsageError(_wrong_kind(text, "predictor"))
    return built


def build_noise(text: str) -> Noise:
    """Rebuild a noise from its repr; loads no torch.

    Args:
        text: the repr.

    Returns:
        The noise.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.noise import Noise

    built = build(text)
    if not isinstance(built, Noise):
        raise UsageError(_wrong_kind(text, "noise"))
    return built


def build_attack(text: str, *, trust_code: bool = False) -> Attack:
    """Rebuild an attack from its repr; loads torch.

    Args:
        text: the repr.
        trust_code: whether a function of the user's that it names may be imported.

    Returns:
        The attack.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.attacks.base import Attack

    built = build(text, trust_code=trust_code)
    if not isinstance(built, Attack):
        raise UsageError(_wrong_kind(text, "attack"))
    return built


def build_judge(text: str) -> Judge:
    """Rebuild a judge from its repr; loads torch.

    Args:
        text: the repr.

    Returns:
        The judge.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.attacks.judge import Judge

    built = build(text)
    if not isinstance(built, Judge):
        raise UsageError(_wrong_kind(text, "judge"))
    return built


def build_stopping(text: str) -> StoppingRule:
    """Rebuild a stopping rule from its repr; loads no torch.

    Args:
        text: the repr.

    Returns:
        The stopping rule.

    Raises:
        UsageError: if it is the repr of something else.
    """
    from calipers.certificates.smoothing.stopping import DecideRadii, FixedBudget

    built = build(text)
    if not isinstance(built, FixedBudget | DecideRadii):
        raise UsageError(_wrong_kind(text, "stopping rule"))
    return built


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
    from dataclasses import fields, replace

    from calipers.attacks.ray import Ray
    from calipers.gradients.text import parse_gradient

    name, bracket, rest = text.strip().partition("(")
    known = ATTACKS.get(name.strip().lower(), name.strip())
    if known not in _PLACES:
        raise UsageError(f"attack is {text!r}: use one of {', '.join(ATTACKS)}")
    attack = build_attack(f"{known}{bracket}{rest}" if bracket else f"{known}()", trust_code=trust_code)
    if gradient is None and noise is not None:
        word = {"Laplace": "laplace", "Uniform": "uniform"}.get(type(noise).__name__, "gaussian")
        gradient = f"eot({_NOISE_DRAWS}, over={word}({noise.scale!r}), average=probabilities)"
    if gradient is not None:
        if "gradient" not in {each.name for each in fields(attack)}:
            raise UsageError(f"{known} follows no gradient: leave --gradient out, or choose another attack")
        attack = replace(attack, gradient=parse_gradient(gradient, trust_code=trust_code))  # type: ignore[call-arg]
    if noise is not None and not sized and not isinstance(attack, Ray):
        attack = Ray(attack)
    return attack


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


def _parsed(text: str) -> ast.Call:
    if len(text) > _LONGEST:
        raise UsageError(f"a description of {len(text)} characters is no method: at most {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(
            f"{_short(text)} is not the description of a method, such as Gaussian(sigma=0.25)"
        ) from None
    if not isinstance(tree, ast.Call):
        raise UsageError(f"{_short(text)} is not the description of a method, such as Gaussian(sigma=0.25)")
    return tree


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


def _wrong_kind(text: str, word: str) -> str:
    return f"{_short(text)} is no {word}: known names are {', '.join(_PLACES)}"


def _value(node: ast.expr, *, trust_code: bool = False) -> object:
    match node:
        case ast.Constant(value=int() | float() | str() | bool() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements):
            return tuple(_value(element, trust_code=trust_code) for element in elements)
        case ast.List(elts=elements):
            return [_value(element, trust_code=trust_code) for element in elements]
        case ast.Name(id="inf"):
            return math.inf
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node, trust_code=trust_code)
        case _:
            raise UsageError(f"{_short(ast.unparse(node))} may not stand in the description of a method")


def _call(name: str, node: ast.Call, *, trust_code: bool) -> object:
    if name not in _PLACES:
        raise UsageError(f"{name!r} is not in the catalog: known names are {', '.join(_PLACES)}")
    positional = [_value(argument, trust_code=trust_code) for argument in node.args]
    named = {
        keyword.arg: _value(keyword.value, trust_code=trust_code)
        for keyword in node.keywords
        if keyword.arg is not None
    }
    if len(named) != len(node.keywords):
        raise UsageError(f"the description of {name} has ** in it, which is not allowed")
    if name in _NAMES_FUNCTIONS:
        _check_trust([*positional, *named.values()], trust_code=trust_code)
    make = getattr(import_module(_PLACES[name]), name)
    try:
        return make(*positional, **named)
    except TypeError as problem:
        raise UsageError(
            f"{name} cannot be made from its description ({problem}): another version?"
        ) from None


def _check_trust(values: Iterable[object], *, trust_code: bool) -> None:
    from calipers.gradients.named import trusting

    for value in values:
        if isinstance(value, str):
            trusting(value, trust_code=trust_code)
        elif isinstance(value, tuple | list):
            _check_trust(value, trust_code=trust_code)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
