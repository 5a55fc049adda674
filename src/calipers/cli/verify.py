"""`calipers verify`: saved adversarial inputs, judged again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calipers.cli import options
from calipers.cli.attack_options import Eps
from calipers.cli.console import speaking
from calipers.cli.measured_run import pick_device
from calipers.errors import CheckFailed

if TYPE_CHECKING:
    from calipers.runs.studies import Verified

__all__ = ["verify"]

_SHOWN = 20


def verify(
    adversarial: Annotated[
        Path,
        typer.Argument(
            metavar="ADVERSARIAL",
            help="A .safetensors file of `attack --save`, or an .npz file with 'adversarial'.",
        ),
    ],
    model: options.Model,
    data: options.Data,
    norm: Annotated[str, typer.Option("--norm", metavar="linf|l2|l1|l0", help="Norm of the perturbation.")],
    eps: Eps = None,
    every: Annotated[
        bool,
        typer.Option("--all", help="Ask that every input of the file is an adversarial example."),
    ] = False,
    precision: options.Precision = "fp32",
    device: options.Device = "auto",
    trust_code: options.TrustCode = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Judge saved adversarial inputs again: inside the box, within --eps, no NaN, and not answered by the label.

    Nothing is moved into place. Inputs beyond the box or the size fail the check (exit code 1); with --all, so do
    inputs that the model answers rightly.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.report.tables import Table, ceiled, floored_percent
        from calipers.runs.studies import BY_LABEL
        from calipers.runs.studies import verify as judge_again

        found = judge_again(
            adversarial,
            model=model,
            data=data,
            norm=norm,
            eps=eps,
            precision=precision,
            device=pick_device(device),
            trust_code=trust_code,
        )
        bad = [row for row in found.rows if not row.holds and not row.fault.startswith(BY_LABEL)]
        failed = [row for row in found.rows if not row.holds] if every else bad
        table = Table(
            "",
            ("input", "label", "class", "distance", "fault"),
            tuple(
                (
                    str(row.index),
                    str(row.label),
                    "-" if row.prediction < 0 else str(row.prediction),
                    ceiled(row.distance),
                    row.fault,
                )
                for row in found.rows
                if not row.holds
            )[:_SHOWN],
        )
        total = len(found.rows)
        if found.same_target is False:
            say.warn("the file was made for another classifier: another fingerprint")
        say.answer(
            {
                "file": str(adversarial),
                "model": model,
                "norm": found.norm,
                "eps": found.eps,
                "target": found.target,
                "same_target": found.same_target,
                "inputs": total,
                "adversarial": found.holding,
                "faulty": len(bad),
                "rows": [asdict(row) for row in found.rows],
            },
            f"{found.holding} of {total} are adversarial examples "
            f"({floored_percent(found.holding / max(total, 1))} %), "
            f"{total - found.holding - len(bad)} answered by their label, {len(bad)} faulty",
            *(["", table.text()] if table.rows else []),
        )
        _check(failed, total, adversarial)


def _check(failed: Sequence[Verified], total: int, adversarial: Path) -> None:
    if failed:
        from calipers.report.counts import counted

        hold = "does not hold" if len(failed) == 1 else "do not hold"
        raise CheckFailed(
            f"{len(failed)} of {counted(total, 'input')} of {adversarial} {hold}: input {failed[0].index}: "
            f"{failed[0].fault}"
        )
