"""Transfer: what is found on a substitute is judged on the real classifier, which the search never asks."""

from pathlib import Path

import pytest
import torch

from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.errors import BadReference, UsageError
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

PLAIN, NOISY = "bundled:fashion-cnn28-plain", "bundled:fashion-cnn28-noise-0.25"
LINF = ThreatModel(Norm.LINF, 0.1)
INNER = PGD(steps=5, keep=True)


@pytest.fixture(scope="module")
def real() -> Target:
    return load_model(NOISY)


@pytest.fixture(scope="module")
def clean(real: Target) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    rows = [data[index] for index in range(24)]
    x = torch.stack([torch.from_numpy(row.image) for row in rows])
    y = torch.tensor([row.label for row in rows])
    right = real.predict(x) == y
    return x[right][:12], y[right][:12]


def test_the_candidate_is_the_substitutes_and_the_verdict_the_real_classifiers(
    real: Target, clean: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = clean
    found = Transfer(PLAIN, INNER)(real, x, y, LINF, seed=0)
    assert torch.equal(real.predict(found.adversarial) != y, found.success)
    own = INNER(load_model(PLAIN), x, y, LINF, seed=0)
    searched = torch.tensor([reason != "already wrong" for reason in own.reason])
    assert torch.allclose(found.adversarial[searched], own.adversarial[searched], atol=1e-6)
    assert int(found.success.sum()) < int(own.success.sum())
    assert [record.method for record in found.records()] == [repr(Transfer(PLAIN, INNER))] * len(x)


def test_the_real_classifier_is_asked_by_the_judge_alone(
    real: Target, clean: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = clean
    seen: list[int] = []
    handle = real.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = Transfer(PLAIN, INNER)(real, x, y, LINF, seed=0)
    handle.remove()
    assert seen == [100, 100], "the clean inputs and the candidates, in the judge's batch shape"
    assert int(found.queries.sum()) == int(found.forwards.sum()) == int(found.backwards.sum()) == 0


def test_the_target_as_its_own_substitute_falls_as_to_a_direct_attack(
    real: Target, clean: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = clean
    direct = INNER(real, x, y, LINF, seed=0)
    found = Transfer(NOISY, INNER)(real, x, y, LINF, seed=0)
    assert torch.equal(found.success, direct.success)
    assert bool(found.success.any())


def test_a_decision_only_classifier_can_be_attacked_by_transfer(
    real: Target, clean: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = clean
    answers = Target.from_decisions(
        lambda rows: real.predict(torch.from_numpy(rows)).numpy(),
        num_classes=10,
        input_shape=(1, 28, 28),
        fingerprint="answers",
    )
    found = Transfer(PLAIN, INNER)(answers, x, y, LINF, seed=0)
    assert torch.equal(found.success, Transfer(PLAIN, INNER)(real, x, y, LINF, seed=0).success)


def test_what_does_not_fit_is_refused(real: Target, clean: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = clean
    with pytest.raises(UsageError, match="no substitute"):
        Transfer()(real, x, y, LINF, seed=0)
    with pytest.raises(BadReference, match="none-such"):
        Transfer("bundled:none-such")(real, x, y, LINF, seed=0)
    with pytest.raises(UsageError, match="has the fingerprint"):
        Transfer(PLAIN, INNER, fingerprint="0123")(real, x, y, LINF, seed=0)
    with pytest.raises(UsageError, match="eps is not given"):
        Transfer(PLAIN, INNER)(real, x, y, ThreatModel(Norm.LINF), seed=0)
    with pytest.raises(UsageError, match="norm is l0"):
        Transfer(PLAIN, INNER)(real, x, y, ThreatModel(Norm.L0, 3), seed=0)
    with pytest.raises(UsageError, match="Transfer itself"):
        Transfer(PLAIN, Transfer(PLAIN))
    Transfer(PLAIN, INNER, fingerprint=load_model(PLAIN).fingerprint)(real, x, y, LINF, seed=0)


def test_a_substitute_of_another_task_is_refused(tmp_path: Path) -> None:
    two = Target(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 2)).eval(),
        num_classes=2,
        input_shape=(1, 28, 28),
    )
    x = torch.rand((2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    with pytest.raises(UsageError, match="10 classes and the classifier 2"):
        Transfer(PLAIN, INNER)(two, x, two.predict(x), LINF, seed=0)
