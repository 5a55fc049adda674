"""Every attack is rebuilt from its repr, which is its entry in the store."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

import calipers.attacks
from calipers.attacks.base import Attack
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.runs.catalog import METHODS
from calipers.runs.descriptions import build

FOLDER = Path(calipers.attacks.__file__).parent


def _attacks() -> list[type[Attack]]:
    modules = [import_module(f"calipers.attacks.{path.stem}") for path in sorted(FOLDER.glob("[a-z]*.py"))]
    found = {
        one
        for module in modules
        for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Attack) and one.__module__ == module.__name__
    }
    return sorted((one for one in found if not inspect.isabstract(one)), key=lambda one: one.__name__)


def test_every_attack_of_the_folder_is_in_the_catalog() -> None:
    assert {one.__name__ for one in _attacks()} <= set(METHODS)
    assert {FGSM, PGD} <= set(_attacks())


@pytest.mark.parametrize("attack", _attacks(), ids=lambda one: one.__name__)
def test_the_repr_rebuilds_the_attack_with_its_settings(attack: type[Attack]) -> None:
    try:
        one = attack()
    except TypeError:
        pytest.skip("it has members to be given")
    assert build(repr(one)) == one


def test_settings_and_the_gradient_are_kept() -> None:
    text = "PGD(gradient=EOT(samples=7), steps=3, loss='margin')"
    assert build(repr(build(text))) == build(text)
    assert "steps=3" in repr(build(text))
    assert "samples=7" in repr(build(text))
