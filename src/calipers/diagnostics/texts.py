"""Texts: what each check says when it is red, when it is green, and what to do about it."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["TEXTS", "Text"]


class Text(NamedTuple):
    """The words of a check.

    Args:
        red: what red means.
        green: what green means, and what it does not.
        remedy: what to do.
    """

    red: str
    green: str
    remedy: str


_VIEWS = "Look at which module hides the gradient, and give the attack another view of it (BPDA, EOT)."

TEXTS: Final[dict[str, Text]] = {
    "one-step-beats-iterative": Text(
        "One step finds what many steps miss: following the gradient leads away.",
        "Many steps find what one step finds.",
        _VIEWS,
    ),
    "black-box-beats-white-box": Text(
        "A search that sees scores alone finds what the gradient misses: the gradient misleads.",
        "A search that sees scores alone finds nothing more.",
        _VIEWS,
    ),
    "unbounded-attack-fails": Text(
        "With any perturbation allowed the attack still fails, though it could turn an input into another.",
        "With any perturbation allowed the attack always succeeds.",
        _VIEWS,
    ),
    "random-search-finds-more": Text(
        "Points drawn at random are adversarial where the attack found none.",
        "Points drawn at random show nothing that the attack missed.",
        _VIEWS,
    ),
    "success-falls-with-size": Text(
        "A larger perturbation does not help the attack, as it must.",
        "The attack succeeds more often the more it may change.",
        _VIEWS,
    ),
    "unavailable-gradients": Text(
        "For some inputs the loss of the attack has no gradient at all, or a gradient of zeros.",
        "Every input has a gradient that is not 0.",
        "Replace the module that stops it (BPDA), take another loss, or attack by scores.",
    ),
    "unstable-predictions": Text(
        "The loss changes so much from one point to its neighbours that its gradient says little.",
        "The loss changes little from one point to its neighbours.",
        "Average the gradient over neighbours or over the classifier's own draws (EOT).",
    ),
    "silent-success": Text(
        "The search came across adversarial examples and reported none of them.",
        "The search reports what it comes across.",
        "Keep the best point of the search and not its last one.",
    ),
    "incomplete-optimization": Text(
        "The loss was still rising when the attack stopped.",
        "The loss had stopped rising when the attack stopped.",
        "Give it more steps, or another step size.",
    ),
    "transfer-failure": Text(
        "What fools the classifier that was searched does not fool the one that is judged.",
        "The classifier that is searched is the one that is judged.",
        "Attack the real classifier, end to end.",
    ),
    "unconstrained-attack-fails": Text(
        "The attack fails without any limit on the perturbation, and did not come across a success on its way.",
        "The attack succeeds when nothing limits it.",
        "Take another loss, or another view of the gradient.",
    ),
    "randomized": Text(
        "The same inputs get other scores at each call.",
        "The same inputs get the same scores.",
        "Attack by EOT, and judge by many fresh draws.",
    ),
    "softmax-output": Text(
        "The outputs are probabilities: in floating point they are 0 and 1 where the classifier is sure.",
        "The outputs are no probabilities.",
        "Attack the scores before the softmax, or replace its backward by the identity (BPDA).",
    ),
    "zero-gradient": Text(
        "For some inputs a loss that does not saturate has a gradient of exactly 0.",
        "The gradient of a loss that does not saturate is nowhere 0.",
        "Replace the module that stops it (BPDA), or attack by scores.",
    ),
    "square-better": Text(
        "Square lowers the accuracy below what the gradient reached.",
        "Square does not lower the accuracy further.",
        _VIEWS,
    ),
    "optimization-at-inference": Text(
        "The classifier runs a backward pass of its own in each forward pass: it optimizes while it answers.",
        "No backward pass runs in a forward pass.",
        "Replace the backward of the module that optimizes by the identity (BPDA), or search another variable.",
    ),
    "few-classes": Text(
        "There are too few classes for the DLR loss or for the targets of the attack.",
        "There are enough classes for every loss.",
        "Take the margin as loss.",
    ),
    "binarization": Text(
        "In a ball that surely holds an adversarial example the attack often finds none: it is too weak here.",
        "Where an adversarial example surely exists the attack finds it.",
        "Make the attack stronger until it passes; only then believe what it says of the classifier.",
    ),
    "more-steps-help": Text(
        "Twice the steps bring down more inputs: the attack has not converged.",
        "Twice the steps bring down no more.",
        "Give it more steps.",
    ),
    "more-restarts-help": Text(
        "Twice the restarts bring down more inputs: the attack has not converged.",
        "Twice the restarts bring down no more.",
        "Give it more restarts.",
    ),
}
"""The checks of a whole classifier by name; those of its modules are in :mod:`calipers.diagnostics.localize`."""
