"""Running: tasks minus what is stored, measured and stored in small transactions; to resume, run again."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, final

from calipers import __version__
from calipers.errors import StoreError
from calipers.runs.executors import Executor, Measure, Processes, Serial
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
from calipers.runs.tasks import Task

__all__ = ["Progress", "RunSummary", "carry_out", "run"]

Context = TypeVar("Context")

_BATCH = 100
_FLUSH_SECONDS = 1.0


class Progress(NamedTuple):
    """How far a run is.

    Args:
        done: inputs that are in the store or about to be.
        total: inputs of the run.
        fresh: inputs measured since this call began.
        samples: samples drawn since this call began.
        seconds: time since this call began.
    """

    done: int
    total: int
    fresh: int
    samples: int
    seconds: float


@final
@dataclass(frozen=True, slots=True)
class RunSummary:
    """What one call of a run did.

    Args:
        total: inputs of the run.
        before: those that were stored already.
        fresh: those measured and stored now.
        samples: samples drawn now.
        seconds: how long it took.
        stopped: ``done`` where nothing is left, ``time`` where the time limit came first.
    """

    total: int
    before: int
    fresh: int
    samples: int
    seconds: float
    stopped: Literal["done", "time"]

    @property
    def remaining(self) -> int:
        """Inputs that are still to be measured."""
        return self.total - self.before - self.fresh


class _OutOfTimeError(Exception):
    """The time limit came."""


def run(
    spec: RunSpec,
    store: RunStore,
    executor: Executor | None = None,
    *,
    device: str | None = None,
    trust_code: bool = False,
    batch_size: int | None = None,
    compile_allowed: bool = True,
    deadline: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> RunSummary:
    """Measure what a specification asks for, as far as the store does not have it; call it again to go on.

    Args:
        spec: the specification.
        store: its store.
        executor: where it runs; in this process if None.
        device: the device, such as ``cuda:1``; the first of the specification's kind if None.
        trust_code: whether code of the user's may be run (``python:`` references).
        batch_size: the rows of a batch; measured if None.
        compile_allowed: whether compilation may be tried.
        deadline: the value of ``time.monotonic()`` at which to stop.
        on_progress: told how far the run is.
        on_note: told in words how the execution plan was chosen.

    Returns:
        What was done.
    """
    from calipers.runs.measure import measure, prepare

    prepared = prepare(
        spec,
        store,
        device=device,
        trust_code=trust_code,
        batch_size=batch_size,
        compile_allowed=compile_allowed,
        jobs=executor.jobs if isinstance(executor, Processes) else 1,
        on_note=on_note,
    )
    return carry_out(
        prepared.tasks,
        store,
        measure,
        prepared.bench,
        executor=executor,
        deadline=deadline,
        on_progress=on_progress,
    )


def carry_out(
    tasks: Iterable[Task],
    store: RunStore,
    measure: Measure[Context],
    context: Context,
    *,
    executor: Executor | None = None,
    deadline: float | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    of: int | None = None,
) -> RunSummary:
    """Measure the tasks that are not in the store yet, and store what comes.

    Finished tasks are stored at least every second and every 100, so that a kill loses a second of work.
    Whatever ends the call early (Ctrl-C, a dead worker, an error of the measurement), what was finished is
    stored first.

    Args:
        tasks: all tasks of the run.
        store: where the records go.
        measure: the measurement.
        context: what it needs to know.
        executor: where it runs; in this process if None.
        deadline: the value of ``time.monotonic()`` at which to stop; inputs begun and not finished are left
            for the next call.
        on_progress: told how far the run is, several times a second.
        of: how many tasks the whole run has, where these are a part of it.

    Returns:
        What was done.
    """
    wanted = list(tasks)
    stored = store.done()
    todo = [task for task in wanted if task.key not in stored]
    before = len(wanted) - len(todo)
    executor = Serial() if executor is None else executor
    start = last = time.monotonic()
    pending: list[Measured] = []
    fresh = samples = 0

    def flush() -> None:
        nonlocal last
        store.append(pending)
        pending.clear()
        last = time.monotonic()

    def tick(drawn: int) -> None:
        nonlocal samples
        samples += drawn
        now = time.monotonic()
        if pending and now - last >= _FLUSH_SECONDS:
            flush()
        if on_progress is not None:
            on_progress(Progress(before + fresh, len(wanted), fresh, samples, now - start))
        if deadline is not None and now >= deadline:
            raise _OutOfTimeError

    stopped: Literal["done", "time"] = "done"
    if todo:
        store.note("started", _circumstances(executor) | {"todo": len(todo), "total": of or len(wanted)})
        try:
            tick(0)
            with contextlib.closing(executor.stream(measure, context, todo, tick=tick)) as stream:
                for measured in stream:
                    pending.append(measured)
                    fresh += 1
                    if len(pending) >= _BATCH:
                        flush()
                    tick(0)
        except _OutOfTimeError:
            stopped = "time"
        except BaseException as problem:
            if not isinstance(problem, StoreError):
                flush()
            raise
        flush()
    if before + fresh == len(wanted):
        stopped = "done"
    summary = RunSummary(len(wanted), before, fresh, samples, time.monotonic() - start, stopped)
    if todo:
        store.note(
            "stopped", {"why": stopped, "fresh": fresh, "samples": samples, "seconds": summary.seconds}
        )
    if on_progress is not None:
        on_progress(Progress(before + fresh, len(wanted), fresh, samples, summary.seconds))
    return summary


def _circumstances(executor: Executor) -> dict[str, object]:
    return {
        "calipers": __version__,
        "executor": repr(executor),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
