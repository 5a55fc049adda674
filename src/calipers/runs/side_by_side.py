"""Whole runs side by side: each in a process of its own with one thread, and none left when the caller stops."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from calipers.errors import CalipersWarning, UsageError, WorkerDied
from calipers.runs.executors import end_with_parent, interrupts_held_back

__all__ = ["side_by_side"]

_GOODBYE_SECONDS = 5.0
_LOOK_SECONDS = 0.01

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], *, jobs: int) -> Iterator[Result]:
    """Do pieces of work that have nothing to do with each other.

    Args:
        work: a function of a module, which travels to other processes by its name.
        items: what it is called with, plain values.
        jobs: processes; 1 works in this one, with one thread as the others do: sums are rounded otherwise in several,
            and a piece of work is to give the same wherever it is done.

    Yields:
        The results, as they come.

    Raises:
        UsageError: if there are fewer than 1 jobs.
        WorkerDied: if a process ended in the middle of its work.
    """
    if jobs < 1:
        raise UsageError(f"jobs is {jobs}: give a whole number of at least 1")
    if jobs == 1 or len(items) < 2:
        with _one_thread():
            yield from map(work, items)
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(items)), mp_context=multiprocessing.get_context("spawn"), initializer=_begin
    )
    with contextlib.ExitStack() as stack:
        stack.callback(_end, pool, {child.pid for child in multiprocessing.active_children()})
        with interrupts_held_back():
            futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise WorkerDied(
                "a process of the run ended in the middle of its work (out of memory, or killed): what was finished is "
                "kept, so give the same command again, with --jobs 1 if memory is short"
            ) from None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin() -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's, who ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore", CalipersWarning)  # the caller has issued them
    torch.set_num_threads(1)


def _end(pool: ProcessPoolExecutor, others: set[int | None]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    children = [child for child in multiprocessing.active_children() if child.pid not in others]
    for child in children:
        child.terminate()
    # the pool's own thread waits for them too, and only one of the two is told of an end: so no join here
    deadline = time.monotonic() + _GOODBYE_SECONDS
    while any(child.is_alive() for child in children) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
