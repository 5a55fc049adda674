"""The catalog: no method of the package is missing from it, and its short names name what is in it."""

from __future__ import annotations

import inspect
from importlib import import_module
from pkgutil import walk_packages

import pytest

import calipers.attacks
import calipers.certificates
import calipers.defenses
import calipers.gradients
from calipers.attacks.base import Attack
from calipers.certificates.base import Certifier
from calipers.certificates.smoothing.noise import Noise
from calipers.defenses.base import Defense
from calipers.errors import BadReference
from calipers.gradients.estimator import GradientEstimator
from calipers.gradients.reparameterization import SearchVariable
from calipers.gradients.transformations import Transformations
from calipers.runs.catalog import ATTACKS, DEFENSES, FUNCTIONS_NAMED, METHODS, NOISES, named_defense

PACKAGES = (calipers.attacks, calipers.certificates, calipers.defenses, calipers.gradients)


def _concrete(kind: type) -> set[str]:
    """Name the classes of a kind that the package makes, `module:name`."""
    for package in PACKAGES:
        for module in walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    found, left = set(), [kind]
    while left:
        one = left.pop()
        left += one.__subclasses__()
        if one.__module__.startswith("calipers.") and not inspect.isabstract(one):
            found.add(f"{one.__module__}:{one.__qualname__}")
    return {name for name in found if not name.startswith("calipers.testing.")}


@pytest.mark.parametrize(
    "kind", [Attack, Certifier, GradientEstimator, Noise, SearchVariable, Transformations]
)
def test_every_method_is_in_the_catalog(kind: type) -> None:
    found = _concrete(kind)
    assert found
    assert found <= {f"{module}:{name}" for name, module in METHODS.items()}


def test_every_defense_is_in_the_catalog_under_the_name_it_has() -> None:
    made = {name: named_defense(name) for name in DEFENSES}
    assert {name: defense.name for name, defense in made.items()} == {name: name for name in DEFENSES}
    kinds = {f"{type(defense).__module__}:{type(defense).__qualname__}" for defense in made.values()}
    assert kinds == _concrete(Defense)


def test_short_names_name_methods() -> None:
    assert {*ATTACKS.values(), *NOISES.values(), *FUNCTIONS_NAMED} <= set(METHODS)


def test_a_defense_that_is_not_there_is_told_of_those_that_are() -> None:
    with pytest.raises(
        BadReference, match="no defense of ICLR 2018 is called 'none': there are thermometer, lid"
    ):
        named_defense("none")
