"""`calipers predict`: what a smoothed classifier answers, or that it abstains."""

from __future__ import annotations

from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.console import speaking
from calipers.cli.measured_run import Manner, answer_estimate, measure_to_file, pick_device

__all__ = ["predict"]


def predict(
    model: options.Model,
    data: options.Data,
    sigma: options.Sigma,
    n: Annotated[
        int,
        typer.Option("--n", metavar="N", help="Draws for each input.", rich_help_panel="What is measured"),
    ] = 1000,
    alpha: options.Alpha = 0.001,
    noise: options.NoiseKind = "gaussian",
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
    """Predict with the smoothed classifier, which abstains where its votes do not decide."""
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.cli.answers import answer_run
        from calipers.runs.descriptions import build_predictor
        from calipers.runs.naming import name_noise
        from calipers.runs.spec import RunSpec

        added = name_noise(noise, sigma)
        place = pick_device(device)
        spec = RunSpec(
            kind="predict",
            model=model,
            data=data,
            method=repr(build_predictor(f"VotePredictor(n={n}, alpha={alpha!r})")),
            norm=added.norm.value,
            noise=repr(added),
            votes="hard",
            precision=precision,  # type: ignore[arg-type]  # the specification checks it
            device=place.partition(":")[0],  # type: ignore[arg-type]
            seed=seed,
            skip=skip,
            limit=limit,
            sample=sample,
        )
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
