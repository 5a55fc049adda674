"""Measuring: settles a run with its store, and turns a stream of tasks into a stream of records.

It is the only file that calls methods. It loads torch when something is measured, and not before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from calipers.errors import InvalidInput, StoreMismatch, UsageError
from calipers.runs.bench import Bench, Facts, Subject
from calipers.runs.descriptions import (
    build_attack,
    build_certifier,
    build_judge,
    build_predictor,
)
from calipers.runs.executors import Tick
from calipers.runs.spec import RunSpec
from calipers.runs.store import Measured, RunStore
from calipers.runs.tasks import Conditions, Task, tasks_of
from calipers.threat.threat_model import Norm, ThreatModel
from calipers.threat.units import parse_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from calipers.attacks.base import Attack
    from calipers.certificates.base import Certifier
    from calipers.certificates.smoothing.certifier import VotePredictor
    from calipers.certificates.smoothing.plan import ExecutionPlan
    from calipers.evidence.records import Certificate, Prediction

__all__ = ["Prepared", "measure", "prepare"]


@final
@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start.

    Args:
        bench: what the measurement needs to know.
        tasks: all tasks of the run.
        todo: how many of them are not in the store.
        plan: how forwards are run.
        draws: the most forwards that one input can take.
        described: pairs of a word and its value, for a user to look at before the run.
    """

    bench: Bench
    tasks: tuple[Task, ...]
    todo: int
    plan: ExecutionPlan
    draws: int
    described: Facts


def prepare(
    spec: RunSpec,
    store: RunStore,
    *,
    device: str | None = None,
    trust_code: bool = False,
    bench: Bench | None = None,
    batch_size: int | None = None,
    compile_allowed: bool = True,
    jobs: int = 1,
    on_note: Callable[[str], None] | None = None,
) -> Prepared:
    """Load and check everything that a run needs, and settle it with the store.

    All inputs are read and checked now, so that a damaged one is found before hours of work. What the
    references turned out to be is stored at the first run and compared at every later one. The method is
    asked to measure no input at all, so that what it refuses is refused now.

    Args:
        spec: the specification.
        store: the store of the run.
        device: the device; that of the specification's kind if None.
        trust_code: whether code of the user's may be run.
        bench: what is loaded already, on that device; loaded here if None.
        batch_size: the rows of a batch; measured if None.
        compile_allowed: whether compilation may be tried.
        jobs: the number of worker processes that will share the machine.
        on_note: told in words how the execution plan was chosen.

    Returns:
        The run, ready to start.

    Raises:
        UsageError: if the specification asks for another kind of device.
        InvalidInput: if an input that is to be attacked has no label.
    """
    place = device or spec.device
    if place.partition(":")[0] != spec.device:
        raise UsageError(f"device is {place} and the specification says {spec.device}: their noise differs")
    method = _method(spec, trust_code=trust_code)
    bench = bench or Bench(spec, device=place, trust_code=trust_code)
    subject, inputs = bench.subject(), bench.inputs()
    unlabelled = [index for index, label, _ in inputs if label < 0]
    if spec.kind == "attack" and unlabelled:
        raise InvalidInput(
            f"input {unlabelled[0]} of {spec.data} has no label: an attack needs to know which answer is right"
        )
    store.settle(
        {
            "target": subject.target.fingerprint,
            "base target": subject.base.fingerprint,
            "data": subject.data.fingerprint,
            "input shape": "x".join(str(side) for side in subject.target.input_shape),
            "classes": str(subject.target.num_classes),
            f"{'attack' if spec.kind == 'attack' else 'method'} revision": str(method.revision),
            **({"code": subject.code} if subject.code else {}),
        }
    )
    bench.identity = subject.identity
    plan = _plan(
        spec,
        store,
        subject,
        samples=len(inputs) * _draws(method),
        batch_size=batch_size,
        compile_allowed=compile_allowed,
        jobs=jobs,
        on_note=on_note,
    )
    bench.plan = plan
    rehearsed = list(measure(bench, (), lambda _: None))
    assert not rehearsed, "a method gave a record of no input"
    conditions = Conditions(subject.identity, plan.key(), method.revision)
    rows = plan.batch_size if spec.kind == "attack" else None
    tasks = tuple(tasks_of(spec, conditions, inputs, rows=rows))
    done = store.done()
    todo = sum(task.key not in done for task in tasks)
    return Prepared(bench, tasks, todo, plan, _draws(method), subject.described)


def measure(bench: Bench, tasks: Iterable[Task], tick: Tick) -> Iterator[Measured]:
    """Measure tasks by the method of a specification.

    Args:
        bench: the specification, its plan, and what is loaded of it.
        tasks: what to measure; a task is taken when the method has room for one more input.
        tick: told of the forwards that were run.

    Yields:
        The finished tasks, in the order in which the method finishes them.

    Raises:
        StoreMismatch: if this process loaded another classifier than the one that the run was prepared with.
        InvalidInput: if an input changed meanwhile.
    """
    subject = bench.subject()
    if bench.identity not in (None, subject.identity):
        raise StoreMismatch(
            f"{bench.spec.model} is another classifier each time it is loaded ({bench.identity} when the run was "
            f"prepared, {subject.identity} in a worker process): seed its construction, or load its weights from a file"
        )
    if bench.spec.kind == "attack":
        yield from _attack(bench, subject, tasks, tick)
        return
    held: dict[int, Task] = {}

    def inputs() -> Iterator[tuple[int, Tensor]]:
        import torch

        for task in tasks:
            held[task.index] = task
            yield task.index, torch.from_numpy(_pixels(bench, subject, task))

    for record in _stream(bench, subject, inputs(), tick):
        task = held.pop(record.index)
        yield Measured(task.key, [replace(record, label=task.label, input_digest=task.digest)])


def _pixels(bench: Bench, subject: Subject, task: Task) -> NDArray[np.float32]:
    from calipers.sources.inputs import input_digest

    image = subject.data.pixels.read(task.index)
    if input_digest(image) != task.digest:
        raise InvalidInput(
            f"input {task.index} of {bench.spec.data} changed while it was measured: keep it still"
        )
    return image


def _attack(bench: Bench, subject: Subject, tasks: Iterable[Task], tick: Tick) -> Iterator[Measured]:
    import numpy as np
    import torch

    spec = bench.spec
    attack = build_attack(spec.method, trust_code=bench.trust_code)
    judge = build_judge(spec.judge)
    threat = ThreatModel(Norm.parse(spec.norm), float(parse_size(spec.eps)) if spec.eps else None)
    through = None if subject.target is subject.base else subject.base
    attack.rehearse(subject.target, threat, through=through)
    for asked, batch in _batches(bench, tasks):
        found = attack(
            subject.target,
            torch.from_numpy(np.stack([_pixels(bench, subject, task) for task in batch])),
            torch.tensor([task.label for task in batch]),
            threat,
            seed=spec.seed,
            indices=[task.index for task in batch],
            judge=judge,
            through=through,
        )
        tick(int(found.forwards.sum()))
        adversarial = found.adversarial.cpu().numpy()
        for record, image in zip(found.records(), adversarial, strict=True):
            task = asked.get(record.index)
            if task is not None:
                yield Measured(task.key, [replace(record, input_digest=task.digest)], {"adversarial": image})


def _batches(bench: Bench, tasks: Iterable[Task]) -> Iterator[tuple[dict[int, Task], list[Task]]]:
    # The tasks that are asked for, and the whole batch that they are part of: a search in float32 depends on the shape
    # of its batch, so that what is left of one after an interruption is measured among the same neighbours again.
    for batch, group in itertools.groupby(tasks, key=lambda task: task.batch):
        asked = {task.index: task for task in group}
        assert bench.plan is not None and batch is not None, "prepare plans an attack and numbers its batches"
        rows = bench.plan.batch_size
        whole = bench.inputs()[batch * rows : (batch + 1) * rows]
        yield asked, [Task("", index, label, digest, batch) for index, label, digest in whole]


def _rows_each(inputs: int, jobs: int) -> int:
    # The largest batch with which no worker is without one; a batch is measured by one worker.
    from calipers.certificates.smoothing.stopping import CHUNK

    fitting = (rows for rows in range(1, CHUNK + 1) if CHUNK % rows == 0 and rows * jobs <= inputs)
    return CHUNK if jobs == 1 else max(fitting, default=1)


def _stream(
    bench: Bench, subject: Subject, inputs: Iterable[tuple[int, Tensor]], tick: Tick
) -> Iterator[Certificate | Prediction]:
    spec = bench.spec
    if spec.kind == "predict":
        predictor = build_predictor(spec.method)
        yield from predictor.stream(subject.target, inputs, seed=spec.seed, plan=bench.plan, progress=tick)
    else:
        certifier = build_certifier(spec.method)
        threat = ThreatModel(Norm.parse(spec.norm))
        yield from certifier.stream(
            subject.target, inputs, threat, seed=spec.seed, plan=bench.plan, progress=tick
        )


def _method(spec: RunSpec, *, trust_code: bool) -> Certifier | VotePredictor | Attack:
    if spec.kind == "attack":
        build_judge(spec.judge)
        return build_attack(spec.method, trust_code=trust_code)
    if spec.kind == "predict":
        return build_predictor(spec.method)
    if spec.kind == "certify":
        return build_certifier(spec.method)
    raise UsageError(f"a run of kind {spec.kind!r} is read from counts or a file, not measured")


def _draws(method: Certifier | VotePredictor | Attack) -> int:
    # The most forwards that one input can take.
    from calipers.certificates.smoothing.certifier import SoftCertifier, VoteCertifier, VotePredictor

    match method:
        case VoteCertifier() | SoftCertifier():
            return method.n0 + method.n
        case VotePredictor():
            return method.n
        case _:
            return 1


def _plan(
    spec: RunSpec,
    store: RunStore,
    subject: Subject,
    *,
    samples: int,
    batch_size: int | None,
    compile_allowed: bool,
    jobs: int,
    on_note: Callable[[str], None] | None,
) -> ExecutionPlan:
    import torch

    from calipers.certificates.smoothing.plan import ExecutionPlan, compiler_available, measure_plan
    from calipers.certificates.smoothing.stopping import CHUNK

    threads = max(1, torch.get_num_threads() // jobs)
    name = "attack plan" if spec.kind == "attack" else "plan"
    stored = store.facts().get(name)
    if stored is None and (subject.target is subject.base or spec.kind == "attack"):
        shared = CHUNK if spec.kind != "attack" else _rows_each(samples, jobs)
        plan = ExecutionPlan(
            batch_size or shared,
            channels_last=False,
            device=subject.base.device.type,
            note="batches of a fixed size",
        )
        store.settle({name: plan.to_json()})
        return plan
    if stored is None:
        plan = measure_plan(
            subject.base,
            samples=samples // jobs,
            batch_size=batch_size,
            compile_allowed=compile_allowed,
            threads=threads,
            on_note=on_note,
        )
        store.settle({name: plan.to_json()})
        return plan
    plan = ExecutionPlan.from_json(stored)
    if batch_size is not None and batch_size != plan.batch_size:
        raise StoreMismatch(
            f"{store.path} was begun with batches of {plan.batch_size}, and {batch_size} is asked for: float32 results "
            "depend on it; leave --batch-size out, or name another file with --run"
        )
    if plan.compiled and not compiler_available(plan.device):
        raise StoreMismatch(
            f"{store.path} was begun with a compiled network and there is no compiler here: install one, or name "
            "another file with --run"
        )
    return replace(plan, threads=threads)
