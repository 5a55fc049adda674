"""`calipers diagnose`: whether a classifier hides its gradient, where, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.attack_options import AttackName, Gradient
from calipers.cli.console import speaking
from calipers.cli.measured_run import pick_device
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.runs.diagnosis import ModelDiagnosis

__all__ = ["diagnose"]

_WHAT = "What is measured"


def diagnose(
    model: options.Model,
    data: options.Data,
    norm: Annotated[
        str,
        typer.Option("--norm", metavar="linf|l2|l1", help="Norm of the perturbation.", rich_help_panel=_WHAT),
    ],
    eps: Annotated[
        str,
        typer.Option(
            "--eps",
            metavar="SIZE",
            help="Size allowed, in input units, such as 8/255.",
            rich_help_panel=_WHAT,
        ),
    ],
    attack: AttackName = None,
    gradient: Gradient = None,
    prescribe: Annotated[
        bool,
        typer.Option(
            "--prescribe",
            help="Choose an attack from the findings, by trying those that they suggest.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    budget: Annotated[
        float,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            help="Time of all checks together, about; checks say how many inputs it sufficed for.",
            rich_help_panel="How it is run",
        ),
    ] = 60.0,
    precision: options.Precision = "fp32",
    seed: options.Seed = 0,
    limit: options.Limit = 50,
    skip: options.Skip = 0,
    sample: options.Sample = None,
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Diagnose an attack: whether the gradient that it follows is honest, and whether it goes far enough.

    Names the modules that hide the gradient and how they do, and makes twenty checks of the attack's course. Each
    finding has its statistic, its threshold and a page of the documentation; green ones prove nothing.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        _check(budget)
        from calipers.runs.diagnosis import diagnose_reference

        found = diagnose_reference(
            model,
            data,
            norm=norm,
            eps=eps,
            attack=attack,
            gradient=gradient,
            limit=limit,
            skip=skip,
            sample=sample,
            seed=seed,
            budget=budget,
            prescribe=prescribe,
            precision=precision,
            device=pick_device(device),
            trust_code=trust_code,
            tell=lambda text: say.note(f"  {text}"),
        )
        subset = [
            ("--limit", limit),
            ("--skip", skip or None),
            ("--sample", sample),
            ("--seed", seed or None),
        ]
        line = ["calipers", "attack", model, data, "--norm", norm, "--eps", eps]
        line += [word for name, value in subset if value is not None for word in (name, str(value))]
        line += ["--precision", precision] if precision != "fp32" else []
        line += ["--trust-code"] if trust_code else []
        for word, value in found.described:
            say.note(f"  {word:<10} {value}")
        say.answer(
            found.to_dict(),
            _table(found),
            "",
            _remedies(found),
            _whole(found),
            *_next(found, line, trust_code),
        )


def _next(found: ModelDiagnosis, line: Sequence[str], trust_code: bool) -> tuple[str, ...]:
    # The command that runs what was prescribed; none where the command line cannot name it.
    from calipers.runs.naming import name_attack

    if found.prescription is None:
        return ()
    text = repr(found.prescription.attack)
    if '"' not in text:  # a shell's single quotes go around it
        text = text.replace("'", '"')
    try:
        name_attack(text, sized=True, trust_code=trust_code)
    except UsageError:
        return ()
    return ("", "to run it on these inputs:", f"  {shlex.join([*line, '--attack', text])}")


def _check(budget: float) -> None:
    if not 0 < budget < float("inf"):
        raise UsageError(f"budget is {budget}: give a number of seconds above 0, such as 60")


def _table(found: ModelDiagnosis) -> str:
    order = {"red": 0, "open": 1, "green": 2}
    findings = sorted(found.diagnosis.findings, key=lambda each: order[each.verdict])
    names = [f"{each.check} {each.module}".rstrip() for each in findings]
    wide = max(len(name) for name in names)
    lines = [f"{'':<6}{'check':<{wide}}  statistic  threshold  what was measured"]
    for name, each in zip(names, findings, strict=True):
        numbers = f"{each.statistic:>9.3g}  {each.threshold:>9.3g}"
        lines.append(f"{each.verdict:<6}{name:<{wide}}  {numbers}  {each.measured}")
    return "\n".join(lines)


def _remedies(found: ModelDiagnosis) -> str:
    places: dict[tuple[str, str], list[str]] = {}
    for each in found.diagnosis.red:
        words = f"{each.explanation} {each.remedy}\n  -> docs/{each.page}.md"
        places.setdefault((each.check, words), []).extend([each.module] if each.module else [])
    lines = [
        f"{' '.join([check, ', '.join(where)]).rstrip()}: {words}" for (check, words), where in places.items()
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _whole(found: ModelDiagnosis) -> str:
    done = found.diagnosis
    red, left = len(done.red), sum(each.verdict == "open" for each in done.findings)
    fall = (
        "input that is answered rightly falls"
        if done.attacked == 1
        else "inputs that are answered rightly fall"
    )
    lines = [
        f"{done.fell} of {done.attacked} {fall} to {done.attack}",
        f"{red} of {len(done.findings)} findings {'is' if red == 1 else 'are'} red, {left} open, "
        f"in {done.seconds:.0f} s" + ("; that none is red proves nothing" if not red else ""),
    ]
    if found.prescription is not None:
        lines += ["", found.prescription.text()]
    return "\n".join(lines)
