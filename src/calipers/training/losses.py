"""Losses: cross-entropy over noisy copies with consistency between them, and cross-entropy with a margin."""

from __future__ import annotations

import math

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["margin_loss", "noise_loss"]


def noise_loss(
    logits: Float[Tensor, "draws batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    consistency: float,
    entropy: float,
) -> Float[Tensor, ""]:
    r"""Mean loss of a batch whose images were each drawn with several noises.

    With F_i the softmax of the i-th copy, F̄ their mean over the m copies, λ = `consistency`, η = `entropy`:

        (1/m) Σ_i [ CE(F_i, y) + λ KL(F̄ ‖ F_i) ] + η H(F̄)

    With λ = 0 the entropy term is left out too, and what remains is the augmentation of Cohen et al. 2019.

    Args:
        logits: of shape (draws, batch, classes).
        labels: of shape (batch,).
        consistency: weight λ of the divergence of each copy from the mean.
        entropy: weight η of the entropy of the mean.

    Returns:
        A scalar, in nats.

    Reference: Jeong and Shin 2020, arXiv:2006.04062, section 3.
    """
    draws, batch, classes = logits.shape
    log_each = functional.log_softmax(logits.float(), dim=2)
    cross_entropy = functional.nll_loss(
        log_each.reshape(draws * batch, classes), labels.expand(draws, batch).reshape(-1)
    )
    if consistency == 0:
        return cross_entropy
    log_mean = log_each.logsumexp(dim=0, keepdim=True) - math.log(draws)
    mean = log_mean.exp()
    divergence = (mean * (log_mean - log_each)).sum(dim=2).mean()
    mean_entropy = -(mean * log_mean).sum(dim=2).mean()
    return cross_entropy + consistency * divergence + entropy * mean_entropy


def margin_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    margin: float,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Mean cross-entropy after the true logit was lowered, and all were multiplied by a temperature.

    The true logit loses √2 · `margin`, by which a difference of two logits of a 1-Lipschitz network can move
    within an l2 distance of `margin`.

    Args:
        logits: one row an image, in units of the input.
        labels: the true classes.
        margin: an l2 radius in units of the input, 0 or more.
        temperature: above 0.

    Returns:
        A scalar, in nats.

    Reference: Prach and Lampert 2022, arXiv:2208.03160, section 4, with offset √2 · `margin` and the inverse of
    its temperature; it is not divided by the temperature again, to which Adam is blind.

    >>> import torch
    >>> margin_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), margin=0.5**0.5, temperature=9.0)
    tensor(0.6931)
    """
    offset = math.sqrt(2) * margin * functional.one_hot(labels, logits.shape[1])
    return functional.cross_entropy(temperature * (logits.float() - offset), labels)
