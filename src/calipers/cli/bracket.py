"""`calipers bracket`: both jaws on the same classifier, joined per input."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.attack_options import AttackName, Draws, Gradient, Quantize, Rule, SigmaOrNone, attack_spec
from calipers.cli.console import speaking
from calipers.cli.measured_run import Manner, measure_to_file, pick_device

__all__ = ["bracket"]


def bracket(
    model: options.Model,
    data: options.Data,
    norm: Annotated[
        str,
        typer.Option(
            "--norm", metavar="l2|linf|l1", help="Norm of both jaws.", rich_help_panel="What is measured"
        ),
    ] = "l2",
    sigma: SigmaOrNone = None,
    noise: options.NoiseKind = "gaussian",
    n: Annotated[
        int,
        typer.Option(
            "--n",
            metavar="N",
            help="Draws that bound the votes of a smoothed classifier.",
            rich_help_panel="What is measured",
        ),
    ] = 10_000,
    alpha: options.Alpha = 0.001,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="auto|grid|exact|eclipse|lipsdp",
            help="How the Lipschitz constant is bounded, without --sigma.",
            rich_help_panel="What is measured",
        ),
    ] = "auto",
    attack: AttackName = None,
    gradient: Gradient = None,
    draws: Draws = 100,
    rule: Rule = "majority",
    quantize: Quantize = False,
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
    trust_code: options.TrustCode = False,
    no_clean: options.NoClean = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Close both jaws: prove a radius from below, find an adversarial example from above, and join them per input.

    Both are of the same classifier: the smoothed one with --sigma, the model itself (by a Lipschitz constant) without.
    A contradiction that chance does not explain is an error.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.cli.answers import answer_run
        from calipers.runs.descriptions import build_certifier

        place = pick_device(device)
        above = attack_spec(
            model=model,
            data=data,
            norm=norm,
            eps=None,
            attack=attack,
            gradient=gradient,
            sigma=sigma,
            noise=noise,
            draws=draws,
            rule=rule,
            quantize=quantize,
            precision=precision,
            device=place,
            seed=seed,
            skip=skip,
            limit=limit,
            sample=sample,
            trust_code=trust_code,
        )
        text = (
            f"LipschitzCertifier(method={method!r})"
            if sigma is None
            else f"VoteCertifier(n={n}, alpha={alpha!r})"
        )
        spec = replace(above, kind="bracket", attack=above.method, method=repr(build_certifier(text)))
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
        answer_run(say, measure_to_file(say, spec, manner))
