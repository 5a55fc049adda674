"""Modules that hide a gradient in ways of their own, and some that do not, for the tests of the diagnosis."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from calipers.sources.datasets import load_dataset
from calipers.sources.models import load_model
from calipers.target import Target


def images(count: int, *, skip: int = 0) -> tuple[Tensor, Tensor]:
    data = load_dataset("bundled:fashion-mnist").take(skip=skip, limit=count)
    return torch.stack([torch.as_tensor(each.image) for each in data]), torch.tensor(
        [each.label for each in data]
    )


def before(module: nn.Module, *, stochastic: bool = False) -> Target:
    """Put a module before the bundled plain network."""
    net = nn.Sequential()
    net.add_module("pre", module)
    net.add_module("classifier", load_model("bundled:fashion-cnn28-plain").module)
    return Target(
        net.eval(), num_classes=10, input_shape=(1, 28, 28), stochastic=stochastic, name=type(module).__name__
    )


def behind(module: nn.Module) -> Target:
    """Put a module behind the bundled plain network."""
    net = nn.Sequential()
    net.add_module("classifier", load_model("bundled:fashion-cnn28-plain").module)
    net.add_module("post", module)
    return Target(
        net.eval(), num_classes=10, input_shape=(1, 28, 28), name=type(module).__name__, probe=False
    )


class Round(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 7).round() / 7


class StraightThrough(nn.Module):
    """Rounds, with a gradient that is not that of rounding."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((x * 7).round() / 7 - x).detach()


class Jpeg(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found = []
        for image in x.detach().cpu().numpy():
            kept = io.BytesIO()
            Image.fromarray((image[0] * 255).clip(0, 255).round().astype(np.uint8)).save(
                kept, "JPEG", quality=75
            )
            found.append(np.asarray(Image.open(kept), dtype=np.float32) / 255)
        return torch.from_numpy(np.stack(found))[:, None].to(x)


class Numpy(nn.Module):
    """Smooth, and outside torch: autograd refuses."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(2 * x.numpy()))


class NoGrad(nn.Module):
    """Smooth, and outside the graph: the gradient is absent."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return functional.avg_pool2d(x, 3, 1, 1)


class Levels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 7).long()


class FromLevels(nn.Module):
    def forward(self, code: Tensor) -> Tensor:
        return code.float() / 7


class Sharp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(1e6 * (x - 0.37))


class Dropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > 0.3)


class DeepTanh(nn.Module):
    """Thirty saturating steps, each of which feeds the next."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(30):
            x = torch.tanh(3 * x)
        return x


class Descent(nn.Module):
    """Fits its output to its input by gradient steps whose graph is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 9)

    def forward(self, x: Tensor) -> Tensor:
        z = x.detach().clone()
        with torch.enable_grad():
            for _ in range(20):
                z = z.detach().requires_grad_(True)
                (slope,) = torch.autograd.grad((self.blur(z) - x).square().sum(), z)
                z = z - 0.2 * slope
        return z.detach()


class SharpSoftmax(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return (1e6 * logits).softmax(1)


class Harmless(nn.Sequential):
    """Twenty kinds of layers of which none hides anything."""

    def __init__(self) -> None:
        generator = torch.random.get_rng_state()
        torch.random.default_generator.manual_seed(0)
        super().__init__(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, groups=2), nn.GroupNorm(2, 8), nn.GELU(), nn.AvgPool2d(2), nn.SiLU()),
            *(nn.Hardswish(), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(288, 64), nn.LayerNorm(64)),
            *(nn.ELU(), nn.Tanh(), nn.Linear(64, 32), nn.Softplus(), nn.Sigmoid(), nn.Linear(32, 16)),
            *(nn.Softmax(1), nn.Linear(16, 10), nn.ReLU6(), nn.Mish(), nn.Hardtanh()),
        )
        torch.random.set_rng_state(generator)
