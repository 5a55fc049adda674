r"""Stochastic activation pruning (Dhillon et al. 2018): activations are thrown away at random, small ones first.

**Claim.** After every ReLU of a pretrained network, draw as many activations as the map has, with replacement and with
probability proportional to their size; set to zero what was never drawn, and scale up what was, so that the mean is
kept. An adversary who does not know the draws is said to be one move behind.

**Mechanism.** With :math:`p_j = |h_j| / \sum_i |h_i|` and r draws, activation j is kept with probability
:math:`1 - (1 - p_j)^r` and divided by it.

**Flaw.** The gradient is that of one draw: what was pruned passes none, and what survived by luck stands for all that
did not, divided by a small probability. The mean of a few such gradients is still noise.

**Recipe.** ``PGD(steps=20, loss="margin", gradient=EOT(10, inner=BPDA({"prune*": identity})))``: real draws forward,
and backward the network that was never pruned.

**Erratum.** The attack of Athalye, Carlini and Wagner 2018 (EOT alone) broke a re-implementation that prunes before the
ReLU, which weakens the defense. On the defense itself it is not effective, and BPDA in a new use is: it leaves 0.1 % on
CIFAR-10 (Dhillon and Carlini 2020, arXiv:2010.00071). All of them are rows here.
"""

from calipers.defenses.stochastic_activation_pruning.defense import StochasticActivationPruning
from calipers.defenses.stochastic_activation_pruning.layers import LaterPruning, Pruning, drawn_at_least_once
from calipers.defenses.stochastic_activation_pruning.networks import PrunedConvNet, PrunedResNet, prune

__all__ = [
    "LaterPruning",
    "PrunedConvNet",
    "PrunedResNet",
    "Pruning",
    "StochasticActivationPruning",
    "drawn_at_least_once",
    "prune",
]
