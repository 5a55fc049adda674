"""Descriptions: every method comes back from its repr, and nothing else does."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier, VotePredictor
from calipers.certificates.smoothing.noise import Gaussian, Laplace, RoundedGaussian, Uniform
from calipers.certificates.smoothing.stopping import DecideRadii, FixedBudget
from calipers.errors import UntrustedCode, UsageError
from calipers.runs import catalog, descriptions

METHODS = [
    VoteCertifier(n0=10, n=1000, alpha=1e-9, bound="one-sided", stopping=DecideRadii((0.1 + 0.2, 5.0))),
    VoteCertifier(),
    SoftCertifier(n=1234),
    VotePredictor(n=7, alpha=0.5),
    Gaussian(0.1 + 0.2),
    Laplace(1e-300),
    Uniform(3),
    RoundedGaussian(0.25),
    FixedBudget(),
    DecideRadii((1 / 3,)),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_comes_back_from_its_repr(method: object) -> None:
    assert descriptions.build(repr(method)) == method


NEED_ARGUMENTS = {
    "BPDA": "BPDA(substitutes=(('encoder', 'identity'),))",
    "AdditiveNoise": "AdditiveNoise(kind='gaussian', scale=0.25)",
    "Drawn": "Drawn(function='identity')",
    "Finite": "Finite(transforms=('identity', 'identity'), weights=(0.25, 0.75))",
    "Reparameterization": "Reparameterization(decode='identity', encode='identity')",
    "Ray": "Ray(attack=DDN())",
    "WorstOf": "WorstOf(attacks=(FGSM(), PGD(steps=3)))",
    "MinimizeEps": "MinimizeEps(attack=PGD(steps=3))",
    "Transfer": "Transfer(substitute='bundled:fashion-cnn28-plain')",
    **{type(method).__name__: repr(method) for method in METHODS},
}


@pytest.mark.parametrize("name", catalog.METHODS)
def test_everything_in_the_catalog_comes_back_from_its_repr(name: str) -> None:
    made = descriptions.build(NEED_ARGUMENTS.get(name, f"{name}()"))
    assert type(made).__name__ == name
    assert descriptions.build(repr(made)) == made


@pytest.mark.parametrize("name", catalog.METHODS)
def test_no_field_of_any_method_imports_a_user_s_module_unless_it_may(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_stranger.py").write_text("def run(*given):\n    return given\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("of_a_stranger", None)
    made = descriptions.build(NEED_ARGUMENTS.get(name, f"{name}()"))
    place = "of_a_stranger:run"
    for field in ast.parse(repr(made), mode="eval").body.keywords:  # type: ignore[attr-defined]
        for value in (place, (place,), (("encoder", place),)):
            with contextlib.suppress(Exception):
                descriptions.build(descriptions.changed(repr(made), {field.arg: value}))
            assert "of_a_stranger" not in sys.modules, f"{name}({field.arg}={value!r}) imported it"


def test_a_user_s_function_in_a_stored_gradient_is_not_imported_unless_it_may_be() -> None:
    text = "PGD(gradient=BPDA(substitutes=(('encoder', 'antigravity:fly'),)))"
    with pytest.raises(UntrustedCode):
        descriptions.build_attack(text)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Gaussian(sigma=__import__('os').getpid())",
        "Gaussian(sigma=(lambda: 1)())",
        "Gaussian.__init__",
        "Gaussian(sigma=1).__class__()",
        "Gaussian(**{'sigma': 1})",
        "Gaussian(*[1])",
        "[x for x in (1,)]",
        "Gaussian(sigma=f'{1}')",
        "Gaussian(sigma=2**999999999)",
        "exec('1')",
        "Gaussian(sigma=0.25); 1",
        "Gaussian",
        "0.25",
        "",
        "(" * 3000,
        "Gaussian(sigma=" + "-" * 3900 + "1)",
        "Gaussian(sigma=0.25)" + " " * 5000,
        "Gaussian(colour=1)",
        "Gaussian()",
        "Gaussian(sigma=-1)",
        "VoteCertifier(alpha=2)",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        descriptions.build(text)


def test_an_argument_that_a_method_does_not_have_is_named_with_those_that_it_has() -> None:
    with pytest.raises(
        UsageError, match=r"no argument 'step': it takes gradient, steps, step_size, restarts"
    ):
        descriptions.build("PGD(step=5)")


@pytest.mark.parametrize(
    "build",
    [
        descriptions.build_certifier,
        descriptions.build_noise,
        descriptions.build_predictor,
        descriptions.build_stopping,
    ],
)
def test_a_method_of_another_kind_is_refused(build: object) -> None:
    right = sum(_accepts(build, repr(method)) for method in METHODS)
    assert 0 < right < len(METHODS)


def _accepts(build: object, text: str) -> bool:
    try:
        build(text)  # type: ignore[operator]
    except UsageError as problem:
        assert " is no " in str(problem)
        return False
    return True


def test_noise_and_stopping_come_back_without_torch() -> None:
    code = (
        "import sys; from calipers.runs import descriptions\n"
        "descriptions.build_noise('Gaussian(sigma=0.5)'), descriptions.build_stopping('DecideRadii((0.5,))')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
