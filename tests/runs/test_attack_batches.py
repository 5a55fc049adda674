"""What an attack finds for an input depends neither on what was stored before nor on who measures the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy_measure import measured_by

from calipers.runs.executors import Executor, Processes, Serial
from calipers.runs.measure import Prepared, measure, prepare
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
from calipers.runs.tasks import Task

SPEC = RunSpec(
    kind="attack",
    model="bundled:fashion-cnn28-plain",
    data="bundled:fashion-mnist",
    method="DDN(steps=5)",
    norm="l2",
    limit=10,
    judge="Judge()",
)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    with RunStore.in_memory(SPEC) as store:
        return prepare(SPEC, store, batch_size=4)


def found(
    prepared: Prepared, tasks: tuple[Task, ...], executor: Executor | None = None
) -> dict[str, Measured]:
    stream = (executor or Serial()).stream(measure, prepared.bench, tasks, tick=lambda _: None)
    return {one.key: one for one in stream}


def alike(one: Measured, other: Measured) -> bool:
    rows = [[replace(record, seconds=0.0) for record in each.records] for each in (one, other)]
    return rows[0] == rows[1] and np.array_equal(one.tensors["adversarial"], other.tensors["adversarial"])


def test_what_is_left_of_a_batch_is_found_as_in_the_whole(prepared: Prepared) -> None:
    """A float32 network answers a batch of 4 and one of 1 differently in the last bit."""
    whole = found(prepared, prepared.tasks)
    assert len(whole) == 10
    assert [task.batch for task in prepared.tasks] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    for asked in (prepared.tasks[1::4], prepared.tasks[3:5], prepared.tasks[9:]):
        part = found(prepared, asked)
        assert list(part) == [task.key for task in asked]
        assert all(alike(part[key], whole[key]) for key in part)


@pytest.mark.slow
def test_workers_find_what_one_process_finds(prepared: Prepared) -> None:
    whole, shared = found(prepared, prepared.tasks), found(prepared, prepared.tasks, Processes(2))
    assert whole.keys() == shared.keys()
    assert all(alike(whole[key], shared[key]) for key in whole)


def test_tasks_of_one_batch_go_to_one_worker_and_others_go_alone() -> None:
    tasks = [Task(f"{index:032x}", index, 0, "", index // 7) for index in range(42)]
    shared = list(Processes(2).stream(measured_by, None, tasks, tick=lambda _: None))
    workers: dict[int, set[int]] = {}
    for one in shared:
        workers.setdefault(one.records[0].index // 7, set()).add(one.records[0].seed)
    assert len(shared) == 42
    assert [len(workers[batch]) for batch in range(6)] == [1] * 6
    assert len(set.union(*workers.values())) == 2
    alone = [replace(task, batch=None) for task in tasks[:4]]
    assert (
        len(
            {
                one.records[0].seed
                for one in Processes(4).stream(measured_by, None, alone, tick=lambda _: None)
            }
        )
        == 4
    )


@pytest.mark.parametrize(("jobs", "rows"), [(1, 100), (2, 5), (3, 2), (20, 1)])
def test_a_batch_is_small_enough_for_every_worker_to_have_one(jobs: int, rows: int) -> None:
    with RunStore.in_memory(SPEC) as store:
        plan = prepare(SPEC, store, jobs=jobs).plan
    assert plan.batch_size == rows
