"""Banded Gram matrices of convolutions, and their rounding."""

import numpy as np
import pytest
from drawn_convolutions import draw

from calipers.certificates.lipschitz.convolution import Convolution
from calipers.certificates.lipschitz.gram import ConvolutionGram


def _dense(gram: ConvolutionGram) -> np.ndarray:
    """Write out the band."""
    band = gram.band()
    full = np.zeros((gram.unknowns, gram.unknowns))
    for row in range(len(band)):
        length = gram.unknowns - row
        full[np.arange(row, gram.unknowns), np.arange(length)] = band[row, :length]
        assert not band[row, length:].any()
    return full + np.tril(full, -1).T


@pytest.mark.parametrize("seed", [100, 101])
def test_band_and_action_are_those_of_both_gram_matrices(seed: int) -> None:
    """Same eigenvalues as the Gram matrix of the Jacobian, whose unknowns stand in another order."""
    generator = np.random.default_rng(seed)
    for module, size, jacobian in draw(seed, 80):
        if module.padding_mode != "zeros" or max(jacobian.shape) > 400:
            continue
        long = jacobian.T if module.transposed else jacobian
        for gram, matrix in zip(
            ConvolutionGram.both(Convolution.of(module), size), (long.T @ long, long @ long.T), strict=True
        ):
            dense = _dense(gram)
            assert dense.shape == matrix.shape
            np.testing.assert_allclose(np.linalg.eigvalsh(dense), np.linalg.eigvalsh(matrix), atol=1e-9)
            vector = generator.standard_normal(gram.unknowns)
            np.testing.assert_allclose(gram.apply(vector), dense @ vector, atol=1e-9)


def test_the_longest_axis_is_the_slowest() -> None:
    kernel = np.ones((1, 1, 3, 3))
    for size in ((4, 30), (30, 4)):
        gram, _ = ConvolutionGram.both(Convolution(kernel, (1, 1), (1, 1), ((1, 1), (1, 1))), size)
        assert gram.width == 2 * 4 + 2
