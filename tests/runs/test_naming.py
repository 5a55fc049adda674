"""Naming: a user's words become the method, the noise or the size that is meant."""

from __future__ import annotations

import pytest

from calipers.certificates.smoothing.noise import Laplace
from calipers.errors import UsageError
from calipers.runs.catalog import ATTACKS
from calipers.runs.descriptions import build_attack
from calipers.runs.naming import name_attack


@pytest.mark.parametrize("word", ATTACKS)
def test_an_attack_is_made_by_its_name_with_arguments_and_a_gradient(word: str) -> None:
    more = "(substitute='bundled:fashion-cnn28-plain')" if word == "transfer" else ""
    attack = name_attack(word + more, sized=True)
    assert type(attack).__name__ == ATTACKS[word]
    if hasattr(attack, "gradient"):
        seen = name_attack(word + more, gradient="eot(7) bpda(encoder=identity)", sized=True)
        assert "EOT(samples=7" in repr(seen)
        assert "identity" in repr(seen)
        assert build_attack(repr(seen)) == seen


@pytest.mark.parametrize(
    "gradient",
    [
        "autograd",
        "double",
        "bpda(encoder=identity)",
        "eot(7)",
        "eot(7, over=identity)",
        "eot(7, over=gaussian(0.5), average=probabilities)",
        "eot(7, over=finite(identity, identity))",
        "eot(7, over=finite(identity=0.25, identity=0.75))",
        "nes(10)",
        "spsa(10)",
    ],
)
def test_every_gradient_that_can_be_written_can_be_stored(gradient: str) -> None:
    attack = name_attack("pgd", gradient=gradient, sized=True)
    assert build_attack(repr(attack)) == attack


def test_a_smoothed_classifier_is_searched_through_its_base_and_along_the_ray() -> None:
    found = repr(name_attack("ddn(steps=5)", noise=Laplace(0.5), sized=False))
    assert found.startswith("Ray(attack=DDN(gradient=EOT(samples=32")
    assert "average='probabilities', over=AdditiveNoise(kind='laplace', scale=0.5)" in found


def test_a_combination_hands_the_gradient_to_the_members_that_follow_one() -> None:
    text = "WorstOf((HopSkipJump(), DDN(steps=9), MinimizeEps(PGD(steps=7))))"
    found = repr(name_attack(text, gradient="eot(7)", sized=False))
    assert found.count("EOT(samples=7") == 2
    assert "DDN(gradient=EOT" in found
    assert "PGD(gradient=EOT" in found
    assert build_attack(found) == name_attack(text, gradient="eot(7)", sized=False)
    with pytest.raises(UsageError, match="WorstOf follows no gradient"):
        name_attack("WorstOf((HopSkipJump(), Boundary()))", gradient="nes(10)", sized=False)


def test_an_attack_without_a_gradient_is_not_told_about_one() -> None:
    with pytest.raises(UsageError, match="follows no gradient"):
        name_attack("boundary", gradient="nes(10)", sized=False)
