"""LipschitzCertifier: exact on linear classifiers, never broken by attacks, honest about what it refuses."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calipers.attacks.pgd import PGD
from calipers.certificates.lipschitz.certifier import LipschitzCertifier, bounds_of, scores_in_float64
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.smoothed import smooth
from calipers.errors import GradientsUnavailable, Unsound, UsageError
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.threat.threat_model import ABSTAIN, Norm, ThreatModel

L2 = ThreatModel(Norm.L2)


def _images(reference: str, count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset(reference).take(limit=count)
    return (
        torch.stack([torch.from_numpy(example.image) for example in data]),
        torch.tensor([example.label for example in data]),
    )


def _filled(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter[0].numel())
    return net.eval()


def _linear() -> Target:
    return Target(
        _filled(nn.Sequential(nn.Flatten(), nn.Linear(12, 5))),
        num_classes=5,
        input_shape=(3, 2, 2),
        bounds=(-9.0, 9.0),
    )


def _convolution() -> Target:
    """A convolution whose most stretched direction is the one that decides, behind a ReLU that is always active."""
    conv = nn.Conv2d(1, 4, 3, padding=1)
    conv.weight.data = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)) / 3
    conv.bias.data = torch.full((4,), 64.0)
    basis = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    operator = torch.nn.functional.conv2d(basis, conv.weight.double(), padding=1).flatten(1).T
    top = torch.linalg.svd(operator.detach())[0][:, 0].float()
    last = nn.Linear(64, 2)
    last.weight.data = torch.stack([top, -top])
    last.bias.data = -(last.weight @ torch.full((64,), 64.0)).detach()
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), last)
    return Target(net.eval(), num_classes=2, input_shape=(1, 4, 4), bounds=(-9.0, 9.0))


def _orthogonal() -> Target:
    layers = []
    for seed in range(4):
        layer = nn.Linear(10, 10, bias=False)
        generator = torch.Generator().manual_seed(seed)
        layer.weight.data = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[
            0
        ].float()
        layers.append(layer)
    return Target(nn.Sequential(*layers).eval(), num_classes=10, input_shape=(10,), bounds=(-9.0, 9.0))


def _distance(target: Target, x: Tensor) -> np.ndarray:
    """Exact l2 distance of a linear classifier's inputs to the nearest other class."""
    flat = torch.eye(target.dimension, dtype=torch.float64).view(-1, *target.input_shape)
    net = scores_in_float64(target)
    with torch.no_grad():
        offset = net(torch.zeros_like(flat[:1]))
        weight = (net(flat) - offset).T
        scores = net(x.double())
    best = scores.argmax(1)
    found = []
    for row in range(len(x)):
        difference = weight[best[row]] - weight
        lead = scores[row, best[row]] - scores[row]
        size = difference.norm(dim=1)
        others = size > 0
        found.append(float((lead[others] / size[others]).min()))
    return np.array(found)


@pytest.mark.parametrize("make", [_linear, _convolution, _orthogonal])
def test_a_linear_classifier_is_certified_up_to_its_distance_and_not_beyond(make: object) -> None:
    target = make()  # type: ignore[operator]
    x = torch.randn((50, *target.input_shape), generator=torch.Generator().manual_seed(1))
    found = LipschitzCertifier()(target, x, L2, seed=0)
    exact = _distance(target, x)
    assert (found.radius <= exact).all()
    assert found.radius == pytest.approx(exact, rel=1e-4)


def _broken(target: Target, x: Tensor, radius: np.ndarray, labels: Tensor, share: float) -> int:
    """Count inputs that fall to PGD inside a share of a radius."""
    fallen = 0
    for row in range(len(x)):
        threat = ThreatModel(Norm.L2, float(radius[row]) * share)
        attack = PGD(steps=30, restarts=2, step_size=0.2, loss="margin")
        fallen += int(attack(target, x[row : row + 1], labels[row : row + 1], threat, seed=row).success.sum())
    return fallen


@pytest.mark.parametrize("make", [_linear, _convolution, _orthogonal])
def test_an_attack_fails_inside_the_radius_and_succeeds_where_the_bound_is_divided(make: object) -> None:
    target = make()  # type: ignore[operator]
    x = torch.randn((30, *target.input_shape), generator=torch.Generator().manual_seed(2))
    found = LipschitzCertifier()(target, x, L2, seed=0)
    labels = torch.from_numpy(found.prediction)
    assert _broken(target, x, found.radius, labels, 0.999) == 0
    assert _broken(target, x, found.radius * 1.05, labels, 0.999) > 20


@pytest.mark.parametrize(
    ("reference", "count"), [("bundled:fashion-cnn28-plain", 200), ("bundled:fashion-lipschitz", 600)]
)
def test_no_attack_succeeds_inside_a_radius_on_images(reference: str, count: int) -> None:
    target = load_model(reference)
    x, _ = _images("bundled:fashion-mnist", count)
    found = LipschitzCertifier()(target, x, L2, seed=0)
    labels = torch.from_numpy(found.prediction)
    sure = found.prediction != ABSTAIN
    assert sure.mean() > 0.95
    rows = np.flatnonzero(sure)
    order = rows[np.argsort(found.radius[rows])]
    attack = PGD(steps=20, restarts=2, step_size=0.25, loss="margin")
    for part in np.array_split(order, 40):
        # all of a part at the smallest radius among them, which is inside the ball of each
        threat = ThreatModel(Norm.L2, float(found.radius[part].min()) * 0.999)
        result = attack(target, x[part], labels[part], threat, seed=0, indices=part.tolist())
        assert not bool(result.success.any())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_attack_succeeds_inside_a_thousand_radii_of_their_own() -> None:
    checked = 0
    for reference, count in (("bundled:fashion-cnn28-plain", 300), ("bundled:fashion-lipschitz", 800)):
        target = load_model(reference)
        x, _ = _images("bundled:fashion-mnist", count)
        found = LipschitzCertifier()(target, x, L2, seed=0)
        rows = np.flatnonzero(found.prediction != ABSTAIN)
        labels = torch.from_numpy(found.prediction[rows])
        assert _broken(target, x[rows], found.radius[rows], labels, 0.999) == 0
        checked += len(rows)
    assert checked >= 1000


def test_every_rule_proves_no_more_than_the_best() -> None:
    target = load_model("bundled:fashion-cnn28-plain")
    x, _ = _images("bundled:fashion-mnist", 40)
    best = LipschitzCertifier()(target, x, L2, seed=0)
    for rule in ("per-coordinate", "vector", "last-layer", "composed", "softmax"):
        found = LipschitzCertifier(rule=rule)(target, x, L2, seed=0)
        assert (found.radius <= best.radius * (1 + 1e-12)).all()
        assert (found.radius > 0).any()
    soft = LipschitzCertifier(rule="softmax")(target, x, L2, seed=0)
    plain = LipschitzCertifier(rule="vector")(target, x, L2, seed=0)
    assert (soft.radius <= plain.radius).all()


def test_radii_in_other_norms_are_at_least_those_by_comparison_of_norms() -> None:
    target = _linear()
    x = torch.randn((20, 3, 2, 2), generator=torch.Generator().manual_seed(3))
    flat = LipschitzCertifier()(target, x, L2, seed=0)
    largest = LipschitzCertifier()(target, x, ThreatModel(Norm.LINF), seed=0)
    total = LipschitzCertifier()(target, x, ThreatModel(Norm.L1), seed=0)
    assert (largest.radius >= flat.radius / math.sqrt(12) * (1 - 1e-9)).all()
    assert (total.radius >= flat.radius * (1 - 1e-9)).all()
    assert (largest.radius > flat.radius / math.sqrt(12) * 1.05).any()
    for result, norm, dual in ((largest, Norm.LINF, 1), (total, Norm.L1, np.inf)):
        for certificate in result.certificates:
            weight = target.module.net[1].weight.double().numpy()
            difference = weight[certificate.prediction] - weight[certificate.rival]
            reached = (certificate.margin or 0) / np.linalg.norm(difference, dual)
            assert certificate.radius <= reached, norm


def test_the_record_holds_what_the_radius_was_made_of() -> None:
    target = _linear()
    x = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(4))
    for certificate in LipschitzCertifier()(target, x, L2, seed=0).certificates:
        assert certificate.alpha == 0
        assert certificate.margin is not None and certificate.constant is not None
        assert certificate.radius == pytest.approx(certificate.margin / certificate.constant, rel=1e-6)
        assert certificate.radius <= certificate.margin / certificate.constant
        assert certificate.rival != certificate.prediction


def test_one_input_is_certified_as_among_many() -> None:
    target = load_model("bundled:fashion-cnn28-plain")
    x, _ = _images("bundled:fashion-mnist", 7)
    many = LipschitzCertifier()(target, x, L2, seed=0)
    for row in range(7):
        alone = LipschitzCertifier()(target, x[row : row + 1], L2, seed=0, indices=[row])
        assert alone.radius[0] == many.radius[row]


def test_what_no_constant_can_be_about_is_refused_with_the_reason() -> None:
    net = nn.Sequential(nn.Linear(4, 3)).eval()

    def certify(target: Target, threat: ThreatModel = L2) -> None:
        LipschitzCertifier()(target, torch.zeros(1, 4) + 0.5, threat, seed=0)

    shape = {"num_classes": 3, "input_shape": (4,)}
    scores = Target.from_scores(lambda x: x[:, :3], fingerprint="f", **shape)  # type: ignore[arg-type]
    with pytest.raises(Unsound, match="gives scores only"):
        certify(scores)
    with pytest.raises(Unsound, match="gives decisions only"):
        certify(smooth(Target(net, **shape), Gaussian(0.25)))  # type: ignore[arg-type]
    with pytest.raises(Unsound, match="precision is bf16"):
        certify(Target(net, precision="bf16", **shape))  # type: ignore[arg-type]
    with pytest.raises(Unsound, match="draws randomness"):
        certify(Target(net, stochastic=True, probe=False, **shape))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="l0"):
        certify(Target(net, **shape), ThreatModel(Norm.L0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="method is 'power'"):
        LipschitzCertifier(method="power")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="rule is 'lucky'"):
        LipschitzCertifier(rule="lucky")
    with pytest.raises(Unsound, match="has no such constants"):
        LipschitzCertifier(rule="composed")(
            Target(nn.Sequential(nn.Linear(4, 3), nn.GELU()).eval(), **shape),  # type: ignore[arg-type]
            torch.zeros(1, 4) + 0.5,
            L2,
            seed=0,
        )


def test_the_bound_is_found_once_for_a_target() -> None:
    target = _linear()
    assert bounds_of(target, Norm.L2, "auto") is bounds_of(target, Norm.L2, "auto")
    assert bounds_of(target, Norm.L2, "auto") is not bounds_of(_linear(), Norm.L2, "auto")


def test_gradients_are_needed_and_said_so() -> None:
    target = Target.from_scores(lambda x: x[:, :3], num_classes=3, input_shape=(4,), fingerprint="f")
    with pytest.raises(GradientsUnavailable):
        _ = target.module
