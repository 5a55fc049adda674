"""The documentation's pictures, each made by a command: `python docs/pictures.py NAME ... -o FOLDER`.

The first three are the lecture's: an image under noise, decision regions under the level sets of the Gaussian with the
bars of the classes, and a one-dimensional classifier with its Gaussian convolution. The fourth draws what a bracket is,
and measures nothing. The next two lead from Lipschitz constants to smoothing: constants of plain networks by depth, and
what five certificates prove of the same images. Three more show gradients that are hidden, and found again. Needs
matplotlib, which the extra `docs` brings.
"""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon
from numpy.typing import NDArray
from torch import nn

from calipers.certificates.lipschitz.certifier import LipschitzCertifier
from calipers.certificates.lipschitz.network import lipschitz_upper_bound
from calipers.certificates.lipschitz.sandwich import sampled_lower_bound
from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier
from calipers.certificates.smoothing.noise import Gaussian
from calipers.certificates.smoothing.radius import gaussian_l2
from calipers.certificates.smoothing.smoothed import smooth
from calipers.certificates.smoothing.soft import Lemma, lipschitz_constant, soft_radius
from calipers.certificates.smoothing.stopping import CHUNK
from calipers.certificates.smoothing.votes import VoteCertificate, certify_votes
from calipers.errors import BadReference
from calipers.gradients.estimator import Autograd, GradientEstimator
from calipers.randomness import Draws, Role, Stream
from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target
from calipers.testing.known_answers import KnownAnswer, staircase
from calipers.testing.obfuscated import OBFUSCATED, smooth_images, undefended
from calipers.threat.objectives import margin
from calipers.threat.threat_model import Norm, ThreatModel, Untargeted

Array = NDArray[np.float64]

# The palette of Okabe and Ito, which people with any kind of colour vision tell apart.
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
ORANGE: Final = "#E69F00"
INK: Final = "#222222"
GREY: Final = "#767676"
PALE: Final = "#D9D9D9"
CLASSES: Final = (BLUE, ORANGE, GREEN, "#CC79A7")

NETWORKS: Final = {
    "fashion-cnn28-plain": "trained\nwithout noise",
    "fashion-cnn28-noise-0.25": "trained with\n$\\sigma = 0.25$",
    "fashion-cnn28-noise-0.50": "trained with\n$\\sigma = 0.5$",
}
SIGMAS: Final = (0.0, 0.12, 0.25, 0.5, 1.0)
NOISE_IMAGE: Final = 0
DRAWS: Final = 1000
DEPTHS: Final = (1, 2, 3, 4, 5, 6, 7, 8)
BRIDGE: Final = "fashion-cnn28-noise-0.25"
BRIDGE_SIGMA: Final = 0.25
BRIDGE_IMAGES: Final = 100
BRIDGE_DRAWS: Final = 2000

STYLE: Final = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 12,
    "figure.dpi": 160,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "mathtext.fontset": "cm",
    "savefig.facecolor": "white",
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


class Regions(NamedTuple):
    """What the picture of decision regions shows.

    Args:
        classes: the class at each point of a square grid, side x side.
        axis: the coordinates of the grid, the same for both axes.
        sigma: the standard deviation of the noise around the origin.
        counts: votes for each class among the draws, and the failed ones last.
        certificate: what the votes prove.
    """

    classes: NDArray[np.int64]
    axis: Array
    sigma: float
    counts: NDArray[np.int64]
    certificate: VoteCertificate


def four_regions(points: Array) -> NDArray[np.int64]:
    """Classify points of the plane by the largest of four wavy scores.

    Args:
        points: (..., 2).

    Returns:
        Classes 0..3.
    """
    x, y = points[..., 0], points[..., 1]
    scores = [
        1.25 + 0.10 * x + 0.25 * np.sin(2.3 * y + 0.8),
        1.15 * x - 0.35 * y + 0.45 * np.sin(2.1 * y) + 0.28 * np.sin(4.3 * y + 1.0) + 0.30,
        -0.55 * x + 1.10 * y + 0.40 * np.sin(2.4 * x + 0.6) + 0.15,
        -1.00 * x - 0.75 * y + 0.35 * np.sin(3.1 * x) + 0.30 * np.cos(2.6 * y) - 0.10,
    ]
    return np.argmax(np.stack(scores), axis=0)


def survey_regions(
    *, sigma: float = 0.75, draws: int = 1000, alpha: float = 0.001, side: int = 501
) -> Regions:
    """Sample the classes around the origin under Gaussian noise, and certify what the votes allow.

    Args:
        sigma: the standard deviation of the noise.
        draws: draws of the estimate; the class is the one at the origin.
        alpha: the failure probability of the certificate.
        side: points of the grid along an axis.

    Returns:
        What the picture shows.
    """
    axis = np.linspace(-2.5, 2.5, side)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    noise = np.random.default_rng(2).normal(scale=sigma, size=(draws, 2))
    counts = np.append(np.bincount(four_regions(noise), minlength=4), 0)
    certificate = certify_votes(
        counts, selected=int(four_regions(np.zeros(2))), radius=partial(gaussian_l2, sigma), alpha=alpha
    )
    return Regions(four_regions(grid), axis, sigma, counts, certificate)


def draw_regions() -> Figure:
    """Draw decision regions around an input, the Gaussian's level sets, and the bars of the classes.

    Returns:
        The figure.
    """
    found = survey_regions()
    figure = Figure(figsize=(10.2, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.0, 1.1])
    figure.get_layout_engine().set(wspace=0.06)
    _paint_regions(left, found)
    _paint_bars(right, found)
    return figure


def _paint_regions(axes: Axes, found: Regions) -> None:
    span = (found.axis[0], found.axis[-1])
    tints = mpl.colors.ListedColormap([_tint(colour) for colour in CLASSES])
    axes.imshow(found.classes, origin="lower", extent=(*span, *span), cmap=tints, vmin=0, vmax=3)
    for kind in range(4):
        axes.contour(
            found.axis, found.axis, found.classes == kind, levels=[0.5], colors="white", linewidths=1.2
        )
    for multiple in (1, 2, 3):
        axes.add_patch(Circle((0, 0), multiple * found.sigma, fill=False, ls=(0, (4, 3)), lw=1.1, color=INK))
        place = multiple * found.sigma * np.array([np.cos(-0.9), np.sin(-0.9)])
        inside = _tint(CLASSES[int(four_regions(place))])
        label = r"$\sigma$" if multiple == 1 else rf"${multiple}\sigma$"
        axes.text(*place, label, ha="center", va="center", fontsize=12, bbox=_halo(inside))
    radius = found.certificate.radius
    axes.add_patch(Circle((0, 0), radius, fill=False, lw=2.6, color=BLUE))
    end = radius * np.array([np.cos(2.5), np.sin(2.5)])
    axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "->", "color": BLUE, "lw": 1.8, "shrinkB": 0})
    axes.text(end[0] / 2 - 0.13, end[1] / 2 - 0.16, "$R$", ha="center", va="center", color=BLUE, fontsize=14)
    axes.plot(0, 0, "o", color=INK, ms=6)
    axes.text(0.09, 0.09, "$x$", fontsize=15)
    for kind, place in enumerate([(0.95, -0.42), (1.68, 0.3), (-0.35, 1.82), (-1.6, -1.0)]):
        axes.text(
            *place,
            "ABCD"[kind],
            fontsize=17,
            fontweight="bold",
            color=_shade(CLASSES[kind]),
            ha="center",
            va="center",
        )
    axes.set(xticks=[], yticks=[], xlim=span, ylim=span)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("the regions of $f$, and the level sets of the noise")


def _paint_bars(axes: Axes, found: Regions) -> None:
    votes = int(found.counts.sum())
    shares = found.counts[:-1] / votes
    axes.bar(
        range(4), shares, width=0.62, color=[_tint(c) for c in CLASSES], edgecolor=CLASSES, linewidth=1.6
    )
    low, high = found.certificate.p_lower, found.certificate.p_upper
    axes.plot([-0.42, 0.42], [low, low], color=INK, lw=2)
    axes.text(0.5, low, rf"$\underline{{p_A}} = {np.floor(low * 1000) / 1000:.3f}$", va="center", fontsize=13)
    axes.text(0.5, low - 0.055, "a lower bound of A's probability", va="center")
    axes.plot([0.58, 3.42], [high, high], color=INK, lw=2, ls=(0, (5, 2)))
    axes.text(
        0.62,
        high + 0.09,
        rf"$\overline{{p_B}} = {np.ceil(high * 1000) / 1000:.3f}$",
        va="center",
        fontsize=13,
    )
    axes.text(0.62, high + 0.035, "an upper bound of every other's", va="center")
    axes.set_xticks(range(4), list("ABCD"), fontsize=13, fontweight="bold")
    axes.tick_params(axis="x", length=0)
    for tick, colour in zip(axes.get_xticklabels(), CLASSES, strict=True):
        tick.set_color(_shade(colour))
    axes.set(ylim=(0, 0.85), ylabel=rf"share of ${_thousands(votes)}$ votes $f(x + \varepsilon)$")
    ratio = np.floor(found.certificate.radius / found.sigma * 100) / 100
    axes.set_title(
        r"$R = \frac{\sigma}{2}\,(\Phi^{-1}(\underline{p_A}) - \Phi^{-1}(\overline{p_B}))"
        + rf" = {ratio:.2f}\,\sigma$",
        fontsize=13,
    )


class Smoothing(NamedTuple):
    """What the picture of a convolution shows.

    Args:
        known: the staircase and its closed forms.
        sigma: the standard deviation of the noise.
        axis: places on the line.
        base: the base classifier's score of class 1 at each place.
        smoothed: its convolution with the Gaussian.
        point: the place whose certificate is drawn.
        height: the smoothed score there.
        by_constant: the radius of Theorem 0 with the tight constant.
        by_theorem: the radius of Theorem 1.
        true_distance: the distance to where the smoothed answer changes.
    """

    known: KnownAnswer
    sigma: float
    axis: Array
    base: Array
    smoothed: Array
    point: float
    height: float
    by_constant: float
    by_theorem: float
    true_distance: float


def smooth_line(*, sigma: float = 0.5, point: float = 0.42, side: int = 6401) -> Smoothing:
    """Convolve a wild classifier of the line with a Gaussian, in closed form.

    Args:
        sigma: the standard deviation of the noise.
        point: the place whose certificate is drawn.
        side: places on the line.

    Returns:
        What the picture shows.
    """
    edges = [
        -2.86,
        -2.8,
        -2.3,
        -2.16,
        -1.58,
        -1.5,
        -1.06,
        -0.72,
        -0.68,
        -0.22,
        -0.14,
        0.3,
        0.36,
        0.98,
        1.3,
        1.36,
        1.84,
        1.9,
    ]
    edges += [2.3, 2.52]
    known = staircase(edges, [step % 2 for step in range(len(edges) + 1)])
    axis = np.linspace(-3.2, 3.2, side)
    smoothed = known.vote_probability(torch.from_numpy(axis)[:, None], sigma)[:, 1]
    base = known.label(torch.from_numpy(axis)[:, None]).numpy().astype(np.float64)
    height = float(known.vote_probability(torch.tensor([[point]], dtype=torch.float64), sigma)[0, 1])
    changed = np.abs(axis[(smoothed > 0.5) != (height > 0.5)] - point)
    return Smoothing(
        known,
        sigma,
        axis,
        base,
        smoothed,
        point,
        height,
        float(soft_radius(sigma, height, 1 - height, lemma="tight-constant")),
        float(gaussian_l2(sigma, height, 1 - height)),
        float(changed.min()),
    )


def draw_convolution() -> Figure:
    """Draw a one-dimensional classifier, its Gaussian convolution, and the cone of the Lipschitz constant.

    Returns:
        The figure.
    """
    found = smooth_line()
    figure = Figure(figsize=(10.2, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, 2.9])
    above.fill_between(found.axis, found.base, color=PALE, lw=0)
    above.plot(found.axis, found.base, color=GREY, lw=1.1)
    above.set(yticks=[0, 1], ylim=(-0.06, 1.12), ylabel="$f$")
    above.set_title("a wild classifier $f$ of the line, whose Lipschitz constant is infinite ...", loc="left")
    above.tick_params(axis="x", length=0)
    _paint_cone(below, found)
    return figure


def _paint_cone(axes: Axes, found: Smoothing) -> None:
    slope = lipschitz_constant(found.sigma, lemma="tight-constant")
    axes.axhline(0.5, color=GREY, lw=1, ls=(0, (2, 3)))
    axes.plot(found.axis, found.smoothed, color=BLUE, lw=2.8)
    run = np.array([-found.by_constant, 0.0, found.by_constant])
    cone = found.height - slope * np.abs(run)
    axes.fill(found.point + run, cone, color=VERMILION, alpha=0.18, lw=0)
    axes.plot(found.point + run, cone, color=VERMILION, lw=2)
    axes.plot(found.point, found.height, "o", color=INK, ms=6, zorder=5)
    axes.text(found.point + 0.09, found.height + 0.035, r"$(x, \hat f(x))$", fontsize=13)
    axes.annotate(
        r"slope $L = \frac{1}{\sqrt{2\pi}\,\sigma}$: $\hat f$ is never steeper",
        (found.point - 0.6 * found.by_constant, found.height - 0.6 * slope * found.by_constant),
        (-2.75, 0.66),
        color=VERMILION,
        fontsize=12,
        va="center",
        arrowprops={"arrowstyle": "-", "color": VERMILION, "lw": 1},
    )
    radii = [
        (found.by_constant, VERMILION, "Theorem 0, from $L$"),
        (found.by_theorem, BLUE, "Theorem 1"),
        (found.true_distance, INK, r"the true radius of $\hat f$"),
    ]
    for row, (radius, colour, name) in enumerate(radii):
        height = 0.38 - 0.12 * row
        end = found.point + radius
        axes.plot([end, end], [height, 0.5], color=colour, lw=1, ls=(0, (1, 2)))
        axes.annotate(
            "",
            (end, height),
            (found.point, height),
            arrowprops={"arrowstyle": "<->", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
        )
        shown = np.floor(radius / found.sigma * 100) / 100
        label = rf"{name}: ${shown:.2f}\,\sigma$"
        axes.text(found.point - 0.06, height, label, ha="right", va="center", color=colour)
    axes.plot([found.point, found.point], [0.1, found.height], color=INK, lw=1, ls=(0, (1, 2)))
    axes.set(xlim=(found.axis[0], found.axis[-1]), ylim=(0, 1.0), yticks=[0, 0.5, 1], ylabel=r"$\hat f$")
    axes.set_yticks([0, 0.5, 1], ["0", "½", "1"])
    axes.set_xticks([-3, -2, -1, 0, 1, 2, 3])
    axes.set_title(
        r"... and its convolution $\hat f(x) = P(f(x + \varepsilon) = 1)$ with the Gaussian of $\sigma = ½$".replace(
            "½", "0.5"
        ),
        loc="left",
    )


def draw_two_jaws() -> Figure:
    """Draw what a bracket is: a lower jaw that is proved, an upper jaw that is found, and the true radius between.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    axes = figure.subplots()
    lower, truth, upper, end = 4.3, 5.15, 5.7, 10.0
    floor, beam = 1.0, 2.75
    axes.fill([0, lower, lower, 0], [floor, floor, beam, beam], color=_tint(BLUE, 0.16), lw=0)
    axes.fill([upper, end, end, upper], [floor, floor, beam, beam], color=_tint(VERMILION, 0.16), lw=0)
    axes.add_patch(
        Polygon([(0, beam), (end, beam), (end, beam + 0.42), (0, beam + 0.42)], fc="#EFEFEF", ec=GREY, lw=1.2)
    )
    for tick in range(1, 100):
        height = 0.24 if tick % 10 == 0 else 0.17 if tick % 5 == 0 else 0.1
        axes.plot([tick / 10] * 2, [beam + 0.42, beam + 0.42 - height], color=GREY, lw=0.8, zorder=1)
    for at, side, colour in ((lower, -1, BLUE), (upper, 1, VERMILION)):
        jaw = [
            (0, beam + 0.62),
            (0, floor),
            (0.1, floor),
            (0.36, 1.75),
            (0.36, beam - 0.16),
            (1.15, beam - 0.16),
            (1.15, beam + 0.62),
        ]
        axes.add_patch(
            Polygon(
                [(at + side * x, y) for x, y in jaw],
                fc=colour,
                ec="white",
                lw=1.2,
                joinstyle="round",
                zorder=3,
            )
        )
    axes.annotate(
        "",
        (end + 0.15, floor),
        (0, floor),
        arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1.5, "shrinkA": 0},
    )
    axes.plot([0, 0], [floor - 0.09, floor + 0.09], color=INK, lw=1.5)
    axes.text(0, floor - 0.32, "$x$", ha="center", va="center", fontsize=15)
    axes.text(end + 0.1, floor - 0.32, r"$\|\delta\|$", ha="center", va="center", fontsize=14)
    axes.plot(truth, floor, "o", color=INK, ms=9, zorder=5)
    axes.plot([truth, truth], [floor, beam], color=INK, lw=1, ls=(0, (1, 2)))
    axes.text(truth, floor - 0.34, "$r^*$", ha="center", va="center", fontsize=17)
    for at, word, side, colour in ((lower, "lower", "right", BLUE), (upper, "upper", "left", VERMILION)):
        axes.plot([at, at], [floor - 0.09, floor + 0.09], color=colour, lw=2.2)
        axes.text(at, floor - 0.32, word, ha=side, va="center", color=colour, fontsize=12, fontweight="bold")
    texts = [
        (1.85, BLUE, "a certificate, from below", "proved: nothing closer than this\nchanges the answer"),
        (8.1, VERMILION, "an attack, from above", "found: an input at this distance\nwith another answer"),
    ]
    for middle, colour, head, body in texts:
        axes.text(middle, 2.28, head, ha="center", va="center", color=colour, fontsize=13, fontweight="bold")
        axes.text(middle, 1.72, body, ha="center", va="center", linespacing=1.45)
    axes.set(xlim=(-0.25, end + 0.45), ylim=(0.4, beam + 0.7))
    axes.axis("off")
    return figure


class Votes(NamedTuple):
    """What one network votes on one image under one noise.

    Args:
        correct: share of the votes for the image's class.
        rival: the other class with most votes.
        rival_share: its share.
    """

    correct: float
    rival: int
    rival_share: float


def count_votes(target: Target, image: torch.Tensor, label: int, *, sigma: float, index: int) -> Votes:
    """Count a network's votes on an image under Gaussian noise; the network alone where there is none.

    Args:
        target: the network.
        image: one image, in input units.
        label: its class.
        sigma: the standard deviation of the noise, 0 for none.
        index: the image's number, which keys its draws.

    Returns:
        The votes.
    """
    counts = torch.zeros(target.num_classes + 1, dtype=torch.int64)
    for chunk in range(DRAWS // CHUNK if sigma else 1):
        batch = image.expand(CHUNK, *image.shape).clone()
        if sigma:
            batch += draw_gaussian(batch.shape, sigma=sigma, index=index, chunk=chunk)
        counts += torch.bincount(target.outcomes(batch), minlength=target.num_classes + 1)
    shares = (counts / counts.sum()).tolist()[: target.num_classes]
    rival = max((kind for kind in range(target.num_classes) if kind != label), key=shares.__getitem__)
    return Votes(shares[label], rival, shares[rival])


def draw_gaussian(shape: Sequence[int], *, sigma: float, index: int, chunk: int) -> torch.Tensor:
    """Draw one chunk of an image's noise, as a certificate does.

    Args:
        shape: the shape of the draws.
        sigma: the standard deviation.
        index: the image's number.
        chunk: the chunk's number.

    Returns:
        The draws, float32.
    """
    noise = torch.empty(*shape)
    Gaussian(sigma).fill(noise.view(-1), Stream(0, Role.ESTIMATE, index).generator(chunk))
    return noise * sigma


def draw_noise() -> Figure:
    """Draw an image under Gaussian noise, with the votes of those bundled networks that are there.

    Returns:
        The figure.
    """
    data = load_dataset("bundled:fashion-mnist")
    example = data[NOISE_IMAGE]
    image, label = torch.from_numpy(example.image), int(example.label)
    networks = []
    for name, spoken in NETWORKS.items():
        with contextlib.suppress(BadReference):
            networks.append((spoken, load_model(f"bundled:{name}")))
    figure = Figure(figsize=(10.2, 2.75 + 0.5 * len(networks)), layout="constrained")
    heights = [5.0, *[1.0] * len(networks)]
    table = figure.subplots(1 + len(networks), len(SIGMAS), height_ratios=heights, squeeze=False)
    names = data.class_names or [str(kind) for kind in range(10)]
    for column, sigma in enumerate(SIGMAS):
        axes = table[0, column]
        noise = draw_gaussian(image.shape, sigma=sigma, index=NOISE_IMAGE, chunk=0) if sigma else 0 * image
        axes.imshow((image + noise).clamp(0, 1)[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(rf"$\sigma = {sigma:g}$" if sigma else "no noise")
        for row, (spoken, target) in enumerate(networks, start=1):
            votes = count_votes(target, image, label, sigma=sigma, index=NOISE_IMAGE)
            _paint_votes(table[row, column], votes, names)
            if column == 0:
                table[row, 0].set_ylabel(spoken, rotation=0, ha="right", va="center", fontsize=10)
    if networks:
        told = f"of {DRAWS} votes: blue for {names[label]}, the right class; orange for its strongest rival"
        figure.supxlabel(told, fontsize=10, color=GREY)
    return figure


def _paint_votes(axes: Axes, votes: Votes, names: Sequence[str]) -> None:
    right = votes.correct > votes.rival_share
    axes.barh(0, 1, color="#EFEFEF", height=1)
    axes.barh(0, votes.correct, color=BLUE if right else _tint(BLUE, 0.55), height=1)
    axes.barh(0, votes.rival_share, left=1 - votes.rival_share, color=VERMILION, height=1)
    between = " " if votes.rival_share > 0.55 else "\n"
    word = f"{names[votes.rival]}{between}{_percent(votes.rival_share)}"
    if right:
        axes.text(
            0.03, 0, _percent(votes.correct), color="white", va="center", fontsize=10, fontweight="bold"
        )
    else:
        axes.text(
            0.97,
            0,
            word,
            color="white",
            va="center",
            ha="right",
            fontsize=10,
            fontweight="bold",
            linespacing=1.0,
        )
    axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(-0.5, 0.5))
    axes.spines[:].set_visible(False)


class Growth(NamedTuple):
    """What the picture of depth shows: constants of plain networks, in scores by input unit.

    Args:
        depths: hidden layers of each network.
        products: products of the layers' norms, above the constants.
        uppers: the bounds of the layers together (ECLipsE-Fast), above the constants.
        lowers: slopes that were found, below the constants.
    """

    depths: tuple[int, ...]
    products: Array
    uppers: Array
    lowers: Array


def train_plain(depth: int, *, width: int = 64, steps: int = 300) -> nn.Module:
    """Train a plain network of ReLUs on the bundled images, with nothing to keep its slopes small.

    Args:
        depth: hidden layers.
        width: neurons of each.
        steps: steps of Adam, 64 images each.

    Returns:
        The network, in eval mode; the same at each call.
    """
    draws = Stream(0, Role.SEARCH, depth).generator(0)
    images, labels = _bundled_images(1000)
    sizes = [images[0].numel(), *[width] * depth, 10]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(sizes):
        dense = nn.Linear(before, after)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu", generator=draws)
        nn.init.zeros_(dense.bias)
        layers += [dense, nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=draws)
        loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def grow_with_depth(depths: Sequence[int]) -> Growth:
    """Bound the l2 constants of plain networks from both sides.

    Args:
        depths: hidden layers of each network.

    Returns:
        The bounds.
    """
    starts, _ = _bundled_images(32)
    products, uppers, lowers = [], [], []
    for depth in depths:
        net = train_plain(depth)
        bound = lipschitz_upper_bound(net, (1, 28, 28))
        products.append(bound.product)
        uppers.append(bound.upper)
        lowers.append(sampled_lower_bound(net, (1, 28, 28), inputs=starts))
    return Growth(tuple(depths), np.array(products), np.array(uppers), np.array(lowers))


def draw_depth() -> Figure:
    """Draw the Lipschitz constants of plain networks against their depth, between two bounds.

    Returns:
        The figure.
    """
    found = grow_with_depth(DEPTHS)
    figure = Figure(figsize=(10.2, 4.9), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(found.depths, found.lowers, found.uppers, color=PALE, alpha=0.6, lw=0)
    axes.semilogy(found.depths, found.products, color=BLUE, lw=1.8, ls=(0, (4, 2)))
    axes.semilogy(found.depths, found.uppers, color=BLUE, lw=2.8, marker="o", ms=7)
    axes.semilogy(found.depths, found.lowers, color=VERMILION, lw=2.8, marker="o", ms=7)
    lines = [
        (found.products, BLUE, "proved: the product\nof the layers"),
        (found.uppers, BLUE, "proved: the layers\ntogether"),
        (found.lowers, VERMILION, "found: the steepest\nslope of a search"),
    ]
    for values, colour, name in lines:
        place, words = (found.depths[-1], values[-1]), f"{name}: {_outward(values[-1], up=colour == BLUE)}"
        axes.annotate(words, place, (14, 0), textcoords="offset points", color=colour, va="center")
    between = float(np.sqrt(found.lowers[-2] * found.uppers[-2]))
    axes.text(found.depths[-2], between, "the true constant\nis in here", ha="center", va="center")
    axes.set(xticks=found.depths, xlabel="hidden layers of 64 ReLUs", ylabel="$L$, scores by input unit")
    axes.set_xlim(
        found.depths[0] - 0.25, found.depths[-1] + 0.34 * (found.depths[-1] - found.depths[0]) + 0.4
    )
    axes.set_ylim(found.lowers[0] / 1.6, found.products[-1] * 1.8)
    axes.set_title("the Lipschitz constant of plain networks, by which their radii are divided", loc="left")
    return figure


class Bridge(NamedTuple):
    """What the picture of the bridge shows: radii of the same images by five certificates, 0 where it is wrong.

    Args:
        sigma: the standard deviation of the noise.
        radii: for each certificate, the radius of each image.
    """

    sigma: float
    radii: dict[str, Array]


def cross_bridge(*, images: int, draws: int) -> Bridge:
    """Certify the bundled images by the network's own constant, by soft votes read in three ways, and by hard votes.

    The three readings are of the same mean scores, and the hard votes are those of the same draws of noise.

    Args:
        images: how many of the bundled images.
        draws: draws of the noise for each.

    Returns:
        The radii.
    """
    target, threat = load_model(f"bundled:{BRIDGE}"), ThreatModel(Norm.L2)
    x, labels = _bundled_images(images)
    own = LipschitzCertifier()(target, x, threat, seed=0)
    radii = {"network": np.where(own.prediction == labels.numpy(), own.radius, 0.0)}
    noise = Gaussian(BRIDGE_SIGMA)
    soft = SoftCertifier(n=draws)(smooth(target, noise, votes="soft"), x, threat, seed=0)
    records = soft.records(labels.tolist())
    low, high = (np.array([getattr(record, name) for record in records]) for name in ("p_lower", "p_upper"))
    lemmas: tuple[Lemma, ...] = ("lemma-1", "tight-constant", "lemma-2")
    for lemma in lemmas:
        radius = soft_radius(BRIDGE_SIGMA, low, high, lemma=lemma)
        radii[lemma] = np.where(soft.prediction == labels.numpy(), radius, 0.0)
    hard = VoteCertifier(n=draws)(smooth(target, noise), x, threat, seed=0)
    radii["theorem-1"] = np.where(hard.prediction == labels.numpy(), hard.radius, 0.0)
    return Bridge(BRIDGE_SIGMA, radii)


def draw_bridge() -> Figure:
    """Draw the share of the images that each of five certificates proves, against the radius.

    Returns:
        The figure.
    """
    found = cross_bridge(images=BRIDGE_IMAGES, draws=BRIDGE_DRAWS)
    figure = Figure(figsize=(10.2, 5.4), layout="constrained")
    axes = figure.subplots()
    for multiple in (np.sqrt(np.pi / 8), np.sqrt(np.pi / 2)):
        axes.axvline(multiple * found.sigma, color=GREY, lw=1, ls=(0, (2, 3)))
        label = rf"${multiple:.3f}\,\sigma$"
        axes.text(multiple * found.sigma, 1.01, label, ha="center", va="bottom", color=GREY, fontsize=10)
    curves = {
        "network": (INK, "-", "Theorem 0, the network's own $L$"),
        "lemma-1": (VERMILION, "-", r"Theorem 0, smoothed: $L = \sqrt{2/\pi\sigma^2}$"),
        "tight-constant": (ORANGE, "-", r"the same, tight: $L = 1/\sqrt{2\pi\sigma^2}$"),
        "lemma-2": (GREEN, "-", r"Lemma 2: $\Phi^{-1}$ of it is $1/\sigma$-Lipschitz"),
        "theorem-1": (BLUE, (0, (5, 1.5)), "Theorem 1, hard votes"),
    }
    axis = np.geomspace(3e-4, 1.0, 2000)
    for name, (colour, style, label) in curves.items():
        share = (found.radii[name][:, None] >= axis).mean(axis=0)
        axes.semilogx(axis, share, color=colour, ls=style, lw=2.6, label=label)
    axes.set(xlim=(axis[0], axis[-1]), ylim=(0, 1), xlabel="$\\ell_2$ radius, input units")
    axes.set(ylabel="share of images, right and proved")
    axes.set_xticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.legend(
        loc="center left", bbox_to_anchor=(0.37, 0.42), frameon=False, fontsize=10.5, labelspacing=0.7
    )
    axes.set_title(f"one network, {BRIDGE_IMAGES} images, five certificates", loc="left")
    return figure


class Hidden(NamedTuple):
    """What a picture of a hidden gradient shows: margins and slopes along the straight way to another class.

    Args:
        axis: places on the way: the size of the perturbation in linf.
        margins: the lead of the label over the other classes, as the defended classifier answers.
        truth: that of the classifier inside.
        own: the slope in a pixel of middling weight, by backpropagation.
        seen: that by the right view.
        slope: that of the classifier inside.
    """

    axis: Array
    margins: Array
    truth: Array
    own: Array
    seen: Array
    slope: Array


def walk_hidden(name: str, *, side: int = 121) -> Hidden:
    """Walk from an image straight to another class, and measure a classifier that hides its gradient.

    Args:
        name: which of the classifiers.
        side: places on the way.

    Returns:
        What the picture shows.
    """
    hidden, inside = OBFUSCATED[name](), undefended()
    image, label = smooth_images(1, seed=4)
    draws = Draws(0, Role.SEARCH, tuple(range(side)))
    first = Autograd().estimate(inside, margin, image, label, Untargeted(), draws=draws.of([0]))
    way = first.gradient[0].sign()
    pixel = int(first.gradient.flatten().abs().argsort()[32])
    axis = torch.linspace(0, 0.12, side)
    points, labels = image + axis.view(-1, 1, 1, 1) * way, label.expand(side)

    def along(target: Target, estimator: GradientEstimator) -> tuple[Array, Array]:
        found = estimator.estimate(target, margin, points, labels, Untargeted(), draws=draws)
        slopes = -found.gradient.flatten(1)[:, pixel]
        return -found.value.double().numpy(), slopes.double().numpy()

    margins, own = along(hidden.target, Autograd())
    truth, slope = along(inside, Autograd())
    _, seen = along(hidden.target, hidden.gradient)
    return Hidden(axis.double().numpy(), margins, truth, own, seen, slope)


def draw_hidden(name: str, kind: str, remedy: str, threshold: float) -> Figure:
    """Draw a classifier that hides its gradient: its margin on the way to another class, and two slopes of it.

    Args:
        name: which of the classifiers.
        kind: how the gradient is hidden.
        remedy: the view under which it is there again.
        threshold: slopes beyond this are drawn on a logarithmic axis.

    Returns:
        The figure.
    """
    found = walk_hidden(name)
    figure = Figure(figsize=(10.2, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.get_layout_engine().set(wspace=0.06)
    left.axhline(0, color=GREY, lw=1, ls=(0, (2, 3)))
    left.plot(found.axis, found.margins, ".", color=VERMILION, ms=5, label=f"with the {name}")
    left.plot(found.axis, found.truth, color=INK, lw=1.8, label="the classifier inside")
    left.set(xlabel=r"$\|\delta\|_\infty$ towards another class", ylabel="margin of the label")
    left.set_title("what the classifier answers ...", loc="left")
    left.legend(frameon=False, loc="upper right", fontsize=10)
    right.axhline(0, color=GREY, lw=1, ls=(0, (2, 3)))
    right.plot(found.axis, found.own, ".", color=VERMILION, ms=5, label=f"backpropagation: {kind}")
    right.plot(found.axis, found.slope, color=INK, lw=1.8, label="the classifier inside")
    right.plot(found.axis[::2], found.seen[::2], ".", color=BLUE, ms=5, label=remedy)
    if np.abs(found.own).max() > threshold:
        right.set_yscale("symlog", linthresh=threshold)
    right.set(xlabel=r"$\|\delta\|_\infty$ towards another class", ylabel="slope in one pixel")
    right.set_title("... and the slope that an attack is told", loc="left")
    low, high = right.get_ylim()
    right.set_ylim(low, high * 30 if right.get_yscale() == "symlog" else high + 0.45 * (high - low))
    right.legend(frameon=False, loc="upper right", fontsize=10)
    return figure


def _bundled_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first bundled images, and their classes."""
    every = load_dataset("bundled:fashion-mnist")
    data = [every[index] for index in range(count)]
    labels = torch.tensor([int(example.label) for example in data])
    return torch.stack([torch.from_numpy(example.image) for example in data]), labels


def _outward(number: float, *, up: bool) -> str:
    """Write two digits of a number of at least 10: an upper bound rounded up, a lower bound rounded down."""
    unit = 10 ** (len(str(int(number))) - 2)
    return f"{int(np.ceil(number / unit) if up else np.floor(number / unit)) * unit:,}"


def _tint(colour: str, share: float = 0.28) -> tuple[float, ...]:
    """Mix a colour with white."""
    return tuple(1 - share * (1 - part) for part in mpl.colors.to_rgb(colour))


def _shade(colour: str, share: float = 0.82) -> tuple[float, ...]:
    """Mix a colour with black, for text."""
    return tuple(share * part for part in mpl.colors.to_rgb(colour))


def _percent(share: float) -> str:
    """Write a share rounded down, so that 100 % means every vote."""
    return f"{int(share * 100 + 1e-9)} %"


def _thousands(number: int) -> str:
    return f"{number:,}".replace(",", r"\,")


def _halo(colour: object) -> dict[str, object]:
    return {"boxstyle": "round,pad=0.12", "facecolor": colour, "edgecolor": "none", "alpha": 0.75}


PICTURES: Final[dict[str, Callable[[], Figure]]] = {
    "noise": draw_noise,
    "regions": draw_regions,
    "convolution": draw_convolution,
    "two-jaws": draw_two_jaws,
    "depth": draw_depth,
    "bridge": draw_bridge,
    "shattered": partial(draw_hidden, "quantizer", "zero", "BPDA, the identity backward", np.inf),
    "stochastic": partial(draw_hidden, "dropped features", "one draw", "EOT, the mean of 40", np.inf),
    "exploding": partial(draw_hidden, "unrolled descent", "exploding", "BPDA, the identity backward", 1.0),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures that were named.

    Args:
        arguments: the command line; that of the process if None.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(PICTURES)}; all if none")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).parent / "images", help="the folder"
    )
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(PICTURES))
    if unknown:
        parser.error(f"no picture is called {unknown[0]!r}: there are {', '.join(PICTURES)}")
    chosen.output.mkdir(parents=True, exist_ok=True)
    for name in chosen.names or PICTURES:
        with mpl.rc_context(STYLE):
            path = chosen.output / f"{name}.png"
            PICTURES[name]().savefig(path, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()
