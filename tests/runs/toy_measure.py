"""A measurement that costs little and whose result is known: what executors and runs are tested with."""

from __future__ import annotations

import hashlib
import os
import pathlib
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from calipers.errors import MissingExtra, TargetError
from calipers.evidence.records import Certificate
from calipers.runs.executors import Tick
from calipers.runs.store import Measured
from calipers.runs.tasks import Task


@dataclass(frozen=True)
class Toy:
    """How the toy behaves.

    Args:
        sleep: seconds that an input takes.
        in_flight: how many inputs it holds at once; they come out in another order than they went in.
        fail_at: the index at which it raises.
        fail_how: what it raises there: a TargetError, a MissingExtra, or another error.
        die_at: the index at which the process kills itself.
        silent: whether it says nothing while it sleeps, as inside one long forward pass.
        marks: a folder in which the process leaves its number.
    """

    sleep: float = 0.0
    in_flight: int = 1
    fail_at: int = -1
    fail_how: str = "target"
    die_at: int = -1
    silent: bool = False
    marks: str = ""


def result_of(task: Task) -> Certificate:
    """Make the record that the toy gives for a task, its time aside."""
    votes = hashlib.blake2b(task.digest.encode(), digest_size=3).digest()
    return Certificate(
        index=task.index,
        label=task.label,
        prediction=votes[0] % 10,
        method="Toy()",
        target="t",
        input_digest=task.digest,
        seed=0,
        seconds=0.0,
        radius=votes[1] / 256,
        norm="l2",
        alpha=0.001,
        bound="two-sided",
        theorem="none",
        selected=votes[0] % 10,
        counts=tuple(votes),
        selection=(),
        p_lower=votes[2] / 256,
        p_upper=0.0,
        samples=sum(votes),
        budget=1000,
        stopping="FixedBudget()",
        noise="Gaussian(sigma=0.25)",
    )


def measure(toy: Toy, tasks: Iterable[Task], tick: Tick) -> Iterator[Measured]:
    """Measure as a certifier does: several inputs at once, given back in an order of its own."""
    if toy.marks:
        with pathlib.Path(f"{toy.marks}/{os.getpid()}").open("w", encoding="utf-8"):
            pass
    held: list[Task] = []
    source = iter(tasks)
    while True:
        while len(held) < toy.in_flight:
            following = next(source, None)
            if following is None:
                break
            held.append(following)
        if not held:
            return
        task = held.pop()
        start = time.perf_counter()
        if task.index == toy.fail_at:
            if toy.fail_how == "target":
                raise TargetError("the toy does not like input 7: leave it out")
            if toy.fail_how == "extra":
                raise MissingExtra("onnxruntime", extra="onnx")
            raise ZeroDivisionError("a fault of the program")
        if task.index == toy.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        while time.perf_counter() - start < toy.sleep:
            time.sleep(toy.sleep if toy.silent else min(toy.sleep, 0.01))
            if not toy.silent:
                tick(10)
        tick(10)
        yield Measured(task.key, [replace(result_of(task), seconds=time.time())])


def measured_by(_: object, tasks: Iterable[Task], tick: Tick) -> Iterator[Measured]:
    """Tell of each task which process measured it: its number is the seed of the record."""
    for task in tasks:
        time.sleep(0.02)
        yield Measured(task.key, [replace(result_of(task), seed=os.getpid())])
