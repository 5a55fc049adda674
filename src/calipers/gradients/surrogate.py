"""fit_surrogate: a small smooth network that learns what a module does, to stand in for its backward."""

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calipers.errors import UsageError
from calipers.randomness import Draws, Role, check_seed
from calipers.target.chance import drawn_from

__all__ = ["Surrogate", "fit_surrogate"]


@final
class Surrogate(nn.Module):
    """A linear map plus a small network with one hidden layer, on standardized values.

    For images that keep their height and width both are convolutions of 5 x 5; otherwise they are full matrices on
    flat inputs.

    Args:
        x: inputs of the module.
        y: its outputs.
        width: hidden channels.

    Attributes:
        unexplained: the share of the variance of unseen outputs that is missed: 0 is perfect, 1 as good as the mean.
    """

    scales: Tensor

    def __init__(
        self, x: Float[Tensor, "batch *dims"], y: Float[Tensor, "batch *rest"], *, width: int
    ) -> None:
        super().__init__()
        self.spatial = x.ndim == 4 and y.ndim == 4 and x.shape[2:] == y.shape[2:]
        self.shape = tuple(y.shape[1:])
        self.unexplained = 1.0
        sizes = (x.shape[1], width, y.shape[1]) if self.spatial else (x[0].numel(), width, y[0].numel())
        deep = [self._layer(one, two) for one, two in pairwise(sizes)]
        self.straight = self._layer(sizes[0], sizes[2])
        self.bent = nn.Sequential(deep[0], nn.GELU(), deep[1])
        spread = [float(values.std().clamp_min(1e-6)) for values in (x, y)]
        self.register_buffer("scales", torch.tensor([float(x.mean()), spread[0], float(y.mean()), spread[1]]))

    def _layer(self, inputs: int, outputs: int) -> nn.Module:
        if self.spatial:
            return nn.Conv2d(inputs, outputs, 5, padding=2)
        return nn.Linear(inputs, outputs)

    def forward(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *rest"]:
        """Compute what the module would give, smoothly.

        Args:
            x: inputs of the module.

        Returns:
            An approximation of its outputs, differentiable.
        """
        middle_in, spread_in, middle_out, spread_out = self.scales.to(x.dtype)
        plain = ((x if self.spatial else x.flatten(1)) - middle_in) / spread_in
        found: Tensor = (self.straight(plain) + self.bent(plain)) * spread_out + middle_out
        return found.reshape(len(x), *self.shape)


def fit_surrogate(
    module: nn.Module,
    inputs: Float[Tensor, "batch *dims"],
    *,
    seed: int,
    steps: int = 500,
    width: int = 16,
    batch_size: int = 64,
) -> Surrogate:
    """Fit a surrogate to a module's outputs by least squares, with Adam; a fifth of the inputs is kept to judge it.

    How good the gradients are is not known from how good the values are: an attack through a surrogate is an attack
    like any other, judged on the real classifier.

    Args:
        module: what is to be stood in for; it may be non-differentiable.
        inputs: what it gets, at least 10 of them, such as clean inputs with noise of the size of the attack.
        seed: decides initial weights, batches and the module's own randomness.
        steps: steps of Adam.
        width: hidden channels.
        batch_size: inputs a step.

    Returns:
        The surrogate, in eval mode and without gradients of its own.

    Raises:
        UsageError: if there are too few inputs, an argument means nothing, or the module gives no numbers.
    """
    if len(inputs) < 10 or min(steps, width, batch_size) < 1:
        raise UsageError(
            f"a surrogate was asked for with {len(inputs)} inputs, {steps} steps, width {width} and batches of "
            f"{batch_size}: give at least 10 inputs, and the others at least 1"
        )
    draws = Draws(check_seed(seed), Role.TRAIN, (0,))
    with drawn_from(draws, inputs.device):
        with torch.no_grad():
            outputs = module(inputs)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or len(outputs) != len(inputs):
            raise UsageError(
                f"{type(module).__name__} gives {type(outputs).__name__}, not one float tensor a batch"
            )
        x, y = inputs.detach().float(), outputs.detach().float()
        kept = len(x) // 5
        surrogate = Surrogate(x[kept:], y[kept:], width=width).to(x.device)
        optimizer = torch.optim.Adam(surrogate.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        spread = float(y.var().clamp_min(1e-12))
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(kept, len(x), (min(batch_size, len(x) - kept),), device=x.device)
                loss = (surrogate(x[rows]) - y[rows]).square().mean() / spread
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    surrogate.eval().requires_grad_(False)
    unseen = y[:kept]
    missed = (surrogate(x[:kept]) - unseen).square().mean() / unseen.var().clamp_min(1e-12)
    surrogate.unexplained = float(missed)
    return surrogate
