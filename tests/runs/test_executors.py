"""Executors: the same results wherever they are made, nothing lost when a worker dies, nothing left running."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_measure import Toy, measure, result_of

from calipers.errors import MissingExtra, TargetError, UsageError, WorkerDied
from calipers.evidence.records import AnyRecord
from calipers.runs.executors import Executor, Processes, Serial
from calipers.runs.store import Measured
from calipers.runs.tasks import Task

TASKS = [Task(f"{index:032x}", index, index % 10, f"digest {index}") for index in range(40)]
EXECUTORS = [Serial(), Processes(1), Processes(2), Processes(5)]


def timeless(measured: list[Measured]) -> dict[str, AnyRecord]:
    return {task.key: replace(task.records[0], seconds=0.0) for task in measured}  # type: ignore[type-var]


EXPECTED = {task.key: result_of(task) for task in TASKS}


@pytest.mark.parametrize("in_flight", [1, 7, 100])
@pytest.mark.parametrize("executor", EXECUTORS, ids=repr)
def test_every_task_comes_out_once_with_the_same_result(executor: Executor, in_flight: int) -> None:
    found = list(executor.stream(measure, Toy(in_flight=in_flight), TASKS, tick=lambda _: None))
    assert len(found) == len(TASKS)
    assert timeless(found) == EXPECTED


def test_several_workers_share_the_work(tmp_path: Path) -> None:
    toy = Toy(sleep=0.02, marks=str(tmp_path))
    assert len(list(Processes(2).stream(measure, toy, TASKS, tick=lambda _: None))) == 40
    pids = {int(mark.name) for mark in tmp_path.iterdir()}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_more_workers_than_tasks_is_no_obstacle() -> None:
    assert timeless(list(Processes(3).stream(measure, Toy(), TASKS[:1], tick=lambda _: None))) == {
        TASKS[0].key: EXPECTED[TASKS[0].key]
    }


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=repr)
def test_the_caller_is_told_of_the_samples_while_they_are_drawn(executor: Executor) -> None:
    told: list[int] = []
    list(executor.stream(measure, Toy(sleep=0.5), TASKS[:2], tick=told.append))
    assert sum(told) >= 20
    assert len(told) > 2


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=repr)
def test_what_tick_raises_ends_the_stream_at_once(executor: Executor, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    started = time.monotonic()

    def tick(_: int) -> None:
        if any(tmp_path.iterdir()):
            raise Enough

    with pytest.raises(Enough):
        list(executor.stream(measure, Toy(sleep=60, marks=str(tmp_path)), TASKS, tick=tick))
    assert time.monotonic() - started < 30
    assert_gone(tmp_path)


def assert_gone(marks: Path) -> None:
    for mark in marks.iterdir():
        if int(mark.name) != os.getpid():
            with pytest.raises(ProcessLookupError):
                os.kill(int(mark.name), 0)


def test_closing_the_stream_ends_workers_that_are_busy_at_once(tmp_path: Path) -> None:
    toy = Toy(sleep=2.0, silent=True, marks=str(tmp_path))
    stream = Processes(2).stream(measure, toy, TASKS, tick=lambda _: None)
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 1.6  # nobody waits for the sleepers
    assert any(tmp_path.iterdir())
    assert_gone(tmp_path)


@pytest.mark.parametrize("executor", [Serial(), Processes(2)], ids=repr)
@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("target", TargetError, "does not like input 7"),
        ("extra", MissingExtra, r"pip install 'calipers\[onnx\]'"),
    ],
)
def test_an_error_of_calipers_keeps_its_kind_and_its_remedy(
    executor: Executor, how: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        list(executor.stream(measure, Toy(fail_at=7, fail_how=how), TASKS, tick=lambda _: None))


def test_another_error_of_a_worker_is_told_with_its_traceback() -> None:
    with pytest.raises(WorkerDied, match="ZeroDivisionError: a fault of the program") as caught:
        list(Processes(2).stream(measure, Toy(fail_at=7, fail_how="bug"), TASKS, tick=lambda _: None))
    assert "toy_measure.py" in caught.value.__notes__[0]


def test_a_worker_that_dies_is_named_after_all_that_was_finished_came_out() -> None:
    found: list[Measured] = []
    with pytest.raises(
        WorkerDied, match=r"worker process \d of 2 was ended by SIGKILL.*run the same command again"
    ):
        for measured in Processes(2).stream(measure, Toy(sleep=0.02, die_at=20), TASKS, tick=lambda _: None):
            found.append(measured)
    assert len(found) >= 15, "20 inputs were begun before it"
    assert timeless(found).items() <= EXPECTED.items()


def test_what_another_worker_had_finished_when_one_died_comes_out_too() -> None:
    waited: list[bool] = []

    def tick(_: int) -> None:
        if not waited:  # one has died at its first task and the other has done both of its own
            waited.append(True)
            time.sleep(3)

    found: list[Measured] = []
    with pytest.raises(WorkerDied):
        for measured in Processes(2).stream(measure, Toy(die_at=0), TASKS, tick=tick):
            found.append(measured)
    assert {measured.records[0].index for measured in found} >= {1, 3}


@pytest.mark.parametrize("jobs", [0, -2])
def test_no_workers_are_refused(jobs: int) -> None:
    with pytest.raises(UsageError, match=str(jobs)):
        Processes(jobs)
