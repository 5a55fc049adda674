"""Layers without convolutions drawn at random, and the norms of Jacobians that torch computes of them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calipers.threat.threat_model import Norm

NORMS = (Norm.L2, Norm.L1, Norm.LINF)
_ORDER = {Norm.L1: 1, Norm.L2: 2, Norm.LINF: np.inf}


class Drawn(NamedTuple):
    """A layer in eval mode, the shape of one input, and whether it is linear (then its bound is exact)."""

    module: nn.Module
    shape: tuple[int, ...]
    exact: bool


class Function(nn.Module):
    """A function of one tensor as a module, with a name for messages."""

    def __init__(self, function: Callable[[Tensor], Any], name: str = "function") -> None:
        super().__init__()
        self.function = function
        self.name = name

    def forward(self, x: Tensor) -> Any:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


def jacobian(module: nn.Module, x: Tensor) -> np.ndarray:
    """Materialize the Jacobian of one input in float64."""
    wide = module.double()
    found = torch.autograd.functional.jacobian(lambda one: wide(one[None]).flatten(), x.double())
    return found.reshape(len(found), -1).numpy()


def operator_norm(matrix: np.ndarray, norm: Norm) -> float:
    """Compute the norm of a matrix by numpy."""
    return float(np.linalg.norm(matrix, _ORDER[norm])) if matrix.size else 0.0


def draw_pools(seed: int, count: int) -> Iterator[Drawn]:
    """Draw pools of one, two and three axes, in every setting that torch takes."""
    generator = np.random.default_rng(seed)
    kinds = {
        name: [getattr(nn, f"{name}{axes}d") for axes in (1, 2, 3)]
        for name in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
    }
    while count:
        axes = int(generator.integers(1, 4))
        name = str(generator.choice(list(kinds)))
        size = tuple(int(side) for side in generator.integers(2, {1: 13, 2: 7, 3: 5}[axes], axes))
        if name.startswith("Adaptive"):
            out = tuple(int(generator.integers(1, side + 3)) for side in size)
            module = kinds[name][axes - 1](out if axes > 1 else out[0])
        else:
            kernel = tuple(int(k) for k in generator.integers(1, 5, axes))
            settings: dict[str, Any] = {
                "stride": tuple(int(s) for s in generator.integers(1, 4, axes)),
                "padding": tuple(int(generator.integers(0, k // 2 + 1)) for k in kernel),
                "ceil_mode": bool(generator.integers(2)),
            }
            if name == "MaxPool":
                settings["dilation"] = tuple(int(d) for d in generator.integers(1, 4, axes))
            else:
                settings["count_include_pad"] = bool(generator.integers(2))
                if axes > 1 and generator.integers(3) == 0:
                    settings["divisor_override"] = int(generator.integers(1, 6))
            if axes == 1:
                settings = {key: one[0] if isinstance(one, tuple) else one for key, one in settings.items()}
            module = kinds[name][axes - 1](kernel if axes > 1 else kernel[0], **settings)
        shape = (int(generator.integers(1, 3)), *size)
        try:
            fits = bool(torch.isfinite(module(torch.zeros(1, *shape))).all())
        except RuntimeError:
            fits = False  # the window is larger than the input
        if not fits:
            continue
        count -= 1
        yield Drawn(module.eval(), shape, "Avg" in name)


def draw_norms(seed: int, count: int) -> Iterator[Drawn]:
    """Draw batch normalizations with stored statistics, and instance normalizations that store theirs."""
    generator = np.random.default_rng(seed)
    torch_generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        axes, channels = int(generator.integers(0, 4)), int(generator.integers(1, 5))
        size = tuple(int(side) for side in generator.integers(2, 4, axes))
        kinds = {
            0: [nn.BatchNorm1d],
            1: [nn.BatchNorm1d, nn.InstanceNorm1d],
            2: [nn.BatchNorm2d, nn.InstanceNorm2d],
        }
        kind: Any = generator.choice(kinds.get(axes, [nn.BatchNorm3d, nn.InstanceNorm3d]))  # type: ignore[arg-type]
        settings = {"affine": bool(generator.integers(2)), "track_running_stats": True}
        module = kind(channels, eps=float(10.0 ** generator.integers(-6, -1)), **settings).eval()
        module.running_mean.normal_(generator=torch_generator)
        module.running_var.uniform_(0.01, 3.0, generator=torch_generator)
        if module.affine:
            module.weight.data.normal_(generator=torch_generator)
        yield Drawn(module, (channels, *size), True)


def draw_structure(seed: int, count: int) -> Iterator[Drawn]:
    """Draw slices, paddings, permutations, copies, means, sums and scalings by constants."""
    generator = np.random.default_rng(seed)
    torch_generator = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    for place in range(count):
        c, h, w = whole(1, 4), whole(3, 6), whole(3, 6)
        first, step, axis, times = whole(0, 2), whole(1, 3), whole(1, 3), whole(1, 3)
        sides = tuple(whole(0, 2) for _ in range(4))
        mode = str(generator.choice(["constant", "reflect", "replicate", "circular"]))
        order = tuple(int(one) + 1 for one in generator.permutation(3))
        out = (whole(1, 9), whole(1, 9))
        chosen = torch.from_numpy(generator.integers(0, w, whole(1, 5)))
        weights = torch.randn((1, c, 1, 1) if whole(0, 1) else (c, h, w), generator=torch_generator).double()
        functions: list[tuple[str, Callable[[Tensor], Tensor]]] = [
            ("slice", lambda x, a=first, s=step: x[:, :, a::s, ::s]),  # type: ignore[misc]
            ("pad", lambda x, p=sides, m=mode: functional.pad(x, p, mode=m)),  # type: ignore[misc]
            ("negative pad", lambda x, p=sides: functional.pad(x, (-1, p[0], p[1], -1, p[2], p[3]))),  # type: ignore[misc]
            ("permute", lambda x, o=order: x.permute(0, *o).flatten(1)),  # type: ignore[misc]
            ("repeat", lambda x, t=times, a=axis: x.repeat_interleave(t, a)),  # type: ignore[misc]
            ("tile", lambda x, t=times, s=step: x.repeat(1, t, 1, s)),  # type: ignore[misc]
            ("index", lambda x, i=chosen: x[..., i]),  # type: ignore[misc]
            ("upsample", lambda x, s=step: functional.interpolate(x, scale_factor=s)),  # type: ignore[misc]
            ("resize", lambda x, out=out: functional.interpolate(x, out)),  # type: ignore[misc]
            ("mean", lambda x, a=axis: x.mean(a)),  # type: ignore[misc]
            ("means", lambda x: x.mean((2, 3), keepdim=True)),
            ("sum", lambda x, a=axis: torch.sum(x, dim=a)),  # type: ignore[misc]
            ("scale", lambda x, s=weights: x * s),  # type: ignore[misc]
            ("divide", lambda x, s=weights: (0.5 - x) / (s + s.sign())),  # type: ignore[misc]
            ("unfold", lambda x, s=step: functional.unfold(x, 3, stride=s, padding=1)),  # type: ignore[misc]
            ("cat", lambda x, a=axis: torch.cat([x, 2.0 * x[:, :1].expand_as(x), x.flip(2)], a)[:, :, :, :4]),  # type: ignore[misc]
            ("scaled parts", lambda x, s=weights: (x * s)[:, :, ::2].flatten(1).repeat(1, 2) / 3.0),  # type: ignore[misc]
            ("stack", lambda x: torch.stack([x, -x], 2)),
            ("roll", lambda x, a=axis: torch.roll(x, 1, a) - 0.1),  # type: ignore[misc]
        ]
        name, function = functions[place % len(functions)]
        if name == "pad" and mode != "constant" and max(sides) > min(h, w) - 1:
            continue
        yield Drawn(
            Function(function, f"{name} of {(c, h, w)}").eval(), (c, h, w), name not in ("cat", "stack")
        )


def draw_sorts(seed: int, count: int) -> Iterator[Drawn]:
    """Draw layers that order features: GroupSort, MaxMin in its forms, the largest along an axis."""
    generator = np.random.default_rng(seed)

    def max_min(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)

    def halves(x: Tensor) -> Tensor:
        return torch.cat([torch.maximum(x[:, ::2], x[:, 1::2]), torch.minimum(x[:, ::2], x[:, 1::2])], dim=1)

    for place in range(count):
        groups, size, side = (int(one) for one in generator.integers(1, 4, 3))
        channels = 2 * groups * size
        axis = int(generator.integers(1, 4))
        functions: list[Callable[[Tensor], Tensor]] = [
            lambda x, g=2 * groups: x.view(x.shape[0], g, -1, x.shape[3]).sort(2)[0].view(x.shape),  # type: ignore[misc]
            lambda x, g=groups: x.reshape(x.size(0), g, -1).sort(dim=-1, descending=True).values,  # type: ignore[misc]
            max_min,
            halves,
            lambda x, a=axis: x.max(a)[0],  # type: ignore[misc]
            lambda x, a=axis: x.amin(a),  # type: ignore[misc]
            lambda x: x.flatten(1).topk(2).values,
            lambda x: torch.maximum(x, torch.zeros(())) - torch.minimum(x, torch.zeros(())),
        ]
        yield Drawn(Function(functions[place % len(functions)]).eval(), (channels, side, 2), False)


def size_of(shape: tuple[int, ...]) -> int:
    """Count the features of one input."""
    return math.prod(shape)
