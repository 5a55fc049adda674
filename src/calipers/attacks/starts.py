"""Starts: where a search within a size begins, a random point of each input's ball."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.randomness import Draws
from calipers.threat.norms import sample
from calipers.threat.threat_model import ThreatModel

__all__ = ["random_starts"]


def random_starts(
    x: Float[Tensor, "batch *dims"], rows: Int[Tensor, " rows"], threat: ThreatModel, draws: Draws
) -> Float[Tensor, "rows *dims"]:
    """Draw a point of the ball around some inputs, uniformly and each from its own stream.

    Args:
        x: clean inputs.
        rows: which of them.
        threat: norm and size of the ball.
        draws: the streams, one an input of ``x``; their chunk 0 is used.

    Returns:
        Points, which may lie outside the box.
    """
    if not len(rows):
        return x[rows]
    radius = torch.full((1,), threat.eps or 0.0)
    drawn = [sample((1, *x.shape[1:]), radius, threat.norm, draws[row].generator(0)) for row in rows.tolist()]
    return x[rows] + torch.cat(drawn).to(x)
