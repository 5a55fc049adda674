"""Every bound of a layer against the norm of its materialized Jacobian, over drawn settings."""

from collections.abc import Callable, Iterator

import pytest
import torch
from drawn_layers import (
    NORMS,
    Drawn,
    draw_norms,
    draw_pools,
    draw_sorts,
    draw_structure,
    jacobian,
    operator_norm,
)

from calipers.certificates.lipschitz.network import lipschitz_upper_bound


@pytest.mark.parametrize(
    ("draw", "count"), [(draw_pools, 500), (draw_norms, 150), (draw_structure, 380), (draw_sorts, 120)]
)
def test_no_jacobian_exceeds_the_bound(draw: Callable[[int, int], Iterator[Drawn]], count: int) -> None:
    """Linear layers meet it: their bound is their norm."""
    generator = torch.Generator().manual_seed(0)
    for place, (module, shape, exact) in enumerate(draw(0, count)):
        norm = NORMS[place % 4 % 3]  # l2 twice as often
        upper = float(lipschitz_upper_bound(module, shape, norm))
        true = operator_norm(jacobian(module, torch.randn(shape, generator=generator)), norm)
        assert true <= upper, (module, shape, norm)
        if exact:
            assert upper <= true * (1 + 1e-9), (module, shape, norm)
