"""Defense-GAN: its projection descends, keeps the best start and can be differentiated; its rows, its training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Row
from calipers.defenses.defense_gan import DefenseGAN, decode, encode
from calipers.defenses.defense_gan.classifier import CLASSIFIER, project_images
from calipers.defenses.defense_gan.generator import LATENT, Critic, Generator
from calipers.defenses.defense_gan.latent import GENERATOR, continued, load_generator
from calipers.defenses.defense_gan.projection import Projection, descend
from calipers.defenses.defense_gan.training import gradient_penalty
from calipers.defenses.parts import load_part, part_file, save_part, small_network
from calipers.errors import GradientsUnavailable, UsageError
from calipers.gradients.estimator import Autograd
from calipers.gradients.reparameterization import Reparameterization
from calipers.randomness import Draws, Role
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


class Linear(nn.Module):
    """G(z) = A z, whose projection has a closed form."""

    def __init__(self, latent: int = 3, side: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(side * side, latent, generator=generator, dtype=torch.float64)
        self.side = side

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.matrix.T).view(len(z), 1, self.side, self.side)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        solved = torch.linalg.lstsq(self.matrix, x.flatten(1).T).solution
        return self(solved.T)


class Waves(nn.Module):
    """A generator with many local minima of the error, and one latent coordinate."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(5 * z), torch.cos(3 * z), 0.1 * z], 1).view(len(z), 1, 1, 3)


def row_of(role: str, text: str = "") -> Row:
    return next(row for row in DefenseGAN().rows() if row.role == role and text in row.what)


def test_descent_takes_the_steps_of_momentum_and_slows_down_in_the_last_fifth() -> None:
    net = Linear()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    z0 = torch.rand(2, 3, dtype=torch.float64)
    z, velocity = z0.clone(), torch.zeros_like(z0)
    for step in range(10):
        slope = 2 * (net(z) - x).flatten(1) @ net.matrix / 16
        velocity = 0.7 * velocity + slope
        z = z - (0.3 if step < 8 else 0.03) * velocity
    assert torch.allclose(descend(net, x, z0, steps=10, rate=0.3, momentum=0.7), z)


def test_on_a_linear_generator_the_projection_is_that_of_least_squares() -> None:
    net = Linear()
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    starts = torch.randn(5, 2, 3, dtype=torch.float64)
    projection = Projection(net, latent=3, steps=400, restarts=2, rate=0.3)
    assert torch.allclose(net(projection.best(x, starts)[1]), net.project(x), atol=1e-6)


def test_the_error_is_that_of_the_best_start() -> None:
    net, count = Waves(), 6
    projection = Projection(net, latent=1, steps=40, restarts=count, rate=0.02)
    x = net(torch.linspace(-2, 2, 7)[:, None])
    starts = 2 * torch.randn(7, count, 1, generator=torch.Generator().manual_seed(1))

    def errors(z: torch.Tensor) -> torch.Tensor:
        return (net(z) - x).square().flatten(1).sum(1)

    each = torch.stack(
        [
            errors(descend(net, x, starts[:, place], steps=40, rate=0.02, momentum=0.7))
            for place in range(count)
        ],
        1,
    )
    start, best = projection.best(x, starts)
    assert torch.allclose(errors(best), each.amin(1), atol=1e-6)
    assert float((each.amax(1) - each.amin(1)).min()) > 1e-3, "the starts must end at different errors"
    rows = torch.arange(7)
    assert torch.equal(start, starts[rows, each.argmin(1)])


def test_the_gradient_goes_through_all_steps_of_the_best_descent() -> None:
    net = Linear()
    projection = Projection(net, latent=3, steps=12, restarts=2, rate=0.05, unrolled=True)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    direction = torch.rand_like(x)
    step = 1e-6 * torch.rand_like(x)

    def value(point: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(5)
            return (projection.double()(point) * direction).sum()

    torch.set_default_dtype(torch.float64)
    try:
        (gradient,) = torch.autograd.grad(value(x), x)
        with torch.no_grad():
            found = (value(x + step) - value(x - step)) / 2
    finally:
        torch.set_default_dtype(torch.float32)
    assert float(found) == pytest.approx(float((gradient * step).sum()), rel=1e-4)


def test_a_few_steps_keep_the_gradient_and_many_lose_the_clean_image_s_share() -> None:
    """With G linear, the unrolled gradient is that of the projection once the descent has converged."""
    net = Linear()
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    z = torch.zeros(1, 3, dtype=torch.float64)
    image = net(descend(net, x, z, steps=300, rate=0.3, momentum=0.7, unrolled=True))
    wanted = torch.rand_like(image)
    (gradient,) = torch.autograd.grad((image * wanted).sum(), x)
    assert torch.allclose(gradient, net.project(wanted), atol=1e-5)


def test_each_row_draws_its_own_starts() -> None:
    projection = Projection(Waves(), latent=1, steps=1, restarts=1, rate=1e-6)
    same = torch.zeros(4, 1, 1, 3)
    found = projection(same)
    assert len({tuple(row) for row in found.flatten(1).tolist()}) == 4


@pytest.mark.parametrize(("steps", "restarts"), [(0, 1), (1, 0)])
def test_a_projection_without_a_step_or_a_start_is_refused(steps: int, restarts: int) -> None:
    with pytest.raises(UsageError, match=f"steps is {steps} and restarts {restarts}"):
        Projection(Waves(), latent=1, steps=steps, restarts=restarts)


def test_the_networks_have_the_shapes_of_images() -> None:
    x = Generator()(torch.randn(3, LATENT))
    assert x.shape == (3, 1, 28, 28)
    assert Critic()(x).shape == (3,)


def test_the_penalty_of_a_linear_critic_is_known() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x.flatten(1).sum(1) / 28

    pair = torch.rand(2, 5, 1, 28, 28)
    found = gradient_penalty(Sum(), pair[0], pair[1], generator=torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(4.0, rel=1e-4)


def test_rows_are_stored_as_text_and_cover_every_role() -> None:
    rows = DefenseGAN().rows()
    assert {row.role for row in rows} == {"undefended", "naive", "matched", "adaptive", "ablation"}
    for row in rows:
        assert build_attack(repr(row.attack)) == row.attack
    assert "mean square 0.005" in row_of("adaptive").unit
    assert pytest.approx(0.005, rel=1e-3) == 1.98**2 / 784


def test_around_another_generator_no_attack_goes_through_the_one_that_ships(tmp_path: Path) -> None:
    for part, net in ((GENERATOR, load_generator(None)), (CLASSIFIER, small_network())):
        save_part(net, part, tmp_path, about={"what": "a copy"})
    assert [row.what for row in DefenseGAN(weights=tmp_path).rows()] == [
        row.what for row in DefenseGAN().rows()
    ]
    save_part(Generator(), GENERATOR, tmp_path, about={"what": "another"})
    rows = DefenseGAN(weights=tmp_path).rows()
    assert not any("defense_gan.latent" in repr(row.attack) for row in rows)
    assert {row.role for row in rows} == {"undefended", "naive", "matched", "adaptive", "ablation"}


def test_a_search_over_z_is_judged_on_the_whole_defense() -> None:
    row = row_of("ablation", "projected again")
    assert row.variant == ""
    assert isinstance(row.attack, Transfer)
    assert row.attack.substitute == "iclr2018:defense-gan/undefended"
    inner = row.attack.attack
    assert inner.over == Reparameterization(  # type: ignore[attr-defined]
        "calipers.defenses.defense_gan.latent:decode", "calipers.defenses.defense_gan.latent:encode"
    )


def test_a_tiny_training_writes_parts_that_load(tmp_path: Path) -> None:
    x = torch.randint(0, 256, (128, 1, 28, 28)).to(torch.uint8)
    y = torch.arange(128) % 10
    told: list[str] = []
    DefenseGAN(steps=2, restarts=1).train(x, y, tmp_path, share=0.0005, tell=told.append)
    generator, classifier = load_generator(tmp_path), load_part(small_network(), CLASSIFIER, tmp_path)
    assert generator(torch.zeros(1, LATENT)).shape == (1, 1, 28, 28)
    assert classifier(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.safetensors"))]
    DefenseGAN(steps=2, restarts=1).train(x, y, tmp_path, share=0.0005, tell=told.append)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.safetensors"))] == written


def test_projected_training_images_repeat_with_their_seed() -> None:
    projection = Projection(Generator(), latent=LATENT, steps=2, restarts=1)
    x = torch.randint(0, 256, (5, 1, 28, 28)).to(torch.uint8)
    first = project_images(projection, x)
    assert first.dtype == torch.uint8
    assert torch.equal(first, project_images(projection, x))


def test_encoding_is_the_same_for_an_image_in_any_batch_and_decodes_near_it() -> None:
    x, _ = images(3)
    z = encode(x)
    assert torch.allclose(encode(x[1:2]), z[1:2], atol=1e-2)
    error = (decode(z) - x).square().flatten(1).mean(1)
    mean = (x - x.mean(0, keepdim=True)).square().flatten(1).mean(1)
    assert bool((error < 0.03).all()) and float(error.mean()) < 0.5 * float(mean.mean())


def test_the_parts_that_ship_are_small() -> None:
    sizes = [part_file(name, None).stat().st_size for name in (GENERATOR, CLASSIFIER)]
    assert sum(sizes) < 480_000


def test_as_deployed_the_projection_has_no_gradient_and_unrolled_it_has_one() -> None:
    x, y = images(2)
    draws, objective = Draws(0, Role.SEARCH, (0, 1)), margin
    small = DefenseGAN(steps=3, restarts=1)
    with pytest.raises(GradientsUnavailable):
        Autograd().estimate(small.target(), objective, x, y, Untargeted(), draws=draws)
    found = Autograd().estimate(small.target("unrolled"), objective, x, y, Untargeted(), draws=draws)
    assert bool((found.gradient.flatten(1).norm(dim=1) > 0).all())
    deployed = small.target().logits(x, draws=draws)
    assert torch.equal(deployed, small.target("unrolled").logits(x, draws=draws))


def test_the_substitute_follows_the_image() -> None:
    x, _ = images(2)
    leaf = x.requires_grad_(True)
    image = continued(leaf)
    (gradient,) = torch.autograd.grad((image - leaf.detach()).square().sum(), leaf)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
    assert float((image - x).square().mean()) < 0.03


@pytest.mark.slow
def test_the_adaptive_attack_brings_down_what_stands_after_the_naive_one() -> None:
    x, y = images(12)
    target, left = load_model("iclr2018:defense-gan"), {}
    for role, eps in (("naive", None), ("adaptive", 1.98)):
        row = row_of(role)
        found = row.attack(target, x, y, ThreatModel(Norm.L2, eps), seed=0, judge=row.judge)
        left[role] = int((~found.success).sum())
    assert left["adaptive"] <= left["naive"] - 4
