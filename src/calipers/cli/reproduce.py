"""`calipers reproduce`: the case study, each defense under the attack that it fooled and the one that it does not."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from calipers.cli import options
from calipers.cli.console import Say, speaking
from calipers.cli.durations import parse_duration
from calipers.cli.measured_run import pick_device, this_command
from calipers.cli.progress import progress, spoken_seconds
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.evidence.records import Attempt
    from calipers.report.case_study import CaseLine
    from calipers.runs.case_rows import CaseRow, Question

__all__ = ["reproduce"]

STUDIES = ("iclr2018",)
DATA = "bundled:fashion-mnist"
INPUTS, QUICK_INPUTS = 50, 16
BUDGET = 10.0


def reproduce(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The case study: iclr2018.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Defenses, such as lid or pixel-defend (a wrong name lists all); all nine if left out, with --network "
            "those that it can have.",
        ),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images to attack: 1x28x28, of Fashion-MNIST's classes; with --network, or --weights for other "
            "images, of its shape and classes.",
            rich_help_panel="Which inputs",
        ),
    ] = DATA,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="K",
            help=f"Take K inputs at most; {INPUTS} without this, --sample and --quick.",
            rich_help_panel="Which inputs",
        ),
    ] = None,
    skip: options.Skip = 0,
    sample: options.Sample = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Take {QUICK_INPUTS} images, and leave ablations out; not with --limit, --sample or --prescribe.",
            rich_help_panel="Which inputs",
        ),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            metavar="FOLDER",
            help="Parts that `calipers train iclr2018` made; those that ship if left out (with --network, none do).",
            rich_help_panel="What is measured",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="MODEL",
            help="Put the defenses around this pretrained network, a model reference such as "
            "'file:net.th?arch=resnet20'; what cannot be is said, and left out.",
            rich_help_panel="What is measured",
        ),
    ] = None,
    prescribe: Annotated[
        bool,
        typer.Option(
            "--prescribe/--no-prescribe",
            help="Diagnose each mechanism as well, and attack it as the diagnosis alone prescribes.",
            rich_help_panel="What is measured",
        ),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            help="With --prescribe: time for each diagnosis, about, and as much again to choose the attack; "
            f"{BUDGET:g} if left out.",
            rich_help_panel="How it is run",
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure",
            metavar="FILE",
            help="Measure accuracy at eight sizes for thermometer encoding, adversarial training, both and neither "
            "as well, and draw it (extra: charts).",
            rich_help_panel="How it is run",
        ),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Where the runs go, one file a measurement; the same command goes on from there.",
            rich_help_panel="How it is run",
        ),
    ] = Path("runs/iclr2018"),
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="K",
            help="Measurements at a time, each in a process of one thread; one a core if left out.",
            rich_help_panel="How it is run",
        ),
    ] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    time_limit: options.TimeLimit = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure the nine defenses of ICLR 2018 again: undefended, as their papers did, and by an adaptive attack.

    Each figure is judged on the defense itself: with fresh randomness, the whole purification, the discrete encoding.
    Each is an attack of the same images, with a table for each defense and one of all at the end. Seven to eight
    minutes for 50 images on two cores, two to three with --quick; --prescribe takes as long again.
    """
    with speaking(as_json=as_json, quiet=quiet, debug=debug) as say:
        from calipers.report.counts import counted
        from calipers.runs.case_rows import Question, case_rows, defense_names

        _check_study(study)
        wanted = defense_names(names or (), network=network, weights=weights)
        limit = _inputs(quick=quick, limit=limit, sample=sample)
        seconds = _budget(prescribe=prescribe, quick=quick, budget=budget)
        begun = time.monotonic()
        question = Question(data, folder, weights, limit, skip, sample, seed, pick_device(device), network)
        wanted = _measurable(say, wanted, question, named=bool(names), figure=figure)
        deadline = None if time_limit is None else begun + parse_duration(time_limit)
        rows = tuple(row for row in case_rows(wanted, question) if not (quick and row.role == "ablation"))
        told = f"{counted(len(rows), 'measurement')} of {counted(len(wanted), 'defense')}"
        say.note(f"{told} on {data}; their runs go to {folder}")
        say.on_interrupt = [f"stopped: what was finished is in {folder}; to go on:  {this_command()}"]
        jobs = (os.cpu_count() or 1) if jobs is None else jobs
        manner = _Manner(prescribe, seconds, jobs, deadline)
        measured = _measured(say, rows, question, manner)
        wanting = len(rows) + (_mechanisms(rows) if manner.prescribe else 0) - len(measured)
        if wanting > 0 and deadline is not None:
            told = f"{len(measured)} of {counted(len(measured) + wanting, 'measurement')} done"
            say.warn(f"out of time: {told}; to go on:  {this_command()}")
        drawn = "" if figure is None else _draw(say, question, manner, figure)
        _answer(say, [_line(row) for row in measured], time.monotonic() - begun, drawn)


class _Manner(NamedTuple):
    """How the measurements are made."""

    prescribe: bool
    budget: float
    jobs: int
    deadline: float | None


def _check_study(study: str) -> None:
    if study not in STUDIES:
        raise UsageError(f"study is {study!r}: use one of {', '.join(STUDIES)}")


def _measurable(
    say: Say, wanted: tuple[str, ...], question: Question, *, named: bool, figure: Path | None
) -> tuple[str, ...]:
    """Say what a given network cannot be measured with for want of parts; refuse what was named and has no row."""
    if figure is not None and question.network is not None:
        raise UsageError(
            "--figure is of thermometer encoding, which has a network of its own: leave --network out"
        )
    from calipers.runs.case_rows import images_shape, rows_left_out
    from calipers.runs.catalog import GREY_SHAPE

    shape = images_shape(question)
    if question.data == DATA and shape != GREY_SHAPE:
        needing = "--weights" if question.network is None else "--network"
        raise UsageError(
            f"{DATA} has no images of {'x'.join(map(str, shape))} for {needing}: name some by --data"
        )
    if question.network is None:
        return wanted
    found = []
    for name, (lacks, rows) in rows_left_out(wanted, question).items():
        if lacks and named and not rows:
            raise UsageError(lacks)
        if lacks:
            say.note(f"left out: {lacks}")
        if rows:
            found.append(name)
    return tuple(found)


def _inputs(*, quick: bool, limit: int | None, sample: int | None) -> int | None:
    if quick and (limit is not None or sample is not None):
        raise UsageError(f"--quick takes {QUICK_INPUTS} images: leave --limit and --sample out")
    if limit is None and sample is None:
        return QUICK_INPUTS if quick else INPUTS
    return limit


def _budget(*, prescribe: bool, quick: bool, budget: float | None) -> float:
    if prescribe and quick:
        raise UsageError(
            f"--quick leaves out what --prescribe asks for: say --limit {QUICK_INPUTS} in place of --quick, or leave "
            "--prescribe out"
        )
    if budget is not None and not prescribe:
        raise UsageError(f"--budget {budget:g} is the time of --prescribe: add it, or leave --budget out")
    if budget is not None and not 0 < budget < math.inf:
        raise UsageError(f"budget is {budget:g}: give a number of seconds above 0, such as {BUDGET:g}")
    return BUDGET if budget is None else budget


def _measured(say: Say, rows: tuple[CaseRow, ...], question: Question, manner: _Manner) -> list[CaseRow]:
    from calipers.runs.reproduce import in_order, measure_case

    found: list[CaseRow] = []
    total = len(rows) + (_mechanisms(rows) if manner.prescribe else 0)
    with progress(say, "reproduce") as advance:
        advance(0.0, "")
        for row in measure_case(rows, question, **manner._asdict()):
            found.append(row)
            advance(len(found) / total, f"{len(found)}/{total}, {row.defense}, {row.role}: {row.what}")
    return in_order(rows, found)


def _mechanisms(rows: tuple[CaseRow, ...]) -> int:
    return len({(row.defense, row.family) for row in rows if row.role == "adaptive"})


def _line(row: CaseRow) -> CaseLine:
    from calipers.report.case_study import case_line
    from calipers.runs.reproduce import clean_wrong
    from calipers.runs.store import RunStore

    with RunStore.read(row.path) as store:
        return case_line(
            store.attempts(),
            defense=row.defense,
            authors=row.authors,
            source=row.source,
            published=row.published,
            role=row.role,
            what=row.what,
            family=row.family,
            size=row.size,
            within=row.within,
            clean_wrong=clean_wrong(store),
        )


def _answer(say: Say, lines: list[CaseLine], seconds: float, drawn: str) -> None:
    from calipers.report.case_study import case_tables, summary_table

    parts: list[str] = []
    for table in case_tables(lines):
        parts += [table.text(), ""]
    parts += [summary_table(lines).text(), "", f"measured in {spoken_seconds(seconds)}" + drawn]
    say.answer({"rows": [line.to_dict() for line in lines], "seconds": seconds}, *parts)


def _draw(say: Say, question: Question, manner: _Manner, figure: Path) -> str:
    from calipers.report.distortion import accuracy_by_size, draw
    from calipers.runs.case_rows import figure_rows
    from calipers.runs.naming import read_size
    from calipers.runs.reproduce import measure_case
    from calipers.runs.store import RunStore

    rows = figure_rows(question)
    runs: dict[str, dict[float, list[Attempt]]] = {}
    with progress(say, "figure") as advance:
        for done, row in enumerate(measure_case(rows, question, jobs=manner.jobs), start=1):
            advance(done / len(rows), f"{row.family}, {row.what}")
            with RunStore.read(row.path) as store:
                runs.setdefault(row.family, {})[read_size(row.size)] = store.attempts()
    inputs = len(next(iter(next(iter(runs.values())).values())))
    shown = "Fashion-MNIST test images" if question.data == DATA else f"images of {question.data}"
    curves = {name: accuracy_by_size(sizes) for name, sizes in runs.items()}
    draw(curves, figure, title=f"{inputs} {shown}, adaptive attack, 95 % intervals")
    return f"; the figure is {figure}"
