"""Executors: where tasks are measured, in this process or in several; the store is written by this one alone."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar, final

from calipers import errors
from calipers.errors import CalipersError, CalipersWarning, UsageError, WorkerDied
from calipers.runs.store import Measured
from calipers.runs.tasks import Task

__all__ = ["Executor", "Measure", "Processes", "Serial", "Tick", "end_with_parent", "interrupts_held_back"]

Context = TypeVar("Context")
Tick = Callable[[int], None]
"""Told of work done since the last call, in samples; it may raise to stop the work at once."""

Measure = Callable[[Context, Iterable[Task], Tick], Iterator[Measured]]
"""Turns a stream of tasks into a stream of their records, in any order. It takes a task when it has room
for one, may
hold several at once, gives each one back once, and its result for a task depends on the context and that task alone."""

_AHEAD = 2
_WAIT_SECONDS = 0.2
_GOODBYE_SECONDS = 5.0


class Executor(ABC):
    """Runs a measurement over tasks.

    What every executor keeps: results come as they are finished, in any order, each task once; they do not
    depend on the executor; ``tick`` is called in the caller's process, several times a second while work
    goes on where the measurement allows it; when the stream is closed or fails, nothing is left running.
    """

    @abstractmethod
    def stream(
        self, measure: Measure[Context], context: Context, tasks: Iterable[Task], *, tick: Tick
    ) -> Generator[Measured, None, None]:
        """Measure tasks.

        Args:
            measure: the measurement.
            context: what it needs to know; plain values, where it travels to another process.
            tasks: what to measure.
            tick: told of progress; what it raises ends the stream.

        Yields:
            The finished tasks.
        """


@final
@dataclass(frozen=True)
class Serial(Executor):
    """Measures in this process."""

    def stream(
        self, measure: Measure[Context], context: Context, tasks: Iterable[Task], *, tick: Tick
    ) -> Generator[Measured, None, None]:
        """Measure tasks here.

        Args:
            measure: the measurement.
            context: what it needs to know.
            tasks: what to measure.
            tick: told of progress; what it raises ends the stream.

        Yields:
            The finished tasks.
        """
        yield from measure(context, tasks, tick)


@final
@dataclass(frozen=True)
class Processes(Executor):
    """Measures in worker processes, each of which takes a task when it has room for one.

    A worker that dies ends the stream with WorkerDied, after everything that was finished anywhere has come
    out. Workers end when this process does, however it ends.

    Args:
        jobs: the number of worker processes.

    Raises:
        UsageError: if there is not at least one.
    """

    jobs: int

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}: give a whole number of at least 1")

    def stream(
        self, measure: Measure[Context], context: Context, tasks: Iterable[Task], *, tick: Tick
    ) -> Generator[Measured, None, None]:
        """Measure tasks in worker processes.

        Args:
            measure: the measurement: a function of a module, so that a new process can find it.
            context: what it needs to know; it is pickled.
            tasks: what to measure.
            tick: told of progress; what it raises ends the stream.

        Yields:
            The finished tasks.

        Raises:
            WorkerDied: if a worker ended before its tasks were done.
        """
        feed = _parcels(tasks)
        workers: list[_Worker[Context]] = []
        try:
            for number in range(self.jobs):
                workers.append(_Worker(number, measure, context))
            for _ in range(_AHEAD):
                for worker in workers:
                    worker.give(next(feed, None))
            while any(worker.working for worker in workers):
                tick(0)
                pipes = {worker.pipe: worker for worker in workers if worker.working}
                for ready in connection.wait(list(pipes), timeout=_WAIT_SECONDS):
                    worker = pipes[ready]  # type: ignore[index]  # wait gives back what it was given
                    yield from worker.heard(feed, tick)
                dead = next((worker for worker in workers if worker.died), None)
                if dead is not None:
                    for worker in workers:
                        while worker.working and worker.pipe.poll(0):
                            yield from worker.heard(iter(()), tick)
                    raise WorkerDied(dead.epitaph(len(workers)))
        finally:
            _end(workers)


@dataclass(frozen=True, slots=True)
class _Want:
    """A worker has taken a parcel from its pipe and has room for one more in it."""


@dataclass(frozen=True, slots=True)
class _Progress:
    """A worker has drawn so many samples."""

    samples: int


@dataclass(frozen=True, slots=True)
class _Finished:
    """A worker has done all its tasks and been told that there are no more."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """A worker met an error, which is told as text since not every exception survives pickling."""

    kind: str
    text: str
    trace: str

    def error(self) -> CalipersError:
        known = getattr(errors, self.kind, None)
        if isinstance(known, type) and issubclass(known, CalipersError):
            error = known.__new__(known, self.text)
        else:
            error = WorkerDied(
                f"a worker process failed ({self.kind}: {self.text}): what was finished is in the store"
            )
        error.add_note(f"in a worker process:\n{self.trace}")
        return error


class _Worker(Generic[Context]):
    """One worker process as the parent sees it."""

    def __init__(self, number: int, measure: Measure[Context], context: Context) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.number = number
        self.working = True
        self.died = False
        self._held = 0
        self._told_end = False
        self.pipe, other = spawn.Pipe()
        self.process: BaseProcess = spawn.Process(
            target=_work, args=(other, measure, context), daemon=True, name=f"calipers-{number}"
        )
        with interrupts_held_back():
            self.process.start()
        other.close()

    def give(self, parcel: list[Task] | None) -> None:
        # Send a parcel, or say once that there are no more.
        if self._told_end:
            return
        self._told_end = parcel is None
        self._held += len(parcel or ())
        with contextlib.suppress(OSError):  # a dead worker is noticed where its pipe is read
            self.pipe.send(parcel)

    def heard(self, feed: Iterator[list[Task]], tick: Tick) -> Iterator[Measured]:
        # Read one message and answer it.
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            self.working, self.died = False, True
            return
        match message:
            case _Want():
                self.give(next(feed, None))
            case _Progress(samples):
                tick(samples)
            case _Finished():
                self.working = False
            case _Failure():
                self.working = False
                raise message.error()
            case _:
                self._held -= 1
                yield message

    def epitaph(self, jobs: int) -> str:
        self.process.join(_GOODBYE_SECONDS)
        code = self.process.exitcode
        how = f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        if code == -getattr(signal, "SIGKILL", 9):
            how += " (which the system does when memory runs out)"
        held = "1 input" if self._held == 1 else f"{self._held} inputs"
        return (
            f"worker process {self.number + 1} of {jobs} {how} with {held} unfinished: what was "
            "finished is in the store; run the same command again to go on, with fewer --jobs if memory was short"
        )


def _parcels(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    # Tasks of one batch go to one worker; each other task goes alone.
    for batch, group in itertools.groupby(tasks, key=lambda task: task.batch):
        if batch is None:
            yield from ([task] for task in group)
        else:
            yield list(group)


def _end(workers: list[_Worker[Context]]) -> None:
    for worker in workers:
        worker.pipe.close()
        if worker.process.is_alive() and (worker.working or worker.died):
            worker.process.terminate()
    for worker in workers:
        worker.process.join(_GOODBYE_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Hold Ctrl-C back while children start: they inherit the mask, and cannot be reached before they ignore it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: connection.Connection, measure: Measure[Context], context: Context) -> None:
    # The life of a worker process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CalipersWarning)  # the parent has issued them
    try:
        for measured in measure(context, _fed(pipe), _teller(pipe)):
            pipe.send(measured)
        pipe.send(_Finished())
    except (BrokenPipeError, ConnectionResetError, EOFError):
        return  # the parent has stopped: it needs nothing more
    except Exception as problem:
        with contextlib.suppress(OSError):
            pipe.send(_Failure(type(problem).__name__, str(problem), traceback.format_exc()))


def _fed(pipe: connection.Connection) -> Iterator[Task]:
    while True:
        parcel = pipe.recv()
        if parcel is None:
            return
        pipe.send(_Want())
        yield from parcel


def _teller(pipe: connection.Connection) -> Tick:
    untold = 0
    last = time.monotonic()

    def tell(samples: int) -> None:
        nonlocal untold, last
        untold += samples
        if time.monotonic() - last >= _WAIT_SECONDS:
            pipe.send(_Progress(untold))
            untold, last = 0, time.monotonic()

    return tell


def end_with_parent() -> None:
    """Wait until the parent process has ended, and end this one; for a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
