"""Rereading: another question of the counts or means that certificates hold; no forward pass, and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from calipers.errors import Unsound, UsageError
from calipers.evidence.records import Certificate
from calipers.runs.descriptions import build_noise, build_stopping, changed, field_of
from calipers.threat.threat_model import Norm

__all__ = ["ceiling", "reread"]


def reread(
    certificates: Sequence[Certificate],
    *,
    alpha: float,
    bound: str,
    validity: str | None = None,
    dimension: int | None = None,
) -> list[Certificate]:
    """Ask another question of the counts that certificates hold: no forward pass, and no torch.

    Args:
        certificates: certificates with their counts (hard votes) or means and variances (soft votes), all
        of one run.
        alpha: the probability that one new certificate fails.
        bound: ``two-sided`` or ``one-sided`` for hard votes, ``empirical-bernstein`` or ``hoeffding`` for
        soft ones.
        validity: ``fixed`` or ``anytime`` for hard votes; None takes what the stopping rule allows.
        dimension: the number of coordinates of an input, needed where the norm is not the noise's own.

    Returns:
        The new certificates, in the same order.

    Raises:
        UsageError: if a certificate has no counts, or the dimension is needed and unknown.
        Unsound: if the bound does not hold for how the counts were drawn.
    """
    rows = list(certificates)
    if not rows:
        return []
    for row in rows:
        if not row.counts:
            raise UsageError(
                f"the certificate of input {row.index} has no counts ({_why_no_counts(row)}): only runs of "
                "calipers that counted votes can be read again"
            )
    norm = Norm.parse(rows[0].norm)
    noise = build_noise(rows[0].noise)
    if norm is not noise.norm and dimension is None:
        raise UsageError(
            f"the radii are in {norm} under {noise!r}, and the run does not say the inputs' dimension"
        )
    if rows[0].votes == "soft":
        if validity == "anytime":
            raise Unsound("means of scores have no bound that holds at any time here: leave validity out")
        return [_reread_means(row, alpha=alpha, bound=bound, dimension=dimension or 1) for row in rows]
    return _reread_votes(rows, alpha=alpha, bound=bound, validity=validity, dimension=dimension or 1)


def ceiling(method: str, noise: str, *, norm: str, dimension: int = 1) -> float:
    """Find the largest radius that a certifier of hard votes can prove: that of unanimous votes.

    Args:
        method: the repr of the certifier.
        noise: the repr of the noise.
        norm: the norm of the radii.
        dimension: the number of coordinates of an input, for a norm that is not the noise's own.

    Returns:
        The radius, in input units.

    Example:
        >>> ceiling("VoteCertifier(n0=100, n=1000, alpha=0.001, bound='one-sided', stopping=FixedBudget())",
        ...         "Gaussian(sigma=1.0)", norm="l2") < 2.4633
        True
    """
    import numpy as np

    from calipers.certificates.smoothing.votes import certify_vote_table

    added, wanted = build_noise(noise), Norm.parse(norm)
    found = certify_vote_table(
        np.array([[field_of(method, "n"), 0, 0]], dtype=np.int64),
        selected=np.array([0]),
        radius=lambda p_lower, p_upper: added.radius(p_lower, p_upper, wanted, dimension=dimension),
        alpha=field_of(method, "alpha"),  # type: ignore[arg-type]
        bound=field_of(method, "bound"),  # type: ignore[arg-type]
        stopping=field_of(method, "stopping"),  # type: ignore[arg-type]
    )
    return float(found.radius[0])


def _reread_votes(
    rows: list[Certificate], *, alpha: float, bound: str, validity: str | None, dimension: int
) -> list[Certificate]:
    import numpy as np

    from calipers.certificates.smoothing.votes import certify_vote_table

    norm = Norm.parse(rows[0].norm)
    noise = build_noise(rows[0].noise)
    if bound not in ("two-sided", "one-sided"):
        raise UsageError(f"bound is {bound!r}: use two-sided or one-sided")
    if validity not in (None, "fixed", "anytime"):
        raise UsageError(f"validity is {validity!r}: use fixed or anytime")
    found = certify_vote_table(
        np.array([row.counts for row in rows], dtype=np.int64),
        selected=np.array([row.selected for row in rows], dtype=np.int64),
        radius=lambda p_lower, p_upper: noise.radius(p_lower, p_upper, norm, dimension=dimension),
        alpha=alpha,
        bound=bound,  # type: ignore[arg-type]  # one of the two, by the check above
        stopping=build_stopping(rows[0].stopping),
        validity=validity,  # type: ignore[arg-type]
        budget=rows[0].budget,
        theorem=noise.theorem,
    )
    return [
        replace(
            row,
            prediction=int(found.prediction[place]),
            radius=float(found.radius[place]),
            p_lower=float(found.p_lower[place]),
            p_upper=float(found.p_upper[place]),
            theorem=found.theorem,
            alpha=alpha,
            bound=bound,
            method=changed(row.method, {"alpha": alpha, "bound": bound}),
        )
        for place, row in enumerate(rows)
    ]


def _reread_means(row: Certificate, *, alpha: float, bound: str, dimension: int) -> Certificate:
    from calipers.certificates.smoothing.radius import convert_radius
    from calipers.certificates.smoothing.soft import certify_means

    noise = build_noise(row.noise)
    found = certify_means(
        row.means or (),
        row.variances or (),
        samples=row.samples,
        selected=row.selected,
        sigma=noise.scale,
        alpha=alpha,
        mean_bound=bound,  # type: ignore[arg-type]  # refused there if it is another
        lemma=field_of(row.method, "lemma"),  # type: ignore[arg-type]
        failed=row.counts[-1],
    )
    return replace(
        row,
        prediction=found.prediction,
        radius=float(convert_radius(found.radius, Norm.L2, Norm.parse(row.norm), dimension)),
        p_lower=found.p_lower,
        p_upper=found.p_upper,
        theorem=found.theorem,
        alpha=alpha,
        bound=bound,
        method=changed(row.method, {"alpha": alpha, "mean_bound": bound}),
    )


def _why_no_counts(row: Certificate) -> str:
    if row.constant is not None:
        return "it was proved by a Lipschitz constant, without votes"
    return "it was imported from a log that has none"
