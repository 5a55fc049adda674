"""`calipers attack`: adversarial examples from above, judged on the real classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calipers.cli import options
from calipers.cli.attack_options import (
    AttackName,
    Draws,
    Eps,
    Gradient,
    Quantize,
    Rule,
    SigmaOrNone,
    attack_spec,
    check_save,
)
from calipers.cli.console import speaking
from calipers.cli.measured_run import Manner, answer_estimate, measure_to_file, pick_device

__all__ = ["attack"]


def attack(
    model: options.Model,
    data: options.Data,
    norm: Annotated[
        str,
        typer.Option(
            "--norm",
            metavar="linf|l2|l1|l0",
            help="Norm of the perturbation.",
            rich_help_panel="What is measured",
        ),
    ],
    eps: Eps = None,
    attack: AttackName = None,
    gradient: Gradient = None,
    sigma: SigmaOrNone = None,
    noise: options.NoiseKind = "gaussian",
    draws: Draws = 100,
    rule: Rule = "majority",
    quantize: Quantize = False,
    precision: options.Precision = "fp32",
    seed: options.Seed = 0,
    limit: options.Limit = None,
    skip: options.Skip = 0,
    sample: options.Sample = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="FILE",
            help="Write the adversarial inputs and what they are to a .safetensors file.",
            rich_help_panel="How it is run",
        ),
    ] = None,
    run: options.RunFile = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    jobs: options.Jobs = 1,
    time: options.TimeLimit = None,
    only_estimate: options.Estimate = False,
    trust_code: options.TrustCode = False,
    no_clean: options.NoClean = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Attack inputs from above: for each one the nearest adversarial example that a search finds.

    With --eps the search keeps to that size and robust accuracy is told; without it, the least size is looked for. The
    real classifier judges every candidate, whatever gradient the search was given. With --sigma the smoothed classifier
    is attacked.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.cli.answers import answer_run

        check_save(save)
        place = pick_device(device)
        spec = attack_spec(
            model=model,
            data=data,
            norm=norm,
            eps=eps,
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
        manner = Manner(
            path=run,
            device=place,
            trust_code=trust_code,
            batch_size=batch_size,
            jobs=jobs,
            time_limit=time,
            clean=not no_clean,
        )
        if only_estimate:
            answer_estimate(say, spec, manner)
            return
        path = measure_to_file(say, spec, manner)
        if save is not None:
            from calipers.runs.adversarial import save_adversarial
            from calipers.runs.store import RunStore

            with RunStore.read(path) as store:
                save_adversarial(store, save)
            say.note(f"  the adversarial inputs are in {save}")
        answer_run(say, path)
