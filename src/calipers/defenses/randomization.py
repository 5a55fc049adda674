r"""Random resizing and padding (Xie et al. 2018): the image is resized and moved at random before it is classified.

**Claim.** An adversarial perturbation is aimed at one scale and one place: resize the image to a random size, pad it to
a fixed one at a random place, and most perturbations miss, at no cost in clean accuracy.

**Mechanism.** A size r is drawn from a few, the image is resized to it by nearest neighbours, and lies at one of the
:math:`(R - r + 1)^2` places of a grey square of side R. For images of 28 and R = 31, sizes 28 to 30 give
16 + 9 + 4 = 29 patterns.

**Flaw.** The gradient of one draw is that of one pattern. The randomness is small and known: the gradient of the mean
over patterns is had by sampling, and here, where there are 29, exactly.

**Recipe.** ``PGD(steps=20, loss="margin", gradient=EOT(30))``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn import functional

from calipers.attacks.base import Attack
from calipers.attacks.deepfool import DeepFool
from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.attacks.transfer import Transfer
from calipers.defenses.base import Defense, Hides, Paper, Role, Row, Tell
from calipers.defenses.given import given_network, sizes_for
from calipers.defenses.normalized import Normalized
from calipers.defenses.parts import has_part, load_part, save_part
from calipers.errors import UsageError
from calipers.gradients.eot import EOT
from calipers.gradients.transformations import Member, Transformations
from calipers.target import Target
from calipers.training.parts import train_part

__all__ = [
    "PATTERNS",
    "Randomization",
    "RandomizedClassifier",
    "ResizeAndPad",
    "answers_by_pattern",
    "build_classifier",
    "patterns_for",
    "resize_and_pad",
]

Pattern = tuple[int, int, int]
"""Size, rows above and columns to the left of the image."""

_PART: Final = "randomization"
_EPS: Final = "0.1"
_SMALLER: Final = "0.03"
_FEW: Final = 100  # patterns that are taken one by one
_EPOCHS: Final = 8


def resize_and_pad(
    x: Float[Tensor, "batch channels height width"],
    sizes: Int[Tensor, " batch"],
    tops: Int[Tensor, " batch"],
    lefts: Int[Tensor, " batch"],
    *,
    side: int,
    fill: float,
) -> Float[Tensor, "batch channels side side"]:
    """Resize each square image to a size of its own, by nearest neighbours, and put it on a square.

    Args:
        x: images.
        sizes: the side that each is resized to.
        tops: rows above each.
        lefts: columns to its left.
        side: of the square.
        fill: the value around the image.

    Returns:
        The squares, differentiable in ``x``.
    """
    length = x.shape[-1]
    padded = functional.pad(x, (0, 1, 0, 1), value=fill)  # the last row and column are what lies outside

    def source(starts: Tensor) -> Tensor:
        place = torch.arange(side, device=x.device) - starts[:, None]
        inside = (place >= 0) & (place < sizes[:, None])
        return torch.where(inside, place * length // sizes[:, None], length)

    rows, columns = source(tops), source(lefts)
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    found = padded.movedim(1, -1)[batch, rows[:, :, None], columns[:, None, :]]
    return found.movedim(-1, 1).contiguous()


@final
@dataclass(frozen=True)
class ResizeAndPad(Transformations):
    """The distribution of patterns: a size uniformly, then a place uniformly among those of that size.

    Reference: Xie et al. 2018, arXiv:1711.01991, section 3.

    Differs from the paper: sizes 28 to 30 on 31 where the paper has 299 to 330 on 331, of which there are 12 528.

    Args:
        smallest: the least size.
        largest: the largest one, at most ``side``.
        side: of the square.
        fill: the value around the image: grey, in images of [0, 1] what 0 is in those of [-1, 1].
        only: fixed patterns (size, top, left), all equally likely, in place of the distribution.

    Raises:
        UsageError: if sizes or patterns do not fit.
    """

    smallest: int = 28
    largest: int = 30
    side: int = 31
    fill: float = 0.5
    only: tuple[Pattern, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.largest <= self.side:
            raise UsageError(
                f"sizes are {self.smallest} to {self.largest} on a square of {self.side}: give them in rising order"
            )
        for size, top, left in self.only:
            if not (0 <= top <= self.side - size and 0 <= left <= self.side - size):
                raise UsageError(
                    f"the pattern {(size, top, left)} leaves the square of side {self.side}: size, top, left"
                )

    def patterns(self) -> tuple[tuple[Pattern, float], ...]:
        """List the patterns with their probabilities.

        Returns:
            Pairs of a pattern and its probability; they sum to 1.
        """
        if self.only:
            return tuple((pattern, 1 / len(self.only)) for pattern in self.only)
        sizes = range(self.smallest, self.largest + 1)
        return tuple(
            ((size, top, left), 1 / (len(sizes) * (self.side - size + 1) ** 2))
            for size in sizes
            for top in range(self.side - size + 1)
            for left in range(self.side - size + 1)
        )

    def members(self) -> tuple[Member, ...]:
        """List the transformations with their probabilities."""
        return tuple(Member(partial(self._fixed, pattern), chance) for pattern, chance in self.patterns())

    def __call__(
        self, copies: Float[Tensor, "copies *dims"], generator: Generator | None
    ) -> Float[Tensor, "copies *rest"]:
        """Resize and pad each row by a draw of its own.

        Args:
            copies: images.
            generator: the source of the draws; torch's global one if None.

        Returns:
            Images of ``side``.
        """
        known = self.patterns()
        table = torch.tensor([pattern for pattern, _ in known], device=copies.device)
        chances = torch.tensor([chance for _, chance in known], device=copies.device)
        drawn = torch.multinomial(chances, max(len(copies), 1), replacement=True, generator=generator)
        sizes, tops, lefts = table[drawn[: len(copies)]].unbind(1)
        return resize_and_pad(copies, sizes, tops, lefts, side=self.side, fill=self.fill)

    def describe(self) -> str:
        """Write the name of the distribution, if it is the defense's own."""
        return f"{__name__}:PATTERNS" if self == PATTERNS else super().describe()

    def _fixed(self, pattern: Pattern, x: Tensor) -> Tensor:
        sizes, tops, lefts = torch.tensor(pattern, device=x.device).repeat(len(x), 1).unbind(1)
        return resize_and_pad(x, sizes, tops, lefts, side=self.side, fill=self.fill)


PATTERNS: Final = ResizeAndPad()
"""The 29 patterns of the form that ships, on images of [0, 1]."""


def patterns_for(length: int) -> ResizeAndPad:
    """Make the patterns for images of a size: on a square of 9/8 of it, every size from the image's on.

    Args:
        length: the side of an image, at least 8.

    Returns:
        The patterns: :data:`PATTERNS` for 28, and 54 of sizes 32 to 35 on 36 for 32. The square has 331/299 of the side
        in the paper.
    """
    side = length * 9 // 8
    return ResizeAndPad(length, side - 1, side)


def _corners(patterns: ResizeAndPad) -> tuple[Pattern, ...]:
    # each size in the four corners, and one row and column from the first
    return tuple(
        dict.fromkeys(
            (size, top, left)
            for size in range(patterns.smallest, patterns.largest + 1)
            for rest in (patterns.side - size,)
            for top, left in ((0, 0), (0, rest), (rest, 0), (rest, rest), (1, 1))
        )
    )


def build_classifier() -> nn.Sequential:
    """Build a small network for images of any size: convolutions, and a mean over all places.

    Returns:
        The network, 60 000 weights, for images in [-1, 1], with torch's own initial weights.
    """
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


@final
class RandomizedClassifier(nn.Module):
    """The classifier behind a random pattern, each row's its own.

    Args:
        net: a classifier of images of any size.
        patterns: the distribution.
        fill: the value around an image: 0 is grey in images of [-1, 1].
    """

    def __init__(self, net: nn.Module, patterns: ResizeAndPad, *, fill: float = 0.0) -> None:
        super().__init__()
        self.net = net
        self.patterns = replace(patterns, fill=fill)

    def forward(self, x: Float[Tensor, "batch channels side side"]) -> Float[Tensor, "batch classes"]:
        """Classify one draw of each image.

        Args:
            x: images, in [-1, 1] or where ``fill`` is grey.

        Returns:
            Logits.
        """
        logits: Tensor = self.net(self.patterns(x, None))
        return logits


def answers_by_pattern(
    undefended: Target, x: Float[Tensor, "batch channels side side"], patterns: ResizeAndPad = PATTERNS
) -> Int[Tensor, "patterns batch"]:
    """Ask for the class of each image in every pattern: with their probabilities, all there is to know of the defense.

    Args:
        undefended: the classifier without randomness.
        x: images, in input units.
        patterns: the distribution.

    Returns:
        Classes.
    """
    return torch.stack([undefended.predict(member.transform(x)) for member in patterns.members()])


@final
@dataclass(frozen=True)
class Randomization(Defense):
    """Random resizing and padding, before a small network of Fashion-MNIST or before one that is given.

    A given network is taken as it is, as in the paper; it must take images of another size, as one with a global mean
    does.

    Differs from the paper: the network that ships has seen random patterns and plain images in training, half and half,
    where the paper takes an ImageNet network as it is; and FGSM and DeepFool stand for its three attacks (its third is
    C&W).

    Args:
        weights: the folder of its trained part; that which ships if None. A given network has none.
        network: the reference of a network to stand before.
    """

    name: ClassVar[str] = "randomization"
    paper: ClassVar[Paper] = Paper(
        authors="Xie, Wang, Zhang, Ren and Yuille 2018",
        title="Mitigating adversarial effects through randomization",
        source="arXiv:1711.01991",
        data="ImageNet, Inception networks",
        threat="linf 0.031",
        clean="99.2 % of images that the network answers rightly",
        claimed="86 % at linf 10/255",
        adaptive="0 %",
        note="with adversarial training in the original; 0 % is of the randomization alone",
    )
    claim: ClassVar[str] = (
        "A perturbation is aimed at one scale and place, so resizing and padding at random make most of them miss."
    )
    flaw: ClassVar[str] = (
        "The gradient of one draw is that of one pattern, and all patterns can be averaged over."
    )
    recipe: ClassVar[str] = 'PGD(steps=20, loss="margin", gradient=EOT(30))'
    hides: ClassVar[tuple[Hides, ...]] = ("stochastic",)
    minutes: ClassVar[float] = 6.0

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers.

        Returns:
            The defense, and ``undefended``, the network on plain images, which takes images of any size.
        """
        return {"": self._defended, "undefended": self._undefended}

    def _defended(self, device: str) -> Target:
        if self.network is None:
            return self._target(device, RandomizedClassifier(self._net(), PATTERNS).eval(), stochastic=True)
        patterns = patterns_for(self._shape()[1])
        return self._target(
            device, RandomizedClassifier(self._net(), patterns, fill=0.5).eval(), stochastic=True
        )

    def _undefended(self, device: str) -> Target:
        return self._target(device, self._net(), stochastic=False)

    def _net(self) -> nn.Module:
        if self.network is None:
            return load_part(build_classifier(), _PART, self.weights)
        network = given_network(self.network)
        channels, length, _ = network.input_shape
        net, side = Normalized(network), patterns_for(length).side
        try:
            with torch.no_grad():
                net(torch.zeros(1, channels, side, side))
        except RuntimeError:
            raise UsageError(
                f"{self.network} takes no images of {side}x{side}: give a network of images of any size, such as one "
                "with a global mean before its last layer"
            ) from None
        return net.eval()

    def _shape(self) -> tuple[int, ...]:
        return (1, 28, 28) if self.network is None else given_network(self.network).input_shape

    def _target(self, device: str, net: nn.Module, *, stochastic: bool) -> Target:
        classes = 10 if self.network is None else given_network(self.network).num_classes
        centre = (0.5,) if self.network is None else None  # a given network has its own, behind the patterns
        return Target(
            net,
            num_classes=classes,
            input_shape=self._shape(),
            mean=centre,
            std=centre,
            device=device,
            stochastic=stochastic,
            name=self.name,
        )

    def rows(self) -> tuple[Row, ...]:
        """List what is measured; the paper's attacks search on the bare network, under no, one or some patterns.

        Returns:
            The rows.
        """
        shape = self._shape()
        every = patterns_for(shape[1])
        usual = (_EPS, _SMALLER) if self.network is None else (sizes_for(shape).linf, sizes_for(shape).small)
        attack = PGD(steps=20, loss="margin")
        count = len(every.patterns())
        corners = _corners(every)

        def elsewhere(inner: Attack) -> Transfer:
            return Transfer(self.reference("undefended"), inner)

        def under(*patterns: Pattern) -> EOT:
            return EOT(len(patterns) or count, over=replace(every, only=patterns))

        one = under((every.smallest + 1, 1, 1))
        sampled = replace(attack, gradient=EOT(30))
        exact = elsewhere(replace(attack, gradient=under(), keep=True))

        def row(role: Role, what: str, method: Attack, *, eps: str = usual[0], variant: str = "") -> Row:
            return Row(role, what, method, "linf", eps, variant=variant)

        found = (
            row("undefended", "PGD", attack, variant="undefended"),
            Row("naive", "vanilla: DeepFool on the bare network", elsewhere(DeepFool()), "l2", ""),
            Row(
                "naive",
                "single pattern: DeepFool",
                elsewhere(DeepFool(gradient=one)),
                "l2",
                "",
            ),
            row("naive", "vanilla: FGSM on the bare network", elsewhere(FGSM())),
            row("naive", "single pattern: FGSM", elsewhere(FGSM(gradient=one))),
            row(
                "naive",
                f"ensemble of {len(corners)} patterns: FGSM",
                elsewhere(FGSM(gradient=under(*corners))),
            ),
            row("matched", "PGD, gradient of one draw", attack),
            row("adaptive", "PGD, EOT over 30 draws", sampled),
            row("ablation", "PGD on the bare network", elsewhere(replace(attack, keep=True))),
            row("ablation", f"PGD, the exact mean over all {count} patterns", exact),
            row("ablation", "PGD, the exact mean, at a smaller size", exact, eps=usual[1]),
            row("ablation", "PGD, EOT over 30 draws, at a smaller size", sampled, eps=usual[1]),
            row("ablation", "PGD, gradient of one draw, at a smaller size", attack, eps=usual[1]),
        )
        return tuple(each for each in found if count <= _FEW or "exact" not in each.what)

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train the network, half of each batch behind random patterns and half as it is.

        Args:
            images: training images (n, 1, 28, 28), uint8.
            labels: their classes.
            folder: where the file goes.
            share: of images and epochs.
            tell: told how far it is.
        """
        if self.network is not None:
            tell(f"{self.name}: nothing to train, it is put before {self.network}")
            return
        if has_part(_PART, folder):
            tell(f"{_PART}: there already")
            return
        count = max(64, round(share * len(images)))
        epochs = max(1, round(share * _EPOCHS))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            net = build_classifier()
        recipe = f"half of each batch behind {PATTERNS!r}"
        folder.mkdir(parents=True, exist_ok=True)
        train_part(
            net,
            images[:count],
            labels[:count],
            _half_behind_patterns,
            recipe=recipe,
            epochs=epochs,
            learning_rate=4e-3,
            checkpoint=folder / f"{_PART}.checkpoint",
            tell=lambda text: tell(f"{_PART}: {text}"),
        )
        about = {
            "what": "the network of calipers.defenses.randomization, for images in [-1, 1]",
            "data": f"the first {count} training images of Fashion-MNIST, {epochs} epochs",
            "recipe": recipe,
        }
        save_part(net, _PART, folder, about=about)


def _half_behind_patterns(net: nn.Module, x: Tensor, labels: Tensor, generator: Generator) -> Tensor:
    half = len(x) // 2
    moved = PATTERNS(x[:half], generator)
    first = functional.cross_entropy(net(2 * moved - 1), labels[:half], reduction="sum")
    second = functional.cross_entropy(net(2 * x[half:] - 1), labels[half:], reduction="sum")
    return (first + second) / len(x)
