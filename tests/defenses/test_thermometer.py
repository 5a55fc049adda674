"""Thermometer encoding: the code, the four ramps, LS-PGA, its rows, its training."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from calipers.attacks.pgd import PGD
from calipers.defenses.base import Row
from calipers.defenses.thermometer import LogitSpacePGA, Thermometer
from calipers.defenses.thermometer.defense import encoded_network
from calipers.defenses.thermometer.encoding import (
    LEVELS,
    ThermometerEncoder,
    bucket,
    encode,
    lower_buckets,
    next_bucket,
    rise_from_threshold,
    rise_to_threshold,
)
from calipers.defenses.thermometer.logit_space import ascend, code_of, image_of, reachable, soften
from calipers.errors import UsageError
from calipers.gradients.bpda import BPDA
from calipers.randomness import Draws, Role
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.target import Target
from calipers.threat.threat_model import Norm, ThreatModel

BALL = ThreatModel(Norm.LINF, 0.1)


def images(count: int) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def row_of(role: str, text: str = "", variant: str = "") -> Row:
    return next(
        row
        for row in Thermometer().rows()
        if row.role == role and text in row.what and row.variant == variant
    )


def accuracy(row: Row, x: Tensor, y: Tensor) -> float:
    target = Thermometer().target(row.variant)
    found = row.attack(target, x, y, ThreatModel(Norm(row.norm), float(row.eps)), seed=0, judge=row.judge)
    return float((~found.success).double().mean())


def test_the_code_is_that_of_a_loop_over_pixels_and_levels() -> None:
    x = noise(2, 2, 3, 3)
    found = encode(x, levels=5)
    assert found.shape == (2, 10, 3, 3)
    for row, channel, top, left in torch.cartesian_prod(*map(torch.arange, (2, 2, 3, 3))).tolist():
        place = int(0.99999 * float(x[row, channel, top, left]) * 5)
        wanted = [1.0 if level <= place else 0.0 for level in range(5)]
        assert found[row, channel * 5 : channel * 5 + 5, top, left].tolist() == wanted


def test_the_ends_of_the_box_and_what_lies_beyond_have_codes() -> None:
    x = torch.tensor([-0.5, 0.0, 1 / 16 + 1e-4, 0.5, 1.0, 1.5]).view(1, 1, 1, 6)
    assert encode(x)[0, :, 0].sum(0).tolist() == [1, 1, 2, 8, 16, 16]


def test_the_gradient_of_the_encoding_is_there_and_is_0() -> None:
    x = noise(2, 1, 4, 4).requires_grad_(True)
    (gradient,) = torch.autograd.grad((encode(x) * noise(2, LEVELS, 4, 4, seed=1)).sum(), x)
    assert not gradient.any()


def test_the_encoder_takes_images_and_codes() -> None:
    x = noise(2, 1, 4, 4)
    encoder = ThermometerEncoder()
    assert torch.equal(encoder(x), encode(x))
    assert torch.equal(encoder(encode(x)), encode(x))


@pytest.mark.parametrize(
    ("ramp", "formula", "moved"),
    [
        (rise_to_threshold, lambda x, k: min(x / (k / 16), 1.0) if k else 0.0, lambda x, k: 0 < x < k / 16),
        (
            rise_from_threshold,
            lambda x, k: min(max(x - (k + 1) / 16, 0.0), 1.0),
            lambda x, k: x > (k + 1) / 16,
        ),
        (
            next_bucket,
            lambda x, k: min(max(16 * (x - (k - 1) / 16), 0.0), 1.0),
            lambda x, k: (k - 1) / 16 < x < k / 16,
        ),
        (lower_buckets, lambda x, k: min(max(x - k / 16, 0.0), 1.0), lambda x, k: x > k / 16),
    ],
)
def test_each_ramp_is_its_formula_and_gives_gradient_where_it_rises(ramp, formula, moved) -> None:  # type: ignore[no-untyped-def]
    for value in (0.03, 0.21, 0.5 + 1e-3, 0.97):
        x = torch.full((1, 1, 1, 1), value, dtype=torch.float64, requires_grad=True)
        code = ramp(x)
        assert code.shape == (1, 16, 1, 1)
        for level in range(16):
            assert float(code[0, level].detach()) == pytest.approx(formula(value, level), abs=1e-12)
            (slope,) = torch.autograd.grad(code[0, level].sum(), x, retain_graph=True)
            assert bool(slope) == moved(value, level)


def test_the_buckets_within_reach_are_those_of_points_of_the_ball() -> None:
    x = noise(1, 1, 5, 5)
    shares = torch.linspace(-1, 1, 4001).view(-1, 1, 1, 1)
    seen = bucket(x + 0.1 * shares)
    wanted = (seen[:, 0, :, :, None] == torch.arange(LEVELS)).any(0)
    assert torch.equal(reachable(x, 0.1)[0, 0], wanted)


def test_soft_codes_fall_from_1_and_become_the_hard_ones() -> None:
    x = noise(2, 1, 4, 4)
    reach = reachable(x, 0.1)
    logits = torch.randn(reach.shape, generator=torch.Generator().manual_seed(3))
    soft = soften(logits, reach, sharpness=1.0)
    assert torch.allclose(soft[:, 0], torch.ones(2, 4, 4))
    assert bool((soft.diff(dim=1) <= 1e-6).all())
    assert torch.allclose(soften(logits, reach, sharpness=1e5), code_of(logits, reach), atol=1e-3)


def test_the_image_of_logits_has_their_code_and_lies_in_the_ball() -> None:
    x = torch.cat([noise(40, 1, 6, 6), torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)])
    reach = reachable(x, 0.1)
    logits = torch.randn(reach.shape, generator=torch.Generator().manual_seed(4))
    found = image_of(logits, reach, x, 0.1)
    assert torch.equal(encode(found), code_of(logits, reach))
    assert float((found - x).abs().max()) <= 0.1 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    own = bucket(x) == (code_of(logits, reach).sum(1, keepdim=True) - 1)
    assert torch.equal(found[own], x[own])


class Weighted(nn.Module):
    """Scores that are linear in codes: one weight a bucket for each of two pixels, against nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ThermometerEncoder(4)
        self.weight = nn.Parameter(torch.tensor([[0.0, 1.0, -3.0, 9.0], [0.0, -1.0, 5.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        score = (self.encoder(x)[:, :, 0] * self.weight.T).sum((1, 2))
        return torch.stack([torch.full_like(score, 6.0), score], 1)


def linear_case() -> tuple[Target, Tensor, Tensor]:
    target = Target(Weighted().eval(), num_classes=2, input_shape=(1, 1, 2), name="weighted")
    return target, torch.tensor([[[[0.45, 0.45]]]]), torch.tensor([0])


def test_ls_pga_finds_the_best_buckets_of_a_network_that_is_linear_in_codes() -> None:
    # sums of weights by bucket: 0, 1, -2, 7 and 0, -1, 4, 3; within .45 +- .3 (buckets 0 to 2) the best are 1 and 2,
    # which make 5, and within .4 the first has 3 as well, which makes 11: only there is the threshold of 6 passed
    target, x, y = linear_case()
    attack = LogitSpacePGA(steps=60, step_size=1.0, anneal=1.05, levels=4)
    near = attack(target, x, y, ThreatModel(Norm.LINF, 0.3), seed=0)
    far = attack(target, x, y, ThreatModel(Norm.LINF, 0.4), seed=0)
    assert not bool(near.success[0])
    assert bucket(near.adversarial, levels=4).flatten().tolist() == [1, 2]
    assert bool(far.success[0])
    assert bucket(far.adversarial, levels=4).flatten().tolist() == [3, 2]


@pytest.mark.parametrize("sign", [True, False])
def test_ls_pga_is_the_loop_of_the_paper(sign: bool) -> None:
    target, x, y = linear_case()
    weight = Weighted().weight.detach()
    for seed in range(6):
        u = torch.randn((1, 1, 2, 4), generator=Draws(seed, Role.SEARCH, (0,))[0].generator(0))
        for step in range(3):
            u.requires_grad_(True)
            # buckets 0 to 3 can be reached within .4
            shares = (1.2**step * u[0, 0]).softmax(-1)
            code = torch.stack([shares[:, level:].sum(-1) for level in range(4)])
            score = (code * weight.T).sum()
            loss = nn.functional.cross_entropy(torch.stack([torch.tensor(6.0), score])[None], y)
            (gradient,) = torch.autograd.grad(loss, u)
            u = u.detach() + 0.7 * (gradient.sign() if sign else gradient)
        attack = LogitSpacePGA(steps=3, step_size=0.7, sign=sign, levels=4)
        found = attack(target, x, y, ThreatModel(Norm.LINF, 0.4), seed=seed)
        assert bucket(found.adversarial, levels=4).flatten().tolist() == u[0, 0].argmax(-1).tolist()


def test_ls_pga_asks_through_the_view_and_is_counted() -> None:
    x, y = images(4)
    target = Thermometer().target()
    found = LogitSpacePGA(steps=5)(target, x, y, BALL, seed=0)
    searched = target.predict(x) == y
    assert found.backwards.tolist() == (5 * searched.long()).tolist()
    assert bool((found.distance <= 0.1).all())


def test_ls_pga_of_an_input_does_not_depend_on_its_batch() -> None:
    x, y = images(5)
    target = Thermometer().target()
    attack = LogitSpacePGA(step_size=1.0)
    whole = attack(target, x, y, BALL, seed=3)
    alone = attack(target, x[3:4], y[3:4], BALL, seed=3, indices=[3])
    # rounding differs between shapes of a batch, and the sign of a gradient near 0 with it
    assert float((whole.adversarial[3] - alone.adversarial[0]).abs().gt(1e-6).double().mean()) < 0.02


def test_ls_pga_in_training_climbs() -> None:
    x, y = images(8)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net = encoded_network()
    reach = reachable(x, 0.1)
    still = ascend(net, x, y, 0.1, torch.Generator().manual_seed(0), steps=1, step_size=1e-9)
    moved = ascend(net, x, y, 0.1, generator, steps=5, step_size=1.0)

    def loss(logits: Tensor) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(net(code_of(logits, reach)), y))

    assert loss(moved) > loss(still)


def test_senseless_settings_of_ls_pga_are_refused() -> None:
    with pytest.raises(UsageError, match="steps is 0"):
        LogitSpacePGA(steps=0)
    with pytest.raises(UsageError, match="anneal is -1"):
        LogitSpacePGA(anneal=-1.0)


def test_every_row_can_be_stored_and_rebuilt() -> None:
    for row in Thermometer().rows():
        assert build_attack(repr(row.attack)) == row.attack
    ramp = repr(row_of("adaptive").attack)
    assert "'calipers.defenses.thermometer.encoding:next_bucket'" in ramp


def test_the_recipe_breaks_what_the_naive_attack_and_autograd_do_not() -> None:
    x, y = images(20)
    naive, matched = accuracy(row_of("naive"), x, y), accuracy(row_of("matched"), x, y)
    adaptive, undefended = (
        accuracy(row_of("adaptive"), x, y),
        accuracy(row_of("undefended", variant="undefended"), x, y),
    )
    assert adaptive <= undefended + 0.1
    assert naive >= adaptive + 0.2
    assert matched >= adaptive + 0.5


def test_autograd_sees_a_gradient_of_0() -> None:
    x, y = images(6)
    found = PGD(steps=3, random_start=False)(Thermometer().target(), x, y, BALL, seed=0)
    assert set(found.reason) <= {"no gradient", "already wrong"}


def test_adversarial_training_helps_and_less_than_the_authors_measured() -> None:
    x, y = images(20)
    naive = accuracy(row_of("naive", variant="adversarial"), x, y)
    adaptive = accuracy(row_of("adaptive", variant="adversarial"), x, y)
    assert adaptive > accuracy(row_of("adaptive"), x, y)
    assert adaptive < naive


def test_the_gradient_is_named_for_the_encoder_module() -> None:
    x, y = images(2)
    net = Thermometer().target()
    found = PGD(BPDA({"encoder": lower_buckets}), steps=1)(net, x, y, BALL, seed=0)
    assert "no gradient" not in found.reason


def test_a_tiny_training_writes_files_that_load(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 10, (300,), generator=generator)
    said: list[str] = []
    Thermometer(tmp_path).train(x, y, tmp_path, share=0.01, tell=said.append)
    defense = Thermometer(tmp_path)
    for variant in ("", "adversarial", "undefended"):
        assert defense.target(variant).logits(noise(2, 1, 28, 28)).shape == (2, 10)
    with safe_open(str(tmp_path / "thermometer-adversarial.safetensors"), framework="pt") as opened:
        assert opened.metadata()["share"] == "0.01"
    assert any("thermometer-adversarial: epoch 1 of 1" in words for words in said)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    defense.train(x, y, tmp_path, share=0.01, tell=said.append)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_classifiers_are_models_by_reference() -> None:
    assert load_model("iclr2018:thermometer").fingerprint == Thermometer().target().fingerprint
    assert load_model("iclr2018:thermometer/undefended-adversarial").num_classes == 10
