"""Detection by a logistic regression: its fit by Newton's method, and how well it tells two sets apart."""

from typing import Final, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from calipers.errors import UsageError

__all__ = ["Logistic", "Roc", "fit_logistic", "roc"]

_RIDGE: Final = 1e-3


@final
class Roc(NamedTuple):
    """How well scores tell positives from negatives, at every threshold.

    Args:
        false_positives: the share of negatives above each threshold, rising from 0 to 1.
        true_positives: the share of positives above it.
        area: under the curve: how often a positive scores above a negative, ties half.
    """

    false_positives: Float[Tensor, " thresholds"]
    true_positives: Float[Tensor, " thresholds"]
    area: float

    def at(self, rate: float) -> float:
        """Read the share of positives that are caught at a rate of false positives.

        Args:
            rate: the largest share of negatives that may be rejected.

        Returns:
            The share of positives above the threshold that this allows.
        """
        return float(self.true_positives[self.false_positives <= rate].max())


def roc(negatives: Float[Tensor, " negatives"], positives: Float[Tensor, " positives"]) -> Roc:
    """Compute the curve of scores.

    Args:
        negatives: scores of clean inputs.
        positives: scores of adversarial ones.

    Returns:
        The curve in float64.

    Raises:
        UsageError: if one of the sets is empty.
    """
    if not len(negatives) or not len(positives):
        raise UsageError(
            f"there are {len(negatives)} negatives and {len(positives)} positives: give some of each"
        )
    low, high = negatives.double().sort().values, positives.double().sort().values
    cuts = torch.unique(torch.cat([low, high])).flip(0)
    cuts = torch.cat([cuts.new_full((1,), torch.inf), cuts])

    def above(scores: Tensor) -> Tensor:
        return 1 - torch.searchsorted(scores, cuts).double() / len(scores)

    false, true = above(low), above(high)
    area = float(torch.trapezoid(true, false))
    return Roc(false, true, area)


@final
class Logistic(nn.Module):
    """A logistic regression on the dimensions: log-odds of being adversarial, and where rejection begins.

    Args:
        columns: how many numbers it is given.
    """

    mean: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    threshold: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        for name in ("mean", "weight"):
            self.register_buffer(name, torch.zeros(columns))
        self.register_buffer("spread", torch.ones(columns))
        for name in ("bias", "threshold"):
            self.register_buffer(name, torch.zeros(1))

    def forward(self, features: Float[Tensor, "batch columns"]) -> Float[Tensor, " batch"]:
        """Compute log-odds less the threshold.

        Args:
            features: the dimensions.

        Returns:
            One number an input: above 0 is rejected.
        """
        return (features - self.mean) / self.spread @ self.weight + self.bias - self.threshold


def fit_logistic(
    features: Float[Tensor, "rows columns"], positive: Bool[Tensor, " rows"], *, ridge: float = _RIDGE
) -> Logistic:
    """Fit a logistic regression by Newton's method, in float64, on standardized columns.

    Args:
        features: the numbers.
        positive: whether each row is adversarial.
        ridge: the weight of the squared coefficients, as a share of the number of rows; the bias has none.

    Returns:
        The regression, its threshold 0.
    """
    x, y = features.double(), positive.double()
    fitted = Logistic(x.shape[1])
    fitted.mean, fitted.spread = x.mean(0), x.std(0).clamp_min(1e-9)
    design = torch.cat([(x - fitted.mean) / fitted.spread, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    penalty = ridge * len(x) * torch.eye(design.shape[1], dtype=x.dtype)
    penalty[-1, -1] = 1e-9
    found = torch.zeros(design.shape[1], dtype=x.dtype)

    def cost(at: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(design @ at, y, reduction="sum") + (
            at @ penalty @ at / 2
        )

    for _ in range(50):
        odds = (design @ found).sigmoid()
        slope = design.T @ (odds - y) + penalty @ found
        curvature = (design * (odds * (1 - odds))[:, None]).T @ design + penalty
        step = torch.linalg.solve(curvature, slope)
        while float(cost(found - step)) > float(cost(found)) and float(step.norm()) > 1e-12:
            step = step / 2
        found = found - step
        if float(step.norm()) < 1e-10:
            break
    fitted.weight, fitted.bias = found[:-1], found[-1:]
    return fitted.float()
