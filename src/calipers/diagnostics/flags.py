"""AutoAttack's warning flags: what in a classifier makes a standard evaluation unreliable.

Reference: Croce and Hein 2020, arXiv:2003.01690; the thresholds are those of the authors' code.

Differs from the code: an optimization inside the forward pass is seen by the backward operations that run in it; what
Square brings down beyond the attack counts where the gradients of `Standard` do not bring it down either.
"""

import math
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from calipers.attacks.standard import Standard
from calipers.attacks.view import OutOfTime
from calipers.diagnostics.capture import capture
from calipers.diagnostics.case import Case, Ran
from calipers.diagnostics.indicators import without_gradient
from calipers.evidence.records import Finding
from calipers.target import Access

__all__ = [
    "few_classes",
    "optimization_at_inference",
    "randomized",
    "softmax_output",
    "square_better",
    "zero_gradient",
]

_PASSES = 5
_APART = 1e-4
_SLACK = 1e-5
_ROWS = 64


def randomized(case: Case) -> Finding:
    """Compare the normalized scores of five passes.

    Args:
        case: the case.

    Returns:
        The finding; its statistic is the largest l2 distance.
    """
    name, began, rows = "randomized", perf_counter(), list(range(len(case.x)))[:_ROWS]
    if case.target.access < Access.SCORES:
        answers = [
            case.target.predict(case.x[rows], draws=case.draws(rows).fold(turn)) for turn in range(_PASSES)
        ]
        apart = float(any(bool((each != answers[0]).any()) for each in answers))
    else:
        with torch.no_grad():
            passes = [
                torch.nn.functional.normalize(
                    case.target.logits(case.x[rows], draws=case.draws(rows).fold(turn)).float(), dim=1
                )
                for turn in range(_PASSES)
            ]
        apart = float(torch.stack([(each - passes[-1]).norm(dim=1).max() for each in passes]).max())
    words = f"largest l2 distance of normalized scores in {_PASSES} passes of {len(rows)} inputs"
    red = None if math.isnan(apart) else apart > _APART
    return case.finding(name, apart, _APART, red, words, seconds=perf_counter() - began)


def softmax_output(case: Case) -> Finding:
    """Look whether the scores lie in [0, 1] and sum to 1.

    Args:
        case: the case.

    Returns:
        The finding; its statistic is the largest distance from that. Scores that have all been rounded to half
        precision are given the slack of that. Of a detector, its rejection score is left out.
    """
    name, rows = "softmax-output", list(range(len(case.x)))[:_ROWS]
    if case.target.access < Access.SCORES:
        return case.finding(name, math.nan, _SLACK, None, "the classifier gives no scores")
    with torch.no_grad():
        scores = case.target.logits(case.x[rows], draws=case.draws(rows)).double()
    scores = scores[:, : case.target.num_classes]
    outside = torch.maximum((-scores).amax(), (scores - 1).amax()).clamp_min(0.0)
    off, slack = float(torch.maximum(outside, (scores.sum(1) - 1).abs().amax())), _slack(scores)
    red = None if math.isnan(off) else off < slack
    return case.finding(name, off, slack, red, "distance of the outputs from probabilities")


def _slack(scores: Tensor) -> float:
    # probabilities that were rounded one by one sum to 1 within the rounding of all of them
    for kind in (
        torch.bfloat16,
        torch.float16,
    ):  # the coarser first: what it holds the other one may hold too
        if bool((scores.to(kind).double() == scores).all()):
            return max(_SLACK, torch.finfo(kind).eps)
    return _SLACK


def zero_gradient(case: Case) -> Finding:
    """Ask for the gradient of the DLR loss, or of the margin where there are too few classes.

    Args:
        case: the case.

    Returns:
        The finding; its statistic is the share of inputs where it is 0.
    """
    name, began = "zero-gradient", perf_counter()
    if case.target.access < case.gradient.access or case.target.access < Access.SCORES:
        return case.finding(name, math.nan, 0.0, None, "the classifier gives no gradient")
    share, words = without_gradient(case, "dlr" if case.target.num_classes > 3 else "margin", "a loss")
    return case.finding(name, share, 0.0, share > 0, words, seconds=perf_counter() - began)


def square_better(case: Case, ran: Ran | None, *, seconds: float, weak: bool = False) -> Finding:
    """Compare the accuracy that Square leaves with the least that gradients leave.

    What Square brings down and the attack does not is first given to the gradient members of
    :class:`~calipers.attacks.standard.Standard`: an attack that was only weak is none whose gradient is masked.

    Args:
        case: the case.
        ran: what Square found among the inputs that stand; None where it did not run.
        seconds: how long those members may take, about; inputs that they do not finish count.
        weak: whether it had too little time to say anything by finding nothing.

    Returns:
        The finding.
    """
    if ran is None:
        return case.finding("square-better", math.nan, 0.002, None, "Square did not run here")
    others = "the attack does not"
    missed = [row for row in ran.rows if ran.fell(row)]
    if missed:
        began = perf_counter()
        try:
            strong = case.within(Standard(case.gradient).plan(), seconds, rows=missed)
        except OutOfTime:
            pass
        else:
            others = "neither the attack nor the gradients of standard do"
            alone = torch.tensor([ran.fell(row) and not strong.fell(row) for row in ran.rows])
            ran = replace(ran, success=alone, seconds=ran.seconds + perf_counter() - began)
    return case.more("square-better", ran, what="Square", others=others, exact=True, weak=weak)


def optimization_at_inference(case: Case) -> Finding:
    """Count the backward operations that run in one forward pass.

    Args:
        case: the case.

    Returns:
        The finding.
    """
    name = "optimization-at-inference"
    if case.target.access < Access.GRADIENTS:
        return case.finding(name, math.nan, 0.0, None, "the classifier shows no network")
    found = capture(case.target.module, case.x[:2], case.draws([0, 1][: len(case.x)]))
    count = max(found.backwards.values(), default=0)
    return case.finding(name, float(count), 0.0, count > 0, "backward operations in one forward pass")


def few_classes(case: Case) -> Finding:
    """Count the classes: DLR needs 3, its targeted form 4, and the attack as many as it has targets and one more.

    Args:
        case: the case.

    Returns:
        The finding.
    """
    fields = vars(case.attack)
    needed = 2
    if fields.get("loss") == "dlr":
        needed = 4 if fields.get("targets") else 3
    needed = max(needed, int(fields.get("targets") or 0) + 1)
    count = case.target.num_classes
    return case.finding(
        "few-classes", float(count), float(needed), count < needed, f"classes; {needed} are needed"
    )
