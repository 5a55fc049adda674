"""Per-input losses that rise towards the adversary's goal: the one place where a sign is decided."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calipers.errors import UsageError
from calipers.threat.threat_model import Goal, Targeted

__all__ = ["OBJECTIVES", "cross_entropy", "dlr", "margin"]


def _wanted(goal: Targeted, logits: Tensor) -> Tensor:
    if len(goal.classes) != len(logits):
        raise UsageError(
            f"the goal names {len(goal.classes)} classes for {len(logits)} inputs: give one each"
        )
    return torch.tensor(goal.classes, device=logits.device)


def _others_largest(logits: Tensor, excluded: Tensor) -> Tensor:
    return logits.scatter(1, excluded[:, None], -torch.inf).amax(1)


def cross_entropy(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], goal: Goal
) -> Float[Tensor, " batch"]:
    """Cross-entropy of the label (untargeted), or minus that of the wanted class (targeted).

    Args:
        logits: scores before softmax.
        labels: the true classes.
        goal: what the adversary wants.

    Returns:
        One value an input; larger is nearer the goal.
    """
    log_probability = logits.log_softmax(1)
    if isinstance(goal, Targeted):
        return log_probability.gather(1, _wanted(goal, logits)[:, None])[:, 0]
    return -log_probability.gather(1, labels[:, None])[:, 0]


def margin(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], goal: Goal
) -> Float[Tensor, " batch"]:
    """Largest other logit minus the label's, or the wanted class's minus the largest other.

    Args:
        logits: scores before softmax.
        labels: the true classes.
        goal: what the adversary wants.

    Returns:
        One value an input; positive exactly where the goal is reached.
    """
    if isinstance(goal, Targeted):
        wanted = _wanted(goal, logits)
        return logits.gather(1, wanted[:, None])[:, 0] - _others_largest(logits, wanted)
    return _others_largest(logits, labels) - logits.gather(1, labels[:, None])[:, 0]


def dlr(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], goal: Goal
) -> Float[Tensor, " batch"]:
    """Difference of logits ratio, which does not change when the logits are shifted or scaled.

    Reference: Croce and Hein 2020, arXiv:2003.01690, equations 6 (untargeted) and 7 (targeted).

    Args:
        logits: scores before softmax, of at least 3 classes (4 when targeted).
        labels: the true classes.
        goal: what the adversary wants.

    Returns:
        One value an input; larger is nearer the goal.

    Raises:
        UsageError: if there are too few classes.
    """
    needed = 4 if isinstance(goal, Targeted) else 3
    if logits.shape[1] < needed:
        raise UsageError(f"dlr needs {needed} classes and got {logits.shape[1]}: use margin")
    ordered = logits.sort(dim=1, descending=True).values
    own = logits.gather(1, labels[:, None])[:, 0]
    if isinstance(goal, Targeted):
        wanted = logits.gather(1, _wanted(goal, logits)[:, None])[:, 0]
        spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
        return (wanted - own) / spread.clamp_min(1e-12)
    spread = ordered[:, 0] - ordered[:, 2]
    return (_others_largest(logits, labels) - own) / spread.clamp_min(1e-12)


OBJECTIVES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
"""The objectives by name."""
