"""Nearest: names that papers and people use lead to the defense, or to its variant; others lead nowhere."""

from collections.abc import Mapping, Sequence

import pytest

from calipers.errors import BadReference
from calipers.runs.catalog import DEFENSES, load_model, named_defense
from calipers.runs.nearest import nearest_defense

VARIANTS = {
    "input-transformations": ("", "crop", "bit-depth", "jpeg", "total-variation", "quilting", "undefended"),
    "lid": ("", "undefended"),
}


def unasked() -> Mapping[str, Sequence[str]]:
    raise AssertionError("variants are not needed where a defense has a like name")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pixeldefend", "pixel-defend"),
        ("pixel_defend", "pixel-defend"),
        ("PixelDefend", "pixel-defend"),
        ("input_transformation", "input-transformations"),
        ("randomisation", "randomization"),
        ("LID", "lid"),
        ("sap", "stochastic-activation-pruning"),
        ("gan", "defense-gan"),
        ("adversarial", "adversarial-training"),
        ("ensemble", "input-transformations"),
        ("thermometer-encoding", "thermometer"),
    ],
)
def test_a_name_like_that_of_a_defense_leads_to_it(name: str, meant: str) -> None:
    assert nearest_defense(name, tuple(DEFENSES), unasked) == meant


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("jpeg", "jpeg"),
        ("JPG", "jpeg"),
        ("quilt", "quilting"),
        ("bit_depth", "bit-depth"),
        ("tv", "total-variation"),
        ("tvm", "total-variation"),
        ("crop", "crop"),
    ],
)
def test_a_name_like_that_of_a_variant_leads_to_it(name: str, variant: str) -> None:
    assert nearest_defense(name, tuple(DEFENSES), lambda: VARIANTS) == f"input-transformations/{variant}"


@pytest.mark.parametrize("name", ["none", "undefended", "mnist", "", "-"])
def test_a_name_like_no_other_leads_nowhere(name: str) -> None:
    assert not nearest_defense(name, tuple(DEFENSES), lambda: VARIANTS)


def test_a_reference_is_told_what_was_meant() -> None:
    with pytest.raises(BadReference, match="called 'jpeg' .iclr2018:input-transformations/jpeg is a variant"):
        load_model("iclr2018:jpeg")
    with pytest.raises(BadReference, match="called 'pixeldefend' .did you mean pixel-defend"):
        load_model("iclr2018:pixeldefend/window-16")


def test_a_variant_of_one_defense_is_found_by_its_name_and_one_of_many_is_not() -> None:
    made = {name: tuple(named_defense(name).targets()) for name in DEFENSES}
    every = [variant for names in made.values() for variant in names]
    for defense, names in made.items():
        for variant in names:
            if every.count(variant) > 1:
                assert not nearest_defense(variant, tuple(DEFENSES), lambda: made)
            elif variant not in {"", "adversarial"}:
                assert nearest_defense(variant, tuple(DEFENSES), lambda: made) == f"{defense}/{variant}"
