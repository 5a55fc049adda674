"""Defense: a published defense as a classifier, the attacks that it was measured with, and what the paper said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, final, get_args

from torch import Tensor

from calipers.attacks.base import Attack
from calipers.attacks.judge import Judge
from calipers.errors import UsageError
from calipers.target import Target
from calipers.threat.threat_model import Norm
from calipers.threat.units import parse_size

__all__ = ["Defense", "Hides", "Paper", "Role", "Row", "Tell"]

Hides = Literal["shattered", "stochastic", "exploding", "vanishing"]
"""How a gradient is hidden (Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3)."""

Role = Literal["undefended", "naive", "matched", "adaptive", "ablation"]
"""What a measurement is for.

``undefended``: the network without the defense, under the attack of ``adaptive``. ``naive``: the attack that the
defense's own paper measured it with. ``matched``: size, steps and loss of ``adaptive`` with the gradient that autograd
gives. ``adaptive``: the attack that takes the mechanism into account. ``ablation``: that attack with a part left out,
or another way to the same end.
"""

Tell = Callable[[str], None]
"""Told in words how far a training is."""


@final
@dataclass(frozen=True)
class Paper:
    """What was published of a defense; figures as they are printed.

    Args:
        authors: names and year.
        title: of the paper.
        source: where it is, such as ``arXiv:1711.00117`` or ``openreview:S18Su--CW``.
        data: the data set of the figures.
        threat: norm and size of the perturbations, with their unit.
        clean: accuracy on clean images as printed, empty where none is.
        claimed: accuracy under the authors' own attack as printed, with what attack that was.
        adaptive: accuracy under the adaptive attack as Athalye, Carlini and Wagner print it.
        note: what must be said of these figures; empty if nothing.
    """

    authors: str
    title: str
    source: str
    data: str
    threat: str
    clean: str
    claimed: str
    adaptive: str
    note: str = ""


@final
@dataclass(frozen=True)
class Row:
    """One measurement: a classifier, an attack, a size, a judge.

    Args:
        role: what it is for.
        what: the attack in a few words, such as ``PGD, BPDA through the ramp``.
        attack: the attack, all of whose functions have names, so that it can be stored.
        norm: the norm of the perturbation: l0, l1, l2 or linf.
        eps: its size as people write it, in input units; empty for an attack that looks for the least size.
        variant: which classifier is judged: the name of one of the defense's :meth:`Defense.targets`, or the whole
            reference of another model, which has a colon.
        judge: how success is judged.
        unit: the size in another unit, such as ``rms 0.05 a pixel``; empty if there is none to be told.
        family: which rows belong together, where a defense has several mechanisms; empty where it has one.
        within: how large the distance of an attack without a size may be for a success to count, as people write it;
            empty for any.
    """

    role: Role
    what: str
    attack: Attack
    norm: Literal["l0", "l1", "l2", "linf"]
    eps: str
    variant: str = ""
    judge: Judge = field(default_factory=Judge)
    unit: str = ""
    family: str = ""
    within: str = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise UsageError(f"role is {self.role!r}: use one of {', '.join(get_args(Role))}")
        Norm.parse(self.norm)
        for size in (self.eps, self.within):
            if size:
                parse_size(size)


@dataclass(frozen=True)
class Defense(ABC):
    """A defense of ICLR 2018: in its Fashion-MNIST form, or around a network that is given.

    Args:
        weights: the folder of its trained parts; those that ship with calipers if None. Around a given network nothing
            ships.
        network: the reference of a pretrained network to stand around; None for the form that ships.

    Raises:
        UsageError: if it cannot stand around a network.
    """

    name: ClassVar[str]
    """What it is called in references: letters, digits and ``-``."""
    paper: ClassVar[Paper]
    """What was published."""
    claim: ClassVar[str]
    """What the authors claimed, in one sentence."""
    flaw: ClassVar[str]
    """Why it does not hold, in one sentence; what limits it, where it does."""
    recipe: ClassVar[str]
    """The adaptive attack, in one line."""
    hides: ClassVar[tuple[Hides, ...]]
    """How it hides its gradient, as the literature says; nothing in calipers' diagnosis reads it."""
    minutes: ClassVar[float]
    """How long :meth:`train` takes on two cores, measured; 0 if there is nothing to train."""
    colour_minutes: ClassVar[float | None] = None
    """The same where it trains networks of its own on colour images of 32 x 32; None where it has no such form."""
    own_network: ClassVar[str] = ""
    """Why it cannot stand around a given network; empty where it can."""
    around_images: ClassVar[int] = 6_000
    """How many images :meth:`train` is given around a given network, at most."""

    weights: Path | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if self.network is not None and self.own_network:
            trained = (
                "" if self.colour_minutes is None else ", which calipers train iclr2018 does by --data too"
            )
            raise UsageError(f"{self.name} cannot be put around a given network: {self.own_network}{trained}")

    @abstractmethod
    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers of the defense.

        Returns:
            From a name to a function of a device (``cpu``) that makes the classifier. The empty name is the defense as
            the paper means it; ``undefended`` is the same network without it, where there is one.
        """

    @abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """List what is measured: at least one row of each role that applies."""

    @abstractmethod
    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train every part and write it to a folder; parts that are there already are left alone.

        Args:
            images: training images (n, 1, 28, 28), uint8, Fashion-MNIST's 60 000 in their order; where it has a form
                for them, (n, 3, 32, 32), in no order; around a given network, images of its task (n, channels, side,
                side), uint8, in no order.
            labels: their classes (n,), int64.
            folder: where the files go.
            share: 1 for what ships; less trains on that share of images and epochs, to try things out.
            tell: told in words how far it is.
        """

    def images(self) -> tuple[int, ...]:
        """Say what images the networks of its own are for.

        Returns:
            Channels, height and width: Fashion-MNIST's, unless its trained parts are for others.
        """
        return (1, 28, 28)

    def lacks(self) -> str:
        """Say which rows are left out for want of parts.

        Returns:
            One line, empty if nothing is left out.
        """
        return ""

    @final
    def reference(self, variant: str = "") -> str:
        """Write the reference of one of the classifiers, with the folder of parts and the network.

        Args:
            variant: which one; the defense itself if empty.

        Returns:
            The text that :func:`calipers.runs.catalog.load_model` takes.
        """
        options = [] if self.weights is None else [f"weights={self.weights}"]
        options += (
            [] if self.network is None else [f"network={self.network}"]
        )  # the last: it has all that follows
        named = f"iclr2018:{self.name}" + (f"/{variant}" if variant else "")
        return named + (f"?{'&'.join(options)}" if options else "")

    @final
    def target(self, variant: str = "", *, device: str = "cpu") -> Target:
        """Make one of the classifiers.

        Args:
            variant: which one; the defense itself if empty.
            device: where it runs.

        Returns:
            The classifier.

        Raises:
            UsageError: if there is no such variant.
        """
        known = self.targets()
        if variant not in known:
            names = ", ".join(name for name in known if name)
            raise UsageError(f"{self.name} has no variant {variant!r}: there are {names or 'none'}")
        return known[variant](device)
