"""`calipers certify`: radii from below, by randomized smoothing or by Lipschitz constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.cli.measured_run import Manner, answer_estimate, measure_to_file, pick_device
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.cli.console import Say
    from calipers.runs.spec import RunSpec

__all__ = ["certify"]

_HOW_PROVED = "One of the two"
_SMOOTHING_ONLY = (
    "n",
    "n0",
    "alpha",
    "bound",
    "noise",
    "votes",
    "lemma",
    "decide",
    "sound",
    "jobs",
    "no_compile",
)
_LIPSCHITZ_ONLY = ("method", "rule")
_BOUNDS = {
    "hard": ("two-sided", "one-sided"),
    "soft": ("empirical-bernstein", "hoeffding"),
}


def certify(
    model: options.Model,
    data: options.Data,
    context: typer.Context,
    sigma: Annotated[
        str | None,
        typer.Option(
            "--sigma",
            metavar="SIZE",
            help="Smooth with noise of this scale in input units, such as 0.25 or 64/255: standard deviation of "
            "gaussian, spread of laplace, half width of uniform.",
            rich_help_panel=_HOW_PROVED,
        ),
    ] = None,
    lipschitz: Annotated[
        bool,
        typer.Option(
            "--lipschitz",
            help="Certify the model itself, by a Lipschitz constant proved from its weights.",
            rich_help_panel=_HOW_PROVED,
        ),
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="auto|grid|exact|eclipse|lipsdp",
            help="How the Lipschitz constant is bounded.",
            rich_help_panel="With --lipschitz",
        ),
    ] = "auto",
    rule: Annotated[
        str,
        typer.Option(
            "--rule",
            metavar="best|per-coordinate|vector|last-layer|composed|softmax",
            help="Form of Theorem 0; best takes the smallest constant of each pair of classes.",
            rich_help_panel="With --lipschitz",
        ),
    ] = "best",
    n: Annotated[
        int,
        typer.Option(
            "--n",
            metavar="N",
            help="Draws that bound the votes, at most.",
            rich_help_panel="With --sigma",
        ),
    ] = 100_000,
    n0: Annotated[
        int,
        typer.Option(
            "--n0", metavar="N", help="Draws that select the class.", rich_help_panel="With --sigma"
        ),
    ] = 100,
    alpha: options.Alpha = 0.001,
    bound: Annotated[
        str | None,
        typer.Option(
            "--bound",
            metavar="two-sided|one-sided",
            help="Bound the runner-up too, or the class alone; declared before the run. For soft votes: "
            "empirical-bernstein or hoeffding.",
            rich_help_panel="With --sigma",
        ),
    ] = None,
    noise: options.NoiseKind = "gaussian",
    votes: Annotated[
        str,
        typer.Option(
            "--votes",
            metavar="hard|soft",
            help="Count classes, or average softmax scores: two classifiers.",
            rich_help_panel="With --sigma",
        ),
    ] = "hard",
    lemma: Annotated[
        str,
        typer.Option(
            "--lemma",
            metavar="lemma-2|lemma-1|tight-constant",
            help="Certificate of soft votes.",
            rich_help_panel="With --sigma",
        ),
    ] = "lemma-2",
    decide: Annotated[
        str | None,
        typer.Option(
            "--decide",
            metavar="RADII",
            help="Stop an input as soon as these radii are decided, such as 0.25,0.5,0.75.",
            rich_help_panel="With --sigma",
        ),
    ] = None,
    sound: Annotated[
        bool,
        typer.Option(
            "--sound",
            help="Draw the noise on the 1/255 grid, where no rounding of floats can break the proof.",
            rich_help_panel="With --sigma",
        ),
    ] = False,
    norm: options.NormName = None,
    precision: options.Precision = "fp32",
    seed: options.Seed = 0,
    limit: options.Limit = None,
    skip: options.Skip = 0,
    sample: options.Sample = None,
    run: options.RunFile = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    jobs: options.Jobs = 1,
    no_compile: options.NoCompile = False,
    time: options.TimeLimit = None,
    only_estimate: options.Estimate = False,
    trust_code: options.TrustCode = False,
    no_clean: options.NoClean = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Certify inputs from below: for each one a radius inside which nothing changes the answer.

    With --sigma the model is smoothed: noise is added to the input many times, and the class with most votes is the
    answer. Votes prove a radius, except with probability alpha for each input. With --lipschitz the model stays as it
    is, and the margin of its scores over a Lipschitz constant is the radius (Theorem 0), at one forward an input.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.cli.answers import answer_run
        from calipers.runs.descriptions import build_certifier
        from calipers.runs.naming import name_noise
        from calipers.runs.spec import RunSpec

        _check_choice(context, sigma, lipschitz=lipschitz)
        place = pick_device(device)
        if sigma is None:
            text = f"LipschitzCertifier(method={method!r}, rule={rule!r})"
            added, votes, usual = "", "", "l2"
        else:
            drawn = name_noise(noise, sigma, sound=sound)
            added, usual = repr(drawn), drawn.norm.value
            text = _describe(
                n=n, n0=n0, alpha=alpha, votes=votes, lemma=lemma, decide=decide, bound=_bound(bound, votes)
            )
        spec = RunSpec(
            kind="certify",
            model=model,
            data=data,
            method=repr(build_certifier(text)),
            norm=norm or usual,  # type: ignore[arg-type]  # the specification checks it
            noise=added,
            votes=votes,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            device=place.partition(":")[0],  # type: ignore[arg-type]
            seed=seed,
            skip=skip,
            limit=limit,
            sample=sample,
        )
        if decide is not None:
            _warn_of_ceiling(say, spec, decide)
        manner = Manner(
            path=run,
            device=place,
            trust_code=trust_code,
            batch_size=batch_size,
            compile_allowed=not no_compile,
            jobs=jobs,
            time_limit=time,
            clean=not no_clean,
        )
        if only_estimate:
            answer_estimate(say, spec, manner)
        else:
            answer_run(say, measure_to_file(say, spec, manner))


def _check_choice(context: typer.Context, sigma: str | None, *, lipschitz: bool) -> None:
    if lipschitz == (sigma is not None):
        what = "both are given" if lipschitz else "neither is given"
        raise UsageError(
            f"{what} of --sigma (smoothing) and --lipschitz (the model itself): give one of them"
        )
    others = _SMOOTHING_ONLY if lipschitz else _LIPSCHITZ_ONLY
    given = [name for name in others if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if given:
        word = "--lipschitz" if lipschitz else "--sigma"
        raise UsageError(f"--{given[0].replace('_', '-')} means nothing with {word}: leave it out")


def _warn_of_ceiling(say: Say, spec: RunSpec, decide: str) -> None:
    from calipers.report.tables import floored
    from calipers.runs.naming import read_radii
    from calipers.runs.reread import ceiling

    if spec.norm == "linf":
        return
    most, largest = ceiling(spec.method, spec.noise, norm=spec.norm), max(read_radii(decide))
    if largest > most:
        say.warn(
            f"--decide asks for radius {largest:g}, and unanimous votes of this many draws prove {floored(most)} at "
            "most: no input can be certified there; raise --n or --sigma"
        )


def _bound(wanted: str | None, votes: str) -> str:
    if votes not in _BOUNDS:
        raise UsageError(f"votes is {votes!r}: use hard or soft")
    if wanted is None:
        return _BOUNDS[votes][0]
    if wanted not in _BOUNDS[votes]:
        raise UsageError(f"bound is {wanted!r} for {votes} votes: use {' or '.join(_BOUNDS[votes])}")
    return wanted


def _describe(
    *, n: int, n0: int, alpha: float, votes: str, lemma: str, decide: str | None, bound: str
) -> str:
    from calipers.runs.naming import read_radii

    shared = f"n0={n0}, n={n}, alpha={alpha!r}"
    if votes == "hard":
        if lemma != "lemma-2":
            raise UsageError(f"--lemma {lemma} certifies soft votes: add --votes soft, or leave it out")
        rule = "FixedBudget()" if decide is None else f"DecideRadii({read_radii(decide)!r})"
        return f"VoteCertifier({shared}, bound={bound!r}, stopping={rule})"
    if decide is not None:
        raise UsageError("--decide stops hard votes only: leave it out, or use --votes hard")
    if lemma not in ("lemma-1", "tight-constant", "lemma-2"):
        raise UsageError(f"lemma is {lemma!r}: use lemma-2, lemma-1 or tight-constant")
    return f"SoftCertifier({shared}, mean_bound={bound!r}, lemma={lemma!r})"
