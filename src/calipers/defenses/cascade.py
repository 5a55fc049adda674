"""Cascade adversarial training (Na et al. 2018): one-step examples, and stored ones of a network before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from calipers.attacks.fgsm import FGSM
from calipers.attacks.pgd import PGD
from calipers.attacks.standard import Standard
from calipers.defenses.base import Defense, Hides, Paper, Row, Tell
from calipers.defenses.form import GREY, Form, form_of, form_of_part
from calipers.defenses.parts import has_part, load_part, save_part
from calipers.defenses.undefended import begun, plain_loss, portion, train_undefended, undefended_target
from calipers.target import Target
from calipers.training.parts import train_part

__all__ = ["MOST", "Cascade", "CascadeLoss", "iterated", "least_likely_step", "sizes", "stored_images"]

MOST: Final = 0.2
"""The largest size that is trained on for Fashion-MNIST, in input units; for CIFAR-10 it is the paper's, 16/255."""

_COLOUR_MOST: Final = 16 / 255

_PART, _FIRST = "cascade", "cascade-first"
_IMAGES, _WARM, _EPOCHS, _COLOUR_EPOCHS, _BATCH = 20_000, 1, 6, 2, 64
_AT_ONCE, _FIRST_DRAW = 1000, 5


def sizes(
    count: int, most: float, noise: torch.Generator, *, device: torch.device
) -> Float[Tensor, " count"]:
    """Draw the size of each image's perturbation: the absolute value of a normal of deviation most/2, cut at most.

    Args:
        count: how many.
        most: the largest, in input units.
        noise: where they come from.
        device: where they are needed.

    Returns:
        Sizes, in input units.
    """
    drawn = torch.randn(count, generator=noise, device=device) * (most / 2)
    return drawn.abs().clamp_max(most)


def least_likely_step(
    net: nn.Module, x: Float[Tensor, "batch channels height width"], eps: Float[Tensor, " batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Take one step of the sign of the gradient towards the class that seems least likely.

    Reference: Kurakin et al. 2017 (arXiv:1611.01236), section 2: ``step l.l.``.

    Args:
        net: the network.
        x: images.
        eps: size of each step, in input units.

    Returns:
        Images in [0, 1].
    """
    leaf = x.detach().requires_grad_(True)
    scores = net(leaf).float()
    loss = functional.cross_entropy(scores, scores.argmin(1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return (x - eps.view(-1, 1, 1, 1) * gradient.sign()).clamp(0, 1)


def iterated(
    net: nn.Module,
    images: UInt8[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    eps: Int[Tensor, " batch"],
) -> UInt8[Tensor, "batch channels height width"]:
    r"""Perturb bytes by iterated FGSM: :math:`\lfloor \min(4 + e, 1.25 e) \rfloor` steps of one byte in a ball of e.

    Reference: Kurakin et al. 2017 (arXiv:1607.02533), section 2.2.

    Args:
        net: the network that is climbed.
        images: bytes.
        labels: their classes.
        eps: the size of each ball, in bytes.

    Returns:
        Bytes.
    """
    steps = torch.minimum(eps + 4, (1.25 * eps.double()).floor().long())
    order = steps.argsort(descending=True)
    clean, label, left = images[order].short(), labels[order], steps[order]
    radius = eps[order].view(-1, 1, 1, 1)
    low, high = (clean - radius).clamp_min(0).short(), (clean + radius).clamp_max(255).short()
    point = clean.clone()
    for step in range(int(left[0]) if len(left) else 0):
        rows = int((left > step).sum())
        leaf = (point[:rows].float() / 255).requires_grad_(True)
        loss = functional.cross_entropy(net(leaf).float(), label[:rows], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
        moved = point[:rows] + gradient.sign().short()
        point[:rows] = torch.minimum(torch.maximum(moved, low[:rows]), high[:rows])
    found = torch.empty_like(images)
    found[order] = point.to(images.dtype)
    return found


@final
@dataclass(frozen=True)
class CascadeLoss:
    r"""The loss of a batch of pairs: m clean images, and an adversarial one of each.

    .. math:: \frac{\sum_i L(x_i) + \lambda \sum_i L(x'_i)}{m + \lambda m}
              + \frac{\mu}{m} \sum_i \tfrac12 \|E(x'_i) - \bar E(x_i)\|_2^2

    with L the cross-entropy, E the embedding before the last layer, and :math:`\bar E` the same without a gradient (the
    pivot). Further channels of the images hold stored adversarial ones, which stand for half of the x'.

    Reference: Na et al. 2018 (arXiv:1708.02582), sections 3 and 4.

    Args:
        most: the largest size of a step, in input units.
        weight: lambda.
        pull: mu.
        channels: of an image.
    """

    most: float = MOST
    weight: float = 0.3
    pull: float = 1e-4
    channels: int = 1

    def __call__(self, net: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        """Compute the loss, with products in bfloat16.

        Args:
            net: a sequence of layers, the last of them linear.
            images: a batch of ``channels``, or of twice as many with the stored ones behind.
            labels: their classes.
            noise: where sizes come from.

        Returns:
            The loss.
        """
        assert isinstance(net, nn.Sequential)
        clean = images[:, : self.channels].contiguous(memory_format=torch.channels_last)
        eps = sizes(len(clean), self.most, noise, device=clean.device)
        with torch.autocast(clean.device.type, torch.bfloat16):
            net.requires_grad_(False)
            moved = least_likely_step(net, clean, eps)
            net.requires_grad_(True)
            if images.shape[1] > self.channels:
                half = len(clean) // 2
                moved = torch.cat([images[:half, self.channels :], moved[half:]])
            embedding = net[:-1](torch.cat([clean, moved]))
            scores = net[-1](embedding)
        loss = functional.cross_entropy(scores.float(), labels.repeat(2), reduction="none")
        pivot, pulled = embedding.float().chunk(2)
        distance = (pulled - pivot.detach()).square().sum(1).mean() / 2
        there, beside = loss.chunk(2)
        mean = (there.sum() + self.weight * beside.sum()) / (len(there) * (1 + self.weight))
        total: Tensor = mean + self.pull * distance
        return total


def stored_images(
    net: nn.Module,
    images: UInt8[Tensor, "count channels height width"],
    labels: Int[Tensor, " count"],
    most: float,
) -> UInt8[Tensor, "count channels height width"]:
    """Make one iterated adversarial image of each training image, at a size of its own, as bytes to be stored.

    Args:
        net: a network that is defended already.
        images: bytes.
        labels: their classes.
        most: the largest size, in input units.

    Returns:
        Bytes.
    """
    noise = torch.Generator().manual_seed(_FIRST_DRAW)
    eps = (255 * sizes(len(images), most, noise, device=images.device)).round().long()
    net.requires_grad_(False)
    # what is cast is not kept: each step's point would be, to the end
    with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
        found = [
            iterated(net, images[rows], labels[rows], eps[rows])
            for rows in torch.arange(len(images)).split(_AT_ONCE)  # type: ignore[no-untyped-call]
        ]
    net.requires_grad_(True)
    return torch.cat(found)


@final
@dataclass(frozen=True)
class Cascade(Defense):
    """A network trained beside its own one-step adversarial images and the iterated ones of a network before it.

    **The claim.** Adversarial training with one cheap step resists one step and not many. But iterated adversarial
    images carry over between networks trained in the same way: so take those of an already defended network, store
    them, and train a fresh one on them as well.

    **The mechanism.** Of each batch, half is clean and half adversarial: a step towards the least likely class, or, for
    half of them, the stored image. :class:`CascadeLoss` weighs them, and pulls the embedding of each adversarial image
    to that of its clean one. Sizes are drawn for each image.

    **The flaw.** Nothing is hidden and there is little to hide: what is learned from one step and from another
    network's images is worth less than what PGD teaches.

    **The recipe.** :class:`~calipers.attacks.standard.Standard`: there is nothing to adapt to.

    The paper's own sizes are 16/255 at most on CIFAR-10, a ResNet-110 or -20, batches of 128, ten clean epochs and 240
    in all. Here sizes go up to .2 on 20 000 images of Fashion-MNIST, for six epochs after a clean one, in each of
    two stages, and the network has 93 000 weights. On CIFAR-10 the sizes are the paper's, all images are used, for
    four epochs after two, and the network has 371 000 weights.
    """

    name: ClassVar[str] = "cascade"
    paper: ClassVar[Paper] = Paper(
        authors="Na, Ko and Mukhopadhyay 2018",
        title="Cascade adversarial machine learning regularized with a unified embedding",
        source="arXiv:1708.02582",
        data="CIFAR-10",
        threat="linf 4/255",
        clean="",
        claimed="more against iterated attacks than one-step training (no figure in the abstract)",
        adaptive="15 %",
        note="Athalye, Carlini and Wagner write the size as 0.015",
    )
    claim: ClassVar[str] = (
        "Stored iterated examples of a defended network teach the next one to withstand iterated attacks, at the price "
        "of one-step training."
    )
    flaw: ClassVar[str] = (
        "None is hidden: the network is only a little more robust than one that never saw an attack, and iterated "
        "attacks show it."
    )
    recipe: ClassVar[str] = "Standard()"
    hides: ClassVar[tuple[Hides, ...]] = ()
    minutes: ClassVar[float] = 6.0
    colour_minutes: ClassVar[float | None] = 7.0
    own_network: ClassVar[str] = "it is the training of a network of its own"

    def images(self) -> tuple[int, ...]:
        """Say what images its networks are for; see :meth:`Defense.images`."""
        return form_of_part(_PART, self.weights).input_shape

    def targets(self) -> Mapping[str, Callable[[str], Target]]:
        """List the classifiers: the last network of the cascade, and the same network trained plainly.

        Returns:
            ``""`` and ``undefended``.
        """
        return {"": self._trained, "undefended": partial(undefended_target, self.weights)}

    def rows(self) -> tuple[Row, ...]:
        """List what is measured: at half the largest size that is trained on; on CIFAR-10 at the paper's 4/255.

        Returns:
            The rows.
        """
        form = form_of_part(_PART, self.weights)
        eps = form.sizes.linf if form == GREY else form.sizes.half
        return (
            Row("undefended", "Standard", Standard(), "linf", eps, "undefended"),
            Row("naive", "PGD-40 on the cross-entropy, 5 restarts", PGD(steps=40, restarts=5), "linf", eps),
            Row("adaptive", "Standard", Standard(), "linf", eps),
            Row("ablation", "FGSM: one step", FGSM(), "linf", eps),
        )

    def train(self, images: Tensor, labels: Tensor, folder: Path, *, share: float, tell: Tell) -> None:
        """Train both networks of the cascade, and the plain one; see :meth:`Defense.train`."""
        form = form_of(tuple(images.shape[1:]))
        train_undefended(images, labels, folder, share=share, tell=tell)
        if has_part(_PART, folder):
            form.check_part(_PART, folder, share=share)
            return
        count = _IMAGES if form == GREY else len(images)
        data, classes = portion(images[:count], labels[:count], share)
        if not has_part(_FIRST, folder):
            self._stage(form, _FIRST, data, classes, folder, seed=0, share=share, tell=tell)
        form.check_part(_FIRST, folder, share=share)
        before = load_part(form.network(), _FIRST, folder)
        tell(f"{_FIRST}: storing its iterated adversarial images")
        stored = stored_images(before, data, classes, _most(form))
        both = torch.cat([data, stored], 1)
        self._stage(form, _PART, both, classes, folder, seed=1, share=share, tell=tell)

    def _stage(
        self,
        form: Form,
        name: str,
        images: Tensor,
        labels: Tensor,
        folder: Path,
        *,
        seed: int,
        share: float,
        tell: Tell,
    ) -> None:
        """Train one network: an epoch or two of clean images, then batches of pairs."""
        epochs = form.epochs(_EPOCHS if form == GREY else _COLOUR_EPOCHS, share)
        loss = CascadeLoss(most=_most(form), channels=form.channels)

        def told(words: str) -> None:
            tell(f"{name}: {words}")

        net = begun(form.network, seed)
        train_part(
            net,
            images[:, : form.channels],
            labels,
            plain_loss,
            recipe="clean",
            epochs=form.epochs(_WARM, share),
            augment=form.augment,
            seed=seed,
            tell=told,
        )
        train_part(
            net,
            images,
            labels,
            loss,
            recipe=f"{name} {loss}",
            epochs=epochs,
            batch_size=_BATCH,
            augment=form.augment,
            seed=seed,
            checkpoint=folder / f"{name}.partial",
            tell=told,
        )
        about = form.about(recipe=f"{loss}, {epochs} epochs", share=f"{share:g}")
        save_part(net, name, folder, about=about)

    def _trained(self, device: str) -> Target:
        form = form_of_part(_PART, self.weights)
        net = load_part(form.network(), _PART, self.weights)
        return Target(net, num_classes=10, input_shape=form.input_shape, device=device, name=_PART)


def _most(form: Form) -> float:
    return MOST if form == GREY else _COLOUR_MOST
