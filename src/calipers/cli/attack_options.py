"""Options of the verbs that attack, and the specification they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.errors import StoreNotWritable, UsageError

if TYPE_CHECKING:
    from calipers.runs.spec import RunSpec

_WHAT = "What is measured"
_RULES = ("majority", "worst", "average")

Eps = Annotated[
    str | None,
    typer.Option(
        "--eps",
        metavar="SIZE",
        help="Size allowed, in input units, such as 8/255; the least size is looked for if left out.",
        rich_help_panel=_WHAT,
    ),
]
AttackName = Annotated[
    str | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        help="standard, fgsm, pgd, apgd, square, random-search, transfer (with --eps); deepfool, ddn, fmn, "
        'carlini-wagner, boundary, hop-skip-jump (without); arguments in brackets: "pgd(steps=100, restarts=5)".',
        rich_help_panel=_WHAT,
    ),
]
Gradient = Annotated[
    str | None,
    typer.Option(
        "--gradient",
        metavar="VIEWS",
        help='How gradients are had, such as "eot(30) bpda(encoder=identity)" or "nes(100)".',
        rich_help_panel=_WHAT,
    ),
]
SigmaOrNone = Annotated[
    str | None,
    typer.Option(
        "--sigma",
        metavar="SIZE",
        help="Attack the classifier that is smoothed by noise of this scale.",
        rich_help_panel=_WHAT,
    ),
]
Draws = Annotated[
    int,
    typer.Option(
        "--draws",
        metavar="N",
        help="Fresh draws of a randomized classifier, for each input and each candidate.",
        rich_help_panel=_WHAT,
    ),
]
Rule = Annotated[
    str,
    typer.Option(
        "--rule",
        metavar="majority|worst|average",
        help="When a candidate fools a randomized classifier.",
        rich_help_panel=_WHAT,
    ),
]
Quantize = Annotated[
    bool,
    typer.Option("--quantize", help="Judge candidates as 8-bit images.", rich_help_panel=_WHAT),
]


def check_save(path: Path | None) -> None:
    """Refuse a file that is there already, before anything is measured.

    Args:
        path: the file to be written, if one is.

    Raises:
        StoreNotWritable: if it is there.
    """
    if path is not None and path.exists():
        raise StoreNotWritable(f"{path} is there already: name another file with --save, or remove it")


def attack_spec(
    *,
    model: str,
    data: str,
    norm: str,
    eps: str | None,
    attack: str | None,
    gradient: str | None,
    sigma: str | None,
    noise: str,
    draws: int,
    rule: str,
    quantize: bool,
    precision: str,
    device: str,
    seed: int,
    skip: int,
    limit: int | None,
    sample: int | None,
    trust_code: bool,
) -> RunSpec:
    """Make the specification of an attack from a user's words.

    Args:
        model: the model reference.
        data: the data reference.
        norm: the norm.
        eps: the size as it was written; None looks for the least.
        attack: the name of the attack; one that suits norm and size if None.
        gradient: how gradients are had; the attack's own if None.
        sigma: the scale of the noise of a smoothed classifier; None attacks the model itself.
        noise: the kind of noise.
        draws: draws of a randomized classifier.
        rule: the judge's rule.
        quantize: whether candidates are 8-bit images.
        precision: the number format of the model.
        device: where it runs.
        seed: the seed.
        skip: inputs left out at the front.
        limit: inputs taken after that.
        sample: size of a stratified subset.
        trust_code: whether functions of the user's may be imported.

    Returns:
        The specification.

    Raises:
        UsageError: if a word means nothing.
    """
    from calipers.runs.descriptions import build
    from calipers.runs.naming import name_attack, name_noise, read_norm, read_size
    from calipers.runs.spec import RunSpec

    wanted = read_norm(norm)
    if eps is not None and not read_size(eps) >= 0:
        raise UsageError(f"eps is {eps}: give a size of at least 0, such as 8/255")
    added = None if sigma is None else name_noise(noise, sigma)
    found = name_attack(
        attack or _usual(wanted, sized=eps is not None, smoothed=added is not None),
        gradient=gradient,
        noise=added,
        sized=eps is not None,
        trust_code=trust_code,
    )
    if rule not in _RULES:
        raise UsageError(f"rule is {rule!r}: use {', '.join(_RULES)}")
    judge = build(f"Judge(draws={draws}, rule={rule!r}, quantize={quantize})")
    return RunSpec(
        kind="attack",
        model=model,
        data=data,
        method=repr(found),
        norm=wanted,  # type: ignore[arg-type]
        noise="" if added is None else repr(added),
        votes="" if added is None else "hard",
        eps=eps or "",
        precision=precision,  # type: ignore[arg-type]  # the specification checks it
        device=device.partition(":")[0],  # type: ignore[arg-type]
        seed=seed,
        skip=skip,
        limit=limit,
        sample=sample,
        judge=repr(judge),
    )


def _usual(norm: str, *, sized: bool, smoothed: bool) -> str:
    # The attack where the user names none. Mean scores under noise saturate, and their margin does not.
    if sized:
        return "pgd(loss='margin', steps=20)" if smoothed else "standard"
    if smoothed:
        return "ddn(steps=20, loss='margin')" if norm == "l2" else "fmn(steps=20)"
    if norm == "l0":
        return "fmn"
    # a search along the boundary is quick, one by sizes comes out of flat regions
    first = "DDN()" if norm == "l2" else "FMN()"
    return f"WorstOf(({first}, MinimizeEps(APGD(steps=20), tolerance=0.02)))"
