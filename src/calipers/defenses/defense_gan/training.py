"""Training of the generator of Defense-GAN: a Wasserstein GAN with a gradient penalty on Fashion-MNIST."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from calipers.defenses.base import Tell
from calipers.defenses.defense_gan.generator import LATENT, Critic, Generator
from calipers.defenses.defense_gan.latent import GENERATOR
from calipers.defenses.parts import save_part
from calipers.errors import UsageError
from calipers.training.checkpoints import data_digest, read_checkpoint, write_checkpoint

__all__ = ["gradient_penalty", "train_generator"]

_ITERATIONS, _CRITIC_STEPS, _BATCH, _RATE, _SEED = 8000, 5, 32, 3e-4, 0
_PENALTY, _AVERAGED, _EVERY = 10.0, 0.999, 500


def gradient_penalty(
    critic: nn.Module,
    real: Float[Tensor, "batch 1 28 28"],
    fake: Float[Tensor, "batch 1 28 28"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Compute the mean of (||gradient|| - 1)^2 of the critic at points drawn on the lines between pairs of images.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, equation 3.

    Args:
        critic: rates images, each by itself.
        real: images of the data.
        fake: images of the generator, outside any graph.
        generator: draws the places on the lines.

    Returns:
        The penalty, without its factor.
    """
    places = torch.rand((len(real), 1, 1, 1), generator=generator)
    points = (places * real + (1 - places) * fake).requires_grad_(True)
    (slopes,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    penalty: Tensor = (slopes.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def train_generator(
    images: UInt8[Tensor, "n 1 28 28"], labels: Int[Tensor, " n"], folder: Path, *, share: float, tell: Tell
) -> Path:
    """Train the generator against a critic and write it; what is kept is the running mean of its weights.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1.

    Args:
        images: training images.
        labels: their classes, which neither network sees.
        folder: where the file goes, and the state from which an interrupted training goes on.
        share: 1 for what ships; less takes that share of the images and of the iterations.
        tell: told every 500 iterations.

    Returns:
        The file.

    Raises:
        UsageError: if the critic's loss is no finite number.
    """
    count = max(round(share * len(images)), _BATCH)
    iterations = max(round(share * _ITERATIONS), 1)
    data = images[:count]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        run = _Run(iterations)
    recipe = f"WGAN-GP {iterations} {_CRITIC_STEPS} {_BATCH} {_RATE} {_SEED} {_PENALTY} {_AVERAGED}"
    key = {"recipe": recipe, "data": data_digest(data, labels[:count])}
    path = folder / f"{GENERATOR}.checkpoint"
    run.restore(read_checkpoint(path, key=key))
    began, gap = time.perf_counter(), math.nan
    while run.done < iterations:
        gap = run.step(data)
        if run.done % _EVERY == 0 or run.done == iterations:
            if not math.isfinite(gap):
                raise UsageError(
                    f"the critic's loss became {gap} in iteration {run.done}: give a smaller rate"
                )
            seconds = time.perf_counter() - began
            tell(f"iteration {run.done} of {iterations}: the critic parts by {gap:.3f}, {seconds:.0f} s")
            write_checkpoint(path, key=key, state=run.held())
    path.unlink(missing_ok=True)
    about = {
        "what": "generator of a WGAN-GP of Fashion-MNIST, for Defense-GAN (arXiv:1805.06605)",
        "trained": f"{iterations} iterations of {_CRITIC_STEPS} critic steps on batches of {_BATCH} of the first "
        f"{count} training images, Adam {_RATE}, running mean {_AVERAGED}",
    }
    return save_part(run.mean, GENERATOR, folder, about=about)


class _Run:
    """Both networks, their optimizers, the running mean and the source of randomness."""

    def __init__(self, iterations: int) -> None:
        self.iterations, self.done = iterations, 0
        self.net, self.critic, self.mean = Generator(), Critic(), Generator()
        self.mean.load_state_dict(self.net.state_dict())
        self.optimizers = [
            torch.optim.Adam(part.parameters(), lr=_RATE, betas=(0.5, 0.9))
            for part in (self.net, self.critic)
        ]
        self.chance = torch.Generator().manual_seed(_SEED)

    def held(self) -> dict[str, Any]:
        """Give all that the next step depends on."""
        return {
            "net": self.net.state_dict(),
            "critic": self.critic.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "chance": self.chance.get_state(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from what was held, if anything was."""
        if state is None:
            return
        self.net.load_state_dict(state["net"])
        self.critic.load_state_dict(state["critic"])
        self.mean.load_state_dict(state["mean"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.chance.set_state(state["chance"])
        self.done = int(state["done"])

    def step(self, data: Tensor) -> float:
        """Take the critic's steps and one of the generator's, at a rate that falls to zero in the second half."""
        rate = _RATE * min(1.0, 2 * (1 - self.done / self.iterations))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        gap = math.nan
        for _ in range(_CRITIC_STEPS):
            chosen = torch.randint(len(data), (_BATCH,), generator=self.chance)
            gap = self._critic_step(data[chosen].float() / 255)
        value = -self.critic(self.net(self._latent())).mean()
        self._descend(0, value)
        decay = min(_AVERAGED, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            for kept, new in zip(self.mean.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        self.done += 1
        return gap

    def _critic_step(self, real: Tensor) -> float:
        with torch.no_grad():
            fake = self.net(self._latent())
        on_fake, on_real = self.critic(torch.cat([fake, real])).view(2, -1).mean(1)
        penalty = gradient_penalty(self.critic, real, fake, generator=self.chance)
        self._descend(1, on_fake - on_real + _PENALTY * penalty)
        return float((on_real - on_fake).detach())

    def _latent(self) -> Tensor:
        return torch.randn((_BATCH, LATENT), generator=self.chance)

    def _descend(self, which: int, value: Tensor) -> None:
        self.optimizers[which].zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizers[which].step()
