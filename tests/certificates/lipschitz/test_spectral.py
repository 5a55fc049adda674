"""Bounds on the norms of 2 000 drawn convolutions: none is violated, and known ones are met."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from drawn_convolutions import draw, jacobian
from torch import nn

from calipers.certificates.lipschitz import matrices, spectral
from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.spectral import convolution_norm, pad_norm
from calipers.certificates.lipschitz.torus import Symbol, circulant_norm
from calipers.errors import UsageError
from calipers.threat.threat_model import Norm


def _norms(matrix: np.ndarray) -> dict[Norm, float]:
    return {
        Norm.L1: float(np.abs(matrix).sum(0).max()),
        Norm.L2: float(np.linalg.norm(matrix, 2)),
        Norm.LINF: float(np.abs(matrix).sum(1).max()),
    }


def _conv2d(seed: int, inputs: int, outputs: int, **settings: object) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, bias=False, dtype=torch.float64, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.random.default_rng(seed).standard_normal(layer.weight.shape)))
    return layer


@pytest.mark.parametrize("seed", range(8))
def test_no_bound_is_below_the_jacobian(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 000 drawn layers; every method, norm and layer is held against the matrix that torch itself gives."""
    for module, size, matrix in draw(1000 + seed, 250):
        convolution = Convolution.of(module)
        for norm, true in _norms(matrix).items():
            least = true * (1 - 1e-14)  # the reference itself is rounded
            for method, known in (("grid", size), ("exact", size), ("auto", None)):
                bound = convolution_norm(convolution, norm, size=known, method=method)
                assert bound.value >= least, (module, size, norm, bound)
        with monkeypatch.context() as patch:  # small as they are, by the factorization too
            patch.setattr(spectral, "SVD_SIDE", 0)
            patch.setattr(matrices, "SVD_SIDE", 0)
            bound = convolution_norm(convolution, Norm.L2, size=size, method="exact")
            assert bound.value >= np.linalg.norm(matrix, 2) * (1 - 1e-14), (module, size, bound)


@pytest.mark.parametrize("factorized", [False, True])
def test_exact_is_exact(factorized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """l1 and linf to the last digits, l2 within 0.1 % where it is proved by a factorization."""
    if factorized:
        monkeypatch.setattr(spectral, "SVD_SIDE", 0)
        monkeypatch.setattr(matrices, "SVD_SIDE", 0)
    for module, size, matrix in draw(2000, 200):
        for norm, true in _norms(matrix).items():
            value, method = convolution_norm(Convolution.of(module), norm, size=size, method="exact")
            if not method.startswith("exact"):
                assert factorized and norm is Norm.L2
                continue
            assert value <= true * (1.001 if "Cholesky" in method else 1 + 1e-9), (module, size)
            assert true == 0 or value / 1.05 < true


@pytest.mark.parametrize(("size", "most"), [(8, 1.05), (12, 1.025), (16, 1.015)])
def test_the_grid_is_tight_on_zero_padded_three_by_three(size: int, most: float) -> None:
    ratios = []
    for seed in range(9):
        convolution = Convolution.of(_conv2d(seed, 8, 16, kernel_size=3, padding=1))
        true = convolution_norm(convolution, Norm.L2, size=(size, size), method="exact").value
        bound = convolution_norm(convolution, Norm.L2, size=(size, size), method="grid").value
        assert bound >= true / 1.001
        ratios.append(bound / true)
    assert np.median(ratios) <= most


def test_a_factorization_proves_the_known_norm_of_the_laplacian() -> None:
    """On n by n pixels with zero padding, (2 - 2 cos) summed over two axes at its largest."""
    kernel = np.array([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
    convolution = Convolution(kernel, (1, 1), (1, 1), ((1, 1), (1, 1)))
    for n in (8, 30, 60):
        true = 4 + 4 * math.cos(math.pi / (n + 1))
        for method, most in (
            ("exact", 1.001),
            ("grid", 1 + 1e-9),
        ):  # a circle that changes sign is exact here
            value = convolution_norm(convolution, Norm.L2, size=(n, n), method=method).value
            assert true <= value <= true * most
            assert value / 1.05 < true
    assert 8 <= convolution_norm(convolution, Norm.L2).value <= 8.001


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        (
            {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
            (20, 20),
            "exact at 20x20 (frequencies)",
        ),
        (
            {"kernel_size": 4, "padding": "same", "padding_mode": "circular", "groups": 2},
            (18, 21),
            "exact at 18x21 (frequencies)",
        ),
        (
            {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 2},
            (26, 28),
            "exact at 26x28 (frequencies)",
        ),
        ({"kernel_size": 3, "padding": 1}, (16, 16), "exact at 16x16 (Cholesky)"),
        ({"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, (16, 16), "exact at 16x16 (Cholesky)"),
        ({"kernel_size": 2}, (3, 3), "exact at 3x3 (SVD)"),
    ],
)
def test_each_way_to_the_exact_norm_says_its_name(settings: dict, size: tuple[int, int], words: str) -> None:
    module = _conv2d(3, 2, 2, **settings)
    true = np.linalg.norm(jacobian(module, 2, size), 2)
    value, method = convolution_norm(Convolution.of(module), Norm.L2, size=size)
    assert method == words
    assert true * (1 - 1e-14) <= value <= true * 1.001


def _first(found: Callable[[int], bool]) -> int:
    """Find the first seed below 200 for which a shortcut falls short."""
    return next(seed for seed in range(200) if found(seed))


def _circle(convolution: Convolution, n: int, stride: int = 1) -> float:
    symbol = Symbol(convolution.grouped, (stride, stride), convolution.dilation)
    return circulant_norm(symbol, (-(-n // stride),) * 2, dilation=convolution.dilation)


def _trap(settings: dict, n: int, shortcut: Callable[[Convolution], float], share: float) -> None:
    """Find a kernel on which the shortcut is below the share of the true norm, and hold every method to the truth."""

    def falls_short(seed: int) -> bool:
        module = _conv2d(seed, 1, 1, **settings)
        return shortcut(Convolution.of(module)) < share * np.linalg.norm(jacobian(module, 1, (n, n)), 2)

    module = _conv2d(_first(falls_short), 1, 1, **settings)
    true = np.linalg.norm(jacobian(module, 1, (n, n)), 2)
    for method, size in itertools.product(("auto", "grid", "exact"), ((n, n), None)):
        assert convolution_norm(Convolution.of(module), Norm.L2, size=size, method=method).value >= true


def test_the_circular_norm_is_no_bound_where_padding_is_wider_than_the_kernel() -> None:
    _trap({"kernel_size": 3, "padding": 2, "padding_mode": "circular"}, 6, lambda c: _circle(c, 6), 0.8)


def test_the_circular_norm_is_no_bound_for_zero_padding() -> None:
    _trap({"kernel_size": 3, "padding": 1}, 3, lambda c: _circle(c, 3), 0.95)


def test_polyphase_is_no_bound_where_the_stride_does_not_divide_a_circle() -> None:
    settings = {"kernel_size": 3, "padding": 1, "padding_mode": "circular", "stride": 3}
    _trap(settings, 7, lambda c: _circle(c, 7, stride=3), 0.8)


def test_the_norm_of_the_reshaped_kernel_is_no_bound() -> None:
    _trap(
        {"kernel_size": 3, "padding": 1}, 8, lambda c: float(np.linalg.norm(c.kernel.reshape(1, -1), 2)), 0.7
    )


def test_groups_count_by_their_maximum() -> None:
    module = _conv2d(0, 4, 4, kernel_size=3, padding=1, groups=2)
    whole = convolution_norm(Convolution.of(module), Norm.L2, size=(9, 9), method="grid").value
    parts = [
        Convolution(Convolution.of(module).kernel[half], (1, 1), (1, 1), ((1, 1), (1, 1)))
        for half in (slice(0, 2), slice(2, 4))
    ]
    norms = [convolution_norm(part, Norm.L2, size=(9, 9), method="grid").value for part in parts]
    assert whole == pytest.approx(max(norms), rel=1e-3)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2, Norm.LINF])
def test_pad_norm_is_that_of_torch_s_padding(mode: str, norm: Norm) -> None:
    torch_mode = "constant" if mode == "zeros" else mode
    for n, before, after in itertools.product((1, 2, 3, 6), (0, 1, 2, 5), (0, 1, 3)):
        if (mode == "circular" and max(before, after) > n) or (mode == "reflect" and max(before, after) >= n):
            continue
        pad = nn.functional.pad(torch.eye(n, dtype=torch.float64)[:, None], (before, after), mode=torch_mode)
        true = _norms(pad[:, 0].T.numpy())[norm]
        found = pad_norm((n,), ((before, after),), mode, norm)  # type: ignore[arg-type]
        assert true * (1 - 1e-15) <= found <= true * (1 + 1e-12)
        assert pad_norm(None, ((before, after),), mode, norm) >= found  # type: ignore[arg-type]


def test_weights_of_any_scale_keep_their_bound() -> None:
    kernel = np.random.default_rng(0).standard_normal((3, 2, 3))
    for norm, method, size in itertools.product(
        (Norm.L1, Norm.L2, Norm.LINF), ("grid", "exact"), (None, (9,))
    ):
        values = [
            convolution_norm(
                Convolution(kernel * scale, (1,), (1,), ((1, 1),)), norm, size=size, method=method
            ).value
            / scale
            for scale in (2.0**-700, 1.0, 2.0**700)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-12)
        assert values[2] == pytest.approx(values[1], rel=1e-12)


def test_a_kernel_of_zeros_moves_nothing() -> None:
    convolution = Convolution(np.zeros((2, 2, 3)), (1,), (1,), ((1, 1),))
    for norm, size in itertools.product((Norm.L1, Norm.L2, Norm.LINF), (None, (5,))):
        assert convolution_norm(convolution, norm, size=size).value == 0.0


def test_a_convolution_that_reads_only_padding_is_bounded() -> None:
    kernel = np.ones((1, 1, 1, 1))
    convolution = Convolution(kernel, (9, 9), (1, 1), ((9, 9), (9, 9)))
    for method in ("grid", "exact"):
        assert convolution_norm(convolution, Norm.L2, size=(2, 2), method=method).value >= 1.0


def test_what_cannot_be_asked_is_refused() -> None:
    convolution = Convolution(np.ones((1, 1, 3)), (1,), (1,), ((0, 0),))
    with pytest.raises(UsageError, match="l0"):
        convolution_norm(convolution, Norm.L0)
    with pytest.raises(UsageError, match="leaves no output"):
        convolution_norm(convolution, Norm.L1, size=(2,))
    with pytest.raises(UsageError, match="l0"):
        pad_norm(None, ((1, 1),), "zeros", Norm.L0)
