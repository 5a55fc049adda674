"""What a caller hands over from Python: a module, an array or too few labels is told in one line, by every method."""

import subprocess
import sys

import pytest

from calipers.attacks.deepfool import DeepFool
from calipers.diagnostics.diagnose import diagnose
from calipers.errors import UsageError
from calipers.target.arguments import check_arguments
from calipers.testing.obfuscated import smooth_images, undefended
from calipers.threat.threat_model import Norm, ThreatModel

LINF = ThreatModel(Norm.LINF, 0.1)
X, Y = smooth_images(4, seed=0)

SAID = (
    ("module, X, Y", "the classifier is of type Preprocessed: wrap it, Target(module"),
    ("target, X.numpy(), Y", "the inputs are of type ndarray: give a tensor"),
    ("target, X, Y.numpy()", "the labels are of type ndarray: give a tensor"),
    ("target, X, Y[:3]", "there are 3 labels for 4 inputs: give one each"),
    ("target, X[:, 0], Y", "inputs have shape"),
)
PROGRAM = f"""
import calipers
from calipers.testing.obfuscated import smooth_images, undefended
X, Y = smooth_images(4, seed=0)
target = undefended()
module = target.module
linf = calipers.ThreatModel(calipers.Norm.LINF, 0.1)
for method in (lambda *a: calipers.PGD()(*a, linf, seed=0), lambda *a: calipers.diagnose(*a, linf, budget=1.0)):
    for given in ({", ".join(f"lambda: ({call})" for call, _ in SAID)}):
        try:
            method(*given())
        except Exception as problem:
            print(type(problem).__name__, problem)
"""


def test_an_attack_and_a_diagnosis_tell_what_they_were_given_and_what_to_give() -> None:
    # in a process of its own, since the types of arguments are checked at every call of a test
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 * len(SAID)
    for line, (_, said) in zip(lines, SAID * 2, strict=True):
        assert line.startswith(("UsageError", "InvalidInput")) and said in line


def test_labels_are_asked_for_only_where_a_method_wants_them() -> None:
    check_arguments(undefended(), X)
    with pytest.raises(UsageError, match="the inputs are of type list"):
        check_arguments(undefended(), [1.0])


def test_a_norm_by_its_name_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"norm is 'linf': give a Norm, such as Norm.LINF"):
        ThreatModel("linf", 0.1)  # type: ignore[arg-type]


def test_an_attack_of_the_least_size_is_named_where_a_diagnosis_refuses_it() -> None:
    with pytest.raises(UsageError, match="DeepFool looks for the least size"):
        diagnose(undefended(), X, Y, LINF, attack=DeepFool(), budget=2.0)
    with pytest.raises(UsageError, match="give eps"):
        diagnose(undefended(), X, Y, ThreatModel(Norm.LINF), budget=2.0)
