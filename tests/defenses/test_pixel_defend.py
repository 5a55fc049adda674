"""PixelDefend: its network sees only what comes before, its purifier is the greedy loop, its rows, its training."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Row
from calipers.defenses.parts import load_part, save_part
from calipers.defenses.pixel_defend import PixelDefend
from calipers.defenses.pixel_defend.context import carry, follow_mode, through_context
from calipers.defenses.pixel_defend.pixel_cnn import LEVELS, CausalConv, PixelCNN, log_masses, nats
from calipers.defenses.pixel_defend.purifier import Purifier, purify, purify_by_full_passes
from calipers.defenses.pixel_defend.training import AROUND, DENSITY, SHAPE, bits_per_dimension
from calipers.errors import InvalidInput, UsageError
from calipers.gradients.bpda import BPDA
from calipers.runs.catalog import load_model
from calipers.runs.descriptions import build_attack
from calipers.sources.datasets import load_dataset
from calipers.threat.threat_model import Norm, ThreatModel

CIFAR = "bundled:cifar10-resnet20-noise-0.25"


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_dataset("bundled:fashion-mnist")
    examples = [data[row] for row in range(count)]
    x = torch.stack([torch.as_tensor(one.image) for one in examples])
    return x, torch.tensor([one.label for one in examples])


def wild_network(seed: int = 0, *, colours: int = 1) -> PixelCNN:
    """Build a small network with large weights, so that every pixel matters to those behind it."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        net = PixelCNN(channels=8, blocks=3, mixtures=3, colours=colours).double()
    for parameter in net.parameters():
        parameter.data *= 2
    return net.requires_grad_(False)


def random_levels(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, LEVELS, shape, generator=torch.Generator().manual_seed(seed))


def row_of(role: str, text: str = "") -> Row:
    return next(row for row in PixelDefend().rows() if row.role == role and text in row.what)


@pytest.mark.parametrize("itself", [False, True])
def test_a_masked_convolution_is_a_full_one_whose_kernel_is_zero_from_the_pixel_on(itself: bool) -> None:
    layer = CausalConv(2, 3, 5, itself=itself).double().requires_grad_(False)
    kernel = torch.zeros(3, 2, 5, 5, dtype=torch.float64)
    kernel[:, :, :2] = layer.weight[:, :, :2]
    kernel[:, :, 2, : 3 if itself else 2] = layer.weight[:, :, 2, : 3 if itself else 2]
    x = torch.rand(2, 2, 6, 7, dtype=torch.float64)
    expected = nn.functional.conv2d(x, kernel, layer.bias, padding=2)
    assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize("place", [(0, 0), (3, 4), (5, 0), (8, 9)])
def test_a_pixel_changes_what_comes_after_it_and_nothing_before(place: tuple[int, int]) -> None:
    net = wild_network()
    x = torch.rand(1, 1, 9, 10, dtype=torch.float64)
    other = x.clone()
    other[0, 0, *place] += 0.5
    changed = (net(x) != net(other)).any(1)[0].flatten()
    here = place[0] * 10 + place[1]
    assert not changed[: here + 1].any()
    assert changed[here + 1 :].any() == (here + 1 < 90)


def test_a_mixture_s_masses_sum_to_one_and_are_differences_of_its_distribution_function() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    weights, means, scales = parameters.chunk(3, 1)
    ends = (2 * torch.arange(1, LEVELS, dtype=torch.float64) - LEVELS) / (LEVELS - 1)
    inside = torch.sigmoid((ends[None, None] - means[..., None]) * torch.exp(-scales[..., None]))
    inside = torch.cat([torch.zeros_like(inside[..., :1]), inside, torch.ones_like(inside[..., :1])], -1)
    expected = (inside.diff(dim=-1) * weights.softmax(1)[..., None]).sum(1)
    found = log_masses(parameters, torch.zeros(6, dtype=torch.int64), count=LEVELS).exp()
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert torch.allclose(found.sum(1), torch.ones(6, dtype=torch.float64))


def test_in_colour_a_sub_pixel_changes_what_comes_after_it_and_nothing_before() -> None:
    net, levels = wild_network(colours=3), random_levels(1, 3, 5, 6)
    expected = net(levels.double() / 255)
    for c, i, j in [(0, 0, 0), (1, 2, 3), (2, 2, 3), (0, 4, 5), (2, 4, 4)]:
        other = levels.clone()
        other[0, c, i, j] += 60 if other[0, c, i, j] < 128 else -60
        changed = (net(other.double() / 255) != expected).any(1)[0].permute(1, 2, 0).flatten()
        here = 3 * (6 * i + j) + c
        assert not changed[: here + 1].any()
        assert changed[here + 1 : 3 * (6 * i + j) + 3].all(), "the later colours of the pixel see it"
        assert changed[3 * (6 * i + j) + 3 :].any() == ((i, j) != (4, 5))


def test_the_colours_of_a_pixel_are_drawn_from_one_mixture() -> None:
    generator = torch.Generator().manual_seed(5)
    net = wild_network(colours=3)
    raw = torch.randn(4, 3 * (1 + 3 + 3 + 3), generator=generator, dtype=torch.float64)
    levels = torch.tensor([[0, 255, 7], [128, 120, 131], [255, 0, 0], [3, 90, 200]])
    place = 2 * levels.double() / 255 - 1
    weights, means, scales, slopes = (raw[:, 3 * a : 3 * b] for a, b in [(0, 1), (1, 4), (4, 7), (7, 10)])
    slope = torch.tanh(slopes).view(4, 3, 3)
    before = place[:, :, None]
    moved = means.view(4, 3, 3).clone()
    moved[:, 1] += slope[:, 0] * before[:, 0]
    moved[:, 2] += slope[:, 1] * before[:, 0] + slope[:, 2] * before[:, 1]
    inverse = torch.exp(-scales.view(4, 3, 3))
    upper = torch.sigmoid((before + 1 / 255 - moved) * inverse).masked_fill(levels[:, :, None] == 255, 1)
    lower = torch.sigmoid((before - 1 / 255 - moved) * inverse).masked_fill(levels[:, :, None] == 0, 0)
    expected = ((upper - lower).prod(1) * weights.softmax(1)).sum(1)
    each = net.mixtures_of(raw, place, count=3)
    found = sum(log_masses(one, levels[:, c], count=1)[:, 0] for c, one in enumerate(each))
    assert torch.allclose(torch.as_tensor(found), expected.log(), rtol=1e-8)
    zeros = torch.zeros(4, dtype=torch.int64)
    for one in each:
        assert torch.allclose(log_masses(one, zeros, count=LEVELS).exp().sum(1), torch.ones(4).double())


def test_there_is_no_mass_outside_the_levels_and_a_number_far_from_the_mean() -> None:
    narrow = torch.tensor([[0.0, 0.9, -5.0]])
    found = log_masses(narrow, torch.tensor([-2]), count=5)
    assert found[0, :2].tolist() == [-math.inf, -math.inf]
    assert bool(found[0, 2:].isfinite().all()) and float(found[0, 2]) < -100


def test_likelihood_sums_the_masses_of_the_levels() -> None:
    net = wild_network()
    levels = random_levels(2, 1, 5, 6)
    x = levels.double() / 255
    parameters = net(x)
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(5):
        for j in range(6):
            expected -= log_masses(parameters[:, :, 0, i, j], levels[:, 0, i, j], count=1)[:, 0]
    assert torch.allclose(nats(parameters, x), expected / 30)


@pytest.mark.parametrize(("colours", "height", "width"), [(1, 9, 13), (3, 6, 9)])
def test_kept_activations_purify_as_full_passes_do(colours: int, height: int, width: int) -> None:
    net, levels = wild_network(colours=colours), random_levels(3, colours, height, width)
    found = purify(net, levels, eps_defend=32)
    assert torch.equal(found, purify_by_full_passes(net, levels, eps_defend=32))
    assert (found != levels).double().mean() > 0.5


def test_the_widest_of_all_convolutions_says_which_pixels_are_taken_together() -> None:
    net, levels = wild_network(colours=3), random_levels(2, 3, 5, 12)
    wide = CausalConv(4, 4, 11, itself=True).double().requires_grad_(False)
    net.blocks[1].causal = wide
    assert net.reach == 5
    found = purify(net, levels, eps_defend=32)
    assert torch.equal(found, purify_by_full_passes(net, levels, eps_defend=32))


def test_the_greedy_choice_is_the_likeliest_level_given_the_purified_pixels_before() -> None:
    net, levels = wild_network(3), random_levels(2, 1, 4, 5)
    found = purify(net, levels, eps_defend=20)
    parameters = net(found.double() / 255)
    for row in range(2):
        for i in range(4):
            for j in range(5):
                given = int(levels[row, 0, i, j])
                allowed = torch.arange(max(given - 20, 0), min(given + 20, 255) + 1)
                each = parameters[row, :, 0, i, j].expand(len(allowed), -1)
                best = allowed[log_masses(each, allowed, count=1)[:, 0].argmax()]
                assert int(found[row, 0, i, j]) == int(best)


@pytest.mark.parametrize("eps_defend", [0, 5, 255])
def test_no_pixel_moves_further_than_allowed(eps_defend: int) -> None:
    levels = random_levels(4, 1, 8, 8)
    found = purify(wild_network(), levels, eps_defend=eps_defend)
    assert int((found - levels).abs().max()) <= eps_defend
    assert int(found.min()) >= 0 and int(found.max()) <= 255


def test_an_image_is_purified_alike_in_any_batch_and_equal_ones_once() -> None:
    net, levels = wild_network(), random_levels(3, 1, 8, 8)
    alone = torch.cat([purify(net, one[None], eps_defend=32) for one in levels])
    together = purify(net, levels[[0, 1, 2, 1, 0]], eps_defend=32)
    assert torch.equal(together, alone[[0, 1, 2, 1, 0]])


def test_to_autograd_the_purifier_is_constant() -> None:
    purifier = Purifier(wild_network())
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(purifier(x).sum(), x)
    assert not gradient.any()


def test_the_density_stays_in_float64_whatever_its_network_is_cast_to() -> None:
    net = wild_network()
    for parameter in net.parameters():
        parameter.copy_(parameter.half())
    purifier, x = Purifier(net), random_levels(2, 1, 8, 8).float() / 255
    expected = purifier(x)
    cast = nn.Sequential(purifier).to(torch.float32)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.float64}
    assert torch.equal(cast(x), expected)


def test_an_impossible_window_is_refused() -> None:
    with pytest.raises(UsageError, match="eps_defend is 300"):
        PixelDefend(eps_defend=300)


def test_rows_are_stored_as_text_and_cover_every_role() -> None:
    rows = PixelDefend().rows()
    assert {row.role for row in rows} == {"undefended", "naive", "matched", "adaptive", "ablation"}
    for row in rows:
        assert build_attack(repr(row.attack)) == row.attack
    matched, adaptive = row_of("matched").attack, row_of("adaptive").attack
    assert repr(adaptive).replace(repr(adaptive.gradient), "") == repr(matched).replace(  # type: ignore[attr-defined]
        repr(matched.gradient),  # type: ignore[attr-defined]
        "",
    )
    assert isinstance(adaptive.gradient, BPDA)  # type: ignore[attr-defined]


def test_a_tiny_training_writes_a_density_that_loads(tmp_path: Path) -> None:
    x = random_levels(120, 1, 28, 28).to(torch.uint8)
    told: list[str] = []
    PixelDefend().train(x, torch.zeros(120, dtype=torch.int64), tmp_path, share=0.01, tell=told.append)
    density = load_part(PixelCNN(), DENSITY, tmp_path)
    assert bits_per_dimension(density, x[:4]) > 7.9  # nothing can be learnt about noise
    assert "bits per dimension" in told[-1]
    written = (tmp_path / f"{DENSITY}.safetensors").stat().st_mtime_ns
    PixelDefend().train(x, torch.zeros(120, dtype=torch.int64), tmp_path, share=0.01, tell=told.append)
    assert (tmp_path / f"{DENSITY}.safetensors").stat().st_mtime_ns == written


def made_up(count: int, *shape: int) -> torch.Tensor:
    return random_levels(count, *shape).to(torch.uint8)


def quiet(text: str) -> None:
    """Hear nothing."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a density of colour noise for a moment."""
    folder = tmp_path_factory.mktemp("parts")
    labels = torch.zeros(100, dtype=torch.int64)
    PixelDefend(network=CIFAR).train(made_up(100, 3, 32, 32), labels, folder, share=0.01, tell=quiet)
    return folder


def test_before_a_given_network_nothing_is_measured_without_a_density(tmp_path: Path) -> None:
    for defense in (PixelDefend(network=CIFAR), PixelDefend(tmp_path, CIFAR)):
        assert defense.rows() == ()
        words = f"no density for {CIFAR}.*calipers train iclr2018 pixel-defend --network"
        with pytest.raises(UsageError, match=words):
            defense.target()
        assert defense.target("undefended").input_shape == (3, 32, 32)
    assert PixelDefend().lacks() == ""


def test_a_colour_density_is_trained_and_stands_before_any_network_of_its_shape(parts: Path) -> None:
    density = load_part(PixelCNN(colours=3), AROUND, parts)
    assert 7 < bits_per_dimension(density, made_up(4, 3, 32, 32)) < 9
    for network in (CIFAR, "bundled:cifar10-lipschitz"):
        defense = PixelDefend(parts, network)
        x = made_up(1, 3, 32, 32).float() / 255
        target = defense.target()
        (purifier,) = (one for one in target.module.modules() if isinstance(one, Purifier))
        assert purifier.eps_defend == 16
        expected = purify(density, (255 * x).round().long(), eps_defend=16) / 255
        assert torch.allclose(target.logits(x), defense.target("undefended").logits(expected), atol=1e-5)
    heard: list[str] = []
    defense.train(made_up(2, 3, 32, 32), torch.zeros(2), parts, share=1, tell=heard.append)
    assert heard == [f"{AROUND}: there already"]


def test_what_is_measured_before_a_given_network_goes_back_through_no_other_density(parts: Path) -> None:
    defense = PixelDefend(parts, CIFAR)
    rows = defense.rows()
    assert [row.role for row in rows] == [
        *("undefended", "naive", "naive", "matched", "adaptive", "ablation", "ablation")
    ]
    assert {(row.norm, row.eps) for row in rows} == {("linf", "8/255")}
    assert not any("through_context" in repr(row.attack) for row in rows)
    bim, deepfool = rows[1].attack, rows[2].attack
    assert isinstance(bim, Transfer) and isinstance(deepfool, Transfer)
    assert bim.substitute == deepfool.substitute == CIFAR
    assert bim.attack == PGD(steps=10, step_size=1 / 8, random_start=False, keep=True)


def test_a_density_for_other_images_is_refused(parts: Path, tmp_path: Path) -> None:
    grey = PixelDefend(parts, "bundled:fashion-cnn28-adversarial")
    with pytest.raises(
        UsageError, match="a density of images of 3x32x32 and bundled:fashion.* takes 1x28x28"
    ):
        grey.target()
    with pytest.raises(UsageError, match="a density of images of 3x32x32"):
        grey.train(made_up(9, 1, 28, 28), torch.zeros(9), parts, share=1, tell=quiet)
    with pytest.raises(InvalidInput, match="images are 3x32x32 and bundled:fashion.* takes 1x28x28"):
        grey.train(made_up(9, 3, 32, 32), torch.zeros(9), tmp_path, share=1, tell=quiet)


def test_before_a_given_grey_network_the_window_is_that_for_grey(tmp_path: Path) -> None:
    network = "bundled:fashion-cnn28-adversarial"
    about = {SHAPE: "1x28x28"}
    save_part(load_part(PixelCNN(), DENSITY, None), AROUND, tmp_path, about=about)
    given, shipped = PixelDefend(tmp_path, network), PixelDefend()
    x, _ = images(2)
    purified = [
        next(part for part in one.target().module.modules() if isinstance(part, Purifier))(x)
        for one in (given, shipped)
    ]
    assert torch.equal(*purified)
    assert {(row.eps, row.unit) for row in given.rows()} == {("0.1", "25.5/255")}


def test_behind_a_density_of_one_s_own_nothing_goes_back_through_the_one_that_ships(tmp_path: Path) -> None:
    density = load_part(PixelCNN(), DENSITY, None)
    save_part(density, DENSITY, tmp_path, about={})
    assert [row.attack for row in PixelDefend(tmp_path).rows()] == [
        row.attack for row in PixelDefend().rows()
    ]
    density.last.bias.data += 0.1  # type: ignore[operator, union-attr]
    save_part(density, DENSITY, tmp_path, about={})
    rows = PixelDefend(tmp_path).rows()
    assert not any("through_context" in repr(row.attack) for row in rows)
    assert {row.role for row in rows} == {"undefended", "naive", "matched", "adaptive", "ablation"}


def test_the_reference_names_the_defense_and_the_network_alone() -> None:
    x, _ = images(4)
    bare, plain = load_model("iclr2018:pixel-defend/undefended"), load_model("bundled:fashion-cnn28-plain")
    assert torch.allclose(bare.logits(x), plain.logits(x), atol=1e-4)


@pytest.mark.slow
def test_bpda_takes_what_deepfool_and_the_plain_gradient_leave() -> None:
    x, y = images(16)
    target, threat = load_model("iclr2018:pixel-defend"), ThreatModel(Norm.LINF, 0.1)
    right = (target.predict(x) == y).sum()
    left = {}
    for role, text in (("naive", "DeepFool"), ("matched", ""), ("adaptive", "")):
        row = row_of(role, text)
        left[role] = int((~row.attack(target, x, y, threat, seed=0).success).sum())
    assert right >= 13
    assert left["adaptive"] <= 9
    assert min(left["naive"], left["matched"]) >= left["adaptive"] + 4


def test_the_derivative_of_a_mode_is_that_of_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    parameters = 0.4 * torch.randn(1, 9, 1, 6, generator=generator, dtype=torch.float64)
    change = torch.randn(parameters.shape, generator=generator, dtype=torch.float64)
    leaf = parameters.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(follow_mode(leaf, mode_of(parameters)).sum(), leaf)
    step = 1e-3
    ahead, behind = (mode_of(parameters + sign * step * change) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    assert torch.allclose((found * change).sum(1, keepdim=True), expected, rtol=1e-4, atol=1e-6)


def mode_of(parameters: torch.Tensor) -> torch.Tensor:
    """Find the mode of each pixel's mixture by halving an interval around the best point of a grid."""
    weights, means, scales = (part[0, :, 0].T for part in parameters.chunk(3, 1))

    def density(place: torch.Tensor) -> torch.Tensor:
        off = (place[..., None] - means[:, None]) * torch.exp(-scales[:, None])
        each = torch.sigmoid(off) * torch.sigmoid(-off) * torch.exp(-scales[:, None])
        return (each * weights.softmax(1)[:, None]).sum(-1)

    place = torch.linspace(-3, 3, 6001, dtype=torch.float64).expand(6, -1)
    best = place.gather(1, density(place).argmax(1, keepdim=True))
    low, high = best - 1e-3, best + 1e-3
    for _ in range(60):
        thirds = low + (high - low) / 3, high - (high - low) / 3
        right = density(thirds[0]) < density(thirds[1])
        low, high = torch.where(right, thirds[0], low), torch.where(right, high, thirds[1])
    return low.T[None, None]


def test_what_comes_back_is_the_sum_of_the_powers_of_the_derivative_by_the_context() -> None:
    net = wild_network()
    purified = random_levels(1, 1, 4, 5).double() / 255
    free = torch.rand(1, 1, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    gradient = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def modes(x: torch.Tensor) -> torch.Tensor:
        return (follow_mode(net(x.view(1, 1, 4, 5)), 2 * purified[:, None] - 1) / 2).flatten()

    with torch.enable_grad():
        later = torch.autograd.functional.jacobian(modes, purified.flatten())
    assert torch.equal(later.triu(), torch.zeros_like(later)) and later.any()
    term = gradient.flatten()
    expected = term.clone()
    for _ in range(8):
        term = 0.7 * later.T @ (free.flatten() * term)
        expected += term
    assert torch.allclose(carry(gradient, purified, free, net).flatten(), expected)


def test_through_the_context_a_chosen_pixel_hands_its_gradient_to_those_before_it() -> None:
    x, _ = images(1)
    parts = load_model("iclr2018:pixel-defend").module.modules()
    purified = next(part for part in parts if isinstance(part, Purifier))(x)
    leaf = x.clone().requires_grad_(True)
    with torch.enable_grad():
        found = through_context(leaf)
    assert torch.equal(found.detach(), purified)
    free = (purified > 0) & (purified < 1) & ((purified - x).abs() < 31.5 / 255)
    for inside in (True, False):
        _, _, i, j = (int(one) for one in (free if inside else purified == 0).nonzero()[-1])
        weight = torch.zeros_like(x)
        weight[0, 0, i, j] = 1.0
        (gradient,) = torch.autograd.grad(found, leaf, weight, retain_graph=True)
        assert float(gradient[0, 0, i, j]) == 1.0
        flat = gradient.flatten()
        assert bool(flat[: 28 * i + j].any()) == inside
        assert not flat[28 * i + j + 1 :].any()
