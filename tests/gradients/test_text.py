"""The text form: what is written is read back, and what cannot be read is said in one line."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import CalipersError, UntrustedCode, UsageError
from calipers.gradients.bpda import BPDA, identity
from calipers.gradients.eot import EOT
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.gradients.finite_differences import NES, SPSA
from calipers.gradients.named import register
from calipers.gradients.text import VIEWS, parse_gradient
from calipers.gradients.transformations import AdditiveNoise, Drawn, Finite


def crops(copies: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return copies


PAIR = Finite((identity, identity), (0.25, 0.75))
HERE = __name__


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("autograd", Autograd()),
        ("  autograd() ", Autograd()),
        ("bpda(encoder=identity)", BPDA({"encoder": identity})),
        ("bpda( 0 = identity ,layer1.*.relu=identity)", BPDA({"0": identity, "layer1.*.relu": identity})),
        ("eot(30) bpda(encoder=identity)", EOT(30, inner=BPDA({"encoder": identity}))),
        ("bpda(encoder=identity) eot(30)", BPDA({"encoder": identity}, inner=EOT(30))),
        ("eot", EOT()),
        ("eot(samples=7, average=logits, max_batch=64)", EOT(7, average="logits", max_batch=64)),
        ("eot(7) nes(20, sigma=1e-2)", EOT(7, inner=NES(20, sigma=0.01))),
        ("nes(antithetic=false)", NES(antithetic=False)),
        ("spsa(64, delta=0.5)", SPSA(64, 0.5)),
        ("eot(9, over=gaussian(0.25))", EOT(9, over=AdditiveNoise("gaussian", 0.25))),
        ("eot(9,over=finite(identity=0.25,identity=0.75))", EOT(9, over=PAIR)),
        ("eot(9, over=finite(identity))", EOT(9, over=Finite((identity,)))),
    ],
)
def test_a_text_says_what_is_meant_and_comes_back(text: str, meant: GradientEstimator) -> None:
    assert parse_gradient(text) == meant
    assert parse_gradient(meant.describe()) == meant


def test_functions_of_a_module_need_trust() -> None:
    text = f"eot(3, over={HERE}:crops)"
    with pytest.raises(UntrustedCode, match="trust-code"):
        parse_gradient(text)
    with pytest.raises(UntrustedCode):
        parse_gradient("bpda(encoder=os:getcwd)")
    meant = EOT(3, over=Drawn(crops))
    assert parse_gradient(text, trust_code=True) == meant
    assert meant.describe() == text
    assert parse_gradient(f"eot(3, over={HERE}:PAIR)", trust_code=True) == EOT(3, over=PAIR)
    assert parse_gradient("bpda(a=calipers.gradients.bpda:identity)").access == Autograd().access


def test_a_registered_distribution_has_its_name() -> None:
    register("pair-of-nothings", PAIR)
    assert parse_gradient("eot(3, over=pair-of-nothings)") == EOT(3, over=PAIR)


@given(
    st.integers(1, 10**6),
    st.sampled_from(["loss", "probabilities", "logits"]),
    st.sampled_from(["gaussian", "laplace", "uniform", ""]),
    st.floats(1e-300, 1e300),
    st.text("abz_.*?019[]", min_size=1),
    st.sampled_from(["nes", "bpda", ""]),
)
def test_every_estimator_comes_back_from_its_text(
    samples: int, average, kind, scale: float, path: str, inside: str
) -> None:
    inner = {"nes": NES(samples, scale), "bpda": BPDA({path: identity}), "": Autograd()}[inside]
    estimator = EOT(
        samples,
        average="loss" if inside == "nes" else average,
        max_batch=samples + 7,
        over=AdditiveNoise(kind, scale) if kind else None,
        inner=inner,
    )
    assert parse_gradient(estimator.describe()) == estimator


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "gradient is empty"),
        ("bdpa(encoder=identity)", "gradient 'bdpa' is unknown: use autograd, bpda, double, eot, nes, spsa"),
        ("eot(", "it ends too early"),
        ("eot(30", "the end' stands where ',' or '\\)' belongs"),
        ("eot)(", "stands where a name belongs"),
        ("eot(3 4)", "'4' stands where"),
        ("(30)", "'\\(' stands where a name belongs"),
        ("eot(x)", "samples cannot be 'x'"),
        ("eot(1.5)", "samples cannot be '1.5'"),
        ("eot(3, 4)", "has no use for '4'"),
        ("eot(3, samples=4)", "has no use for 'samples'"),
        ("eot(3, steps=4)", "its arguments are samples, over, average, max_batch"),
        ("eot(0)", "samples 0"),
        ("eot(3, average=votes)", "average is 'votes': use loss, probabilities, logits"),
        ("eot(3, over=pink(1))", "over=pink\\(...\\) is unknown"),
        ("eot(3, over=gaussian(x))", "scale cannot be 'x'"),
        ("eot(3, over=finite(identity=1, identity))", "give each one, or none"),
        ("eot(3, over=finite(identity=often))", "no number"),
        ("eot(3, over=nowhere)", "no function is named 'nowhere'"),
        ("eot(eot(3))", "stands where a plain value belongs"),
        ("eot(f(3)=4)", "stands before '='"),
        ("eot(3) eot(4)", "eot stands inside eot"),
        ("nes(3) eot(3)", "nes takes nothing after it, and eot\\(3\\) follows"),
        ("autograd bpda(a=identity)", "autograd takes nothing after it"),
        ("autograd(3)", "its arguments are none"),
        ("bpda", "name at least one"),
        ("bpda(encoder)", "write bpda\\(encoder=identity\\)"),
        ("bpda(encoder=eot(3))", "where the name of a function belongs"),
        ("bpda(encoder=identity) nes", "nes and spsa have none"),
        ("nes(antithetic=maybe)", "neither true nor false"),
        ("nes(sigma=-1)", "sigma is -1.0"),
        ("x" * 5000, "write at most 2000"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        parse_gradient(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@given(st.text("eotbpdans()=,. 0159*:\n'\"\\", max_size=40))
def test_no_text_does_worse_than_an_error_of_ours(text: str) -> None:
    try:
        found = parse_gradient(text)
    except CalipersError as problem:
        assert "\n" not in str(problem)
    else:
        assert parse_gradient(found.describe()) == found


def test_every_name_is_one_that_is_read() -> None:
    for name in VIEWS:
        arguments = "(a=identity)" if name == "bpda" else ""
        assert parse_gradient(name + arguments).describe().startswith(name)
