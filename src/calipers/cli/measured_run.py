"""From a specification to records in a file: the common road of certify, predict and demo."""

from __future__ import annotations

import re
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from calipers.cli.answers import CLEAN
from calipers.cli.console import Say
from calipers.cli.durations import parse_duration
from calipers.cli.progress import Advance, progress, spoken_seconds
from calipers.errors import UsageError

if TYPE_CHECKING:
    from calipers.runs.bench import Bench
    from calipers.runs.executors import Executor
    from calipers.runs.measure import Prepared
    from calipers.runs.run import Progress
    from calipers.runs.spec import RunSpec
    from calipers.runs.store import RunStore

__all__ = ["Manner", "answer_estimate", "default_path", "measure_to_file", "pick_device", "this_command"]


@final
@dataclass(frozen=True)
class Manner:
    """How a run is carried out; none of it changes what is measured.

    Args:
        path: the file of the run; a new one under ``runs/`` if None.
        device: the device, such as ``cpu`` or ``cuda:1``.
        trust_code: whether code of the user's may be run.
        batch_size: the rows of a batch; measured if None.
        compile_allowed: whether compilation may be tried.
        jobs: worker processes; 1 measures in this one.
        time_limit: such as ``10m``; None for none.
        clean: whether the accuracy without noise is measured beside.
    """

    path: Path | None = None
    device: str = "cpu"
    trust_code: bool = False
    batch_size: int | None = None
    compile_allowed: bool = True
    jobs: int = 1
    time_limit: str | None = None
    clean: bool = True
    seconds: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}: give a whole number of at least 1")
        if self.time_limit is not None:
            object.__setattr__(self, "seconds", parse_duration(self.time_limit))


def this_command() -> str:
    """Give the command line of this process, to go on with: without its time limit.

    Returns:
        The text, quoted for a shell.
    """
    given = sys.argv[1:]
    kept = [
        word
        for before, word in zip(["", *given], given, strict=False)
        if before != "--time" and word != "--time" and not word.startswith("--time=")
    ]
    return shlex.join(["calipers", *kept])


def pick_device(wanted: str) -> str:
    """Find the device that the user asked for.

    Args:
        wanted: auto, cpu, cuda or cuda:N.

    Returns:
        The device.

    Raises:
        UsageError: if it is something else, or is not there.
    """
    if wanted == "cpu":
        return wanted
    if not re.fullmatch(r"auto|cuda(:\d+)?", wanted):
        raise UsageError(f"device is {wanted!r}: use auto, cpu, cuda or cuda:N")
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(wanted.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise UsageError(
            f"device is {wanted!r} and torch sees {torch.cuda.device_count()} CUDA devices: use --device cpu"
        )
    return wanted


def default_path(spec: RunSpec) -> Path:
    """Name the file of a run, so that the same command finds it again.

    Args:
        spec: the specification.

    Returns:
        A path under ``runs/`` made of the verb, the model and the hash of the specification.
    """
    scheme, _, rest = spec.model.partition(":")
    name = rest.partition("?")[0] or scheme
    name = Path(name).stem if scheme in ("file", "onnx") else name
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-48:] or "model"
    return Path("runs") / f"{spec.kind}-{plain}-{spec.hash[:8]}.sqlite"


def measure_to_file(say: Say, spec: RunSpec, manner: Manner) -> Path:
    """Measure what a specification asks for into its file, as far as the file does not have it.

    The model, the data and every input are loaded and checked before the file is made.

    Args:
        say: the console of the verb.
        spec: the specification.
        manner: how it is carried out.

    Returns:
        The file.
    """
    from calipers.runs.store import RunStore

    begun = time.monotonic()
    path = manner.path or default_path(spec)
    benches = _open(say, spec, manner)
    settled = {} if path.exists() else _rehearse(spec, manner, benches)
    with RunStore.open(path, spec) as store:
        store.settle({name: fact for name, fact in settled.items() if name not in store.facts()})
        parts = [_prepare(store, manner, bench) for bench in benches]
        _tell_plan(say, parts, path)
        total = sum(len(part.tasks) for part in parts)
        done = total - sum(part.todo for part in parts)
        _settle_interrupt(say, store, total, _word(parts, total))
        remaining = 0
        with progress(say, spec.kind, done=done / max(total, 1)) as advance:
            for part in parts:
                remaining += _carry_out(say, store, part, parts, manner, begun, advance)
        data = benches[0].subject().data
        if manner.clean and CLEAN not in store.facts() and data.labelled:
            store.settle({CLEAN: f"{benches[0].clean_correct()} of {len(parts[0].tasks)}"})
    if remaining:
        told = (
            f"{total - remaining} of {total} {_word(parts, total)} {'is' if total == 1 else 'are'} in {path}"
        )
        say.warn(f"out of time: {told}; to go on:  {this_command()}")
    return path


def _carry_out(
    say: Say,
    store: RunStore,
    part: Prepared,
    parts: list[Prepared],
    manner: Manner,
    begun: float,
    advance: Advance,
) -> int:
    # One side of a bracket, or all there is; gives the tasks that are left.
    from calipers.runs.measure import measure
    from calipers.runs.run import carry_out

    total = sum(len(each.tasks) for each in parts)
    elsewhere = sum(len(each.tasks) for each in parts[: parts.index(part)])

    def tell(at: Progress) -> None:
        done = elsewhere + at.done
        _settle_interrupt(say, store, total, _word(parts, total), done)
        share = (elsewhere + _part(at, part) * len(part.tasks)) / max(total, 1)
        advance(share, f"{done}/{total} {_word(parts, total)}")

    summary = carry_out(
        part.tasks,
        store,
        measure,
        part.bench,
        executor=_executor(manner.jobs),
        deadline=None if manner.seconds is None else begun + manner.seconds,
        on_progress=tell,
        of=total,
    )
    return summary.remaining


def _word(parts: list[Prepared], total: int) -> str:
    if len(parts) > 1:
        return "certificates and attacks"
    return "input" if total == 1 else "inputs"


def answer_estimate(say: Say, spec: RunSpec, manner: Manner) -> None:
    """Measure how fast a run would be, and answer with what it would cost.

    Args:
        say: the console of the verb.
        spec: the specification.
        manner: how it would be carried out.
    """
    from calipers.runs.store import RunStore

    path = manner.path or default_path(spec)
    benches = _open(say, spec, manner)
    opened = RunStore.open(path, spec) if path.exists() else RunStore.in_memory(spec)
    with opened as store:
        prepared = _prepare(store, manner, benches[0])
    plan, forwards = prepared.plan, prepared.todo * prepared.draws
    seconds = forwards / (plan.speed * manner.jobs) if plan.speed > 0 else None
    most = " at most" if "DecideRadii" in spec.method else ""
    say.answer(
        {
            "inputs": len(prepared.tasks),
            "todo": prepared.todo,
            "forwards": forwards,
            "exact": not most,
            "forwards_per_second": plan.speed * manner.jobs,
            "seconds": seconds,
            "run": str(path),
            "plan": f"{plan.key()}: {plan.note}",
        },
        f"inputs    {prepared.todo} to measure of {len(prepared.tasks)}",
        f"forwards  {forwards:,}{most}",
        f"plan      {plan.key()}: {plan.note}",
        f"time      {'unknown' if seconds is None else spoken_seconds(seconds)}{most}, noise and votes left out",
    )


def _rehearse(spec: RunSpec, manner: Manner, benches: list[Bench]) -> dict[str, str]:
    # Everything short of measuring, before there is a file, so that a run that cannot start leaves none.
    from calipers.runs.store import RunStore

    with RunStore.in_memory(spec) as store:
        for bench in benches:
            _prepare(store, manner, bench)
        return store.facts()


def _prepare(store: RunStore, manner: Manner, bench: Bench) -> Prepared:
    from calipers.runs.measure import prepare

    return prepare(
        bench.spec,
        store,
        device=manner.device,
        bench=bench,
        batch_size=manner.batch_size,
        compile_allowed=manner.compile_allowed,
        jobs=manner.jobs,
    )


def _open(say: Say, spec: RunSpec, manner: Manner) -> list[Bench]:
    from calipers.runs.bench import Bench

    sides = spec.jaws() if spec.kind == "bracket" else (spec,)
    bench = Bench(sides[0], device=manner.device, trust_code=manner.trust_code)
    subject = bench.subject()
    for word, value in (*subject.described, *_named_classes(subject.data.class_names)):
        say.note(f"  {word:<10} {value}")
    if spec.noise:
        say.note(f"  {'noise':<10} {spec.noise}, {spec.votes or 'hard'} votes, {spec.norm} radii")
    for side in sides:
        say.note(f"  {side.kind:<10} {side.method}")
    bench.inputs()
    return [bench, *(bench.aside(side) for side in sides[1:])]


def _named_classes(names: tuple[str, ...] | None) -> tuple[tuple[str, str], ...]:
    if names is None:
        return ()
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:10]))
    return (("names", shown + (f", ... ({len(names)} in all)" if len(names) > 10 else "")),)


def _tell_plan(say: Say, parts: list[Prepared], path: Path) -> None:
    from calipers.report.counts import counted

    prepared = parts[0]
    plan, total = prepared.plan, sum(len(part.tasks) for part in parts)
    todo = sum(part.todo for part in parts)
    threads = counted(plan.threads, "thread")
    say.note(f"  {'plan':<10} {plan.key()}, {threads}: {plan.note}")
    most = prepared.todo * prepared.draws
    known = prepared.bench.spec.kind != "attack" and plan.speed > 0 and most
    cost = ""
    if known:
        cost = f"{most:,} forwards" + (" at most" if "DecideRadii" in prepared.bench.spec.method else "")
        cost += f", about {spoken_seconds(most / plan.speed)}" + (
            ", then the attack" if len(parts) > 1 else ""
        )
    before = total - todo
    there = f"{before} of {total} {_word(parts, total)} are in the file already; " if before else ""
    say.note(f"  {'run':<10} {path}: {there}{cost or f'{todo} to do' if todo else 'nothing is left to do'}")


def _part(at: Progress, prepared: Prepared) -> float:
    # Samples tell more finely than inputs where every input takes the same number of them, as no attack does.
    before = at.done - at.fresh
    finished = at.fresh
    spec = prepared.bench.spec
    if "DecideRadii" not in spec.method and spec.kind != "attack" and prepared.draws:
        return min((before + max(finished, at.samples / prepared.draws)) / max(at.total, 1), 1.0)
    return at.done / max(at.total, 1)


def _executor(jobs: int) -> Executor:
    from calipers.runs.executors import Processes, Serial

    return Serial() if jobs == 1 else Processes(jobs)


def _settle_interrupt(say: Say, store: RunStore, total: int, word: str, done: int | None = None) -> None:
    # What Ctrl-C would say now.
    finished = len(store) if done is None else done
    say.on_interrupt = [
        f"stopped: {finished} of {total} {word} are in {store.path}; to go on:  {this_command()}"
    ]
