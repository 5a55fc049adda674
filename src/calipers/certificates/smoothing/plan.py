"""How forwards are run: batch shape, memory layout, compilation and threads, chosen once by a short measurement.

Float32 results depend on the shape of the batch, so the plan is stored with the run, is part of the resume key, and
every forward of the run uses it. No torch is loaded until a plan is measured.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, final
from weakref import WeakKeyDictionary

from calipers.certificates.smoothing.rows import require_own_answers
from calipers.certificates.smoothing.stopping import CHUNK
from calipers.errors import StoreCorrupt, TargetError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from calipers.target import Target

__all__ = ["ExecutionPlan", "check_rows", "compiler_available", "measure_plan", "plan_for", "prepare_forward"]

_RECOMPILE_LIMIT = 1024

_WORTH_COMPILING = 60.0
"""Seconds of work below which compilation, which costs that order of time itself, is not tried."""

_checked: WeakKeyDictionary[Target, dict[str, bool]] = WeakKeyDictionary()
_prepared: WeakKeyDictionary[Target, dict[str, Callable[[Tensor], Tensor]]] = WeakKeyDictionary()


@final
@dataclass(frozen=True)
class ExecutionPlan:
    """How forwards are run; two runs with the same plan on the same kind of machine count the same votes.

    Args:
        batch_size: rows of every forward: a multiple or a divisor of CHUNK.
        channels_last: whether images lie in memory with the channel innermost.
        compiled: whether the network is compiled by torch.
        threads: batches that run at the same time on the CPU, each on one thread; no vote depends on it.
        device: the kind of device, ``cpu`` or ``cuda``.
        precision: the number format of the target.
        tf32: whether float32 convolutions on CUDA round their inputs to TensorFloat32, as torch does unless it is told
            otherwise; matrix products never do.
        note: how the plan was chosen, for the reader.
        speed: forwards a second when it was chosen, noise and votes left out; 0 where nobody measured.
    """

    batch_size: int
    channels_last: bool = True
    compiled: bool = False
    threads: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    tf32: bool = False
    note: str = ""
    speed: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (CHUNK % self.batch_size and self.batch_size % CHUNK):
            raise UsageError(
                f"batch size is {self.batch_size}: give a multiple or a divisor of {CHUNK}, such as 50, 100 or 500"
            )
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}: give at least 1")

    def key(self) -> str:
        """Name what can change a vote: everything but the note, the speed and the threads.

        Returns:
            Text for the resume key.
        """
        layout = "channels-last" if self.channels_last else "contiguous"
        mode = "compiled" if self.compiled else "eager"
        rounding = " tf32" if self.tf32 else ""
        return f"{self.device} {self.precision}{rounding} batch={self.batch_size} {layout} {mode}"

    def to_json(self) -> str:
        """Write the plan as JSON.

        Returns:
            The text that :meth:`from_json` reads.
        """
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ExecutionPlan:
        """Read a plan.

        Args:
            text: what :meth:`to_json` wrote.

        Returns:
            The plan.

        Raises:
            StoreCorrupt: if the text is not a plan.
        """
        try:
            return ExecutionPlan(**json.loads(text))
        except (TypeError, ValueError) as problem:
            raise StoreCorrupt(f"the stored execution plan cannot be read: {problem}") from None


def compiler_available(device: str) -> bool:
    """Tell whether torch can compile for a device here.

    Args:
        device: the kind of device, ``cpu`` or ``cuda``.

    Returns:
        Whether the C++ compiler (CPU), or Triton and a C compiler (CUDA), are found.
    """
    if device == "cuda":
        from importlib.util import find_spec

        return find_spec("triton") is not None and shutil.which("gcc") is not None
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def prepare_forward(target: Target, plan: ExecutionPlan, *, copy: int = 0) -> Callable[[Tensor], Tensor]:
    """Make the function that the hot loop calls on every batch.

    Args:
        target: the classifier.
        plan: how to run it.
        copy: which copy of the network; those that run at the same time must not be the same one, since a module may
            keep something of its last forward.

    Returns:
        A function from noisy inputs (batch_size, *input_shape), float32, to scores, or to outcomes where the target
        gives decisions only.

    Raises:
        UsageError: if the plan is for another device or precision than the target's.
    """
    from calipers.target import Access

    if (plan.device, plan.precision) != (target.device.type, target.precision):
        raise UsageError(
            f"the plan is for {plan.device} {plan.precision}, and {target.name} is on {target.device.type} in "
            f"{target.precision}: measure a plan for it"
        )
    ready = _prepared.setdefault(target, {})
    name = f"{plan.key()} {copy}"
    if name not in ready:
        simple = {Access.DECISIONS: target.outcomes, Access.SCORES: target.logits}
        ready[name] = simple.get(target.access) or _prepare_module(target, plan)
    return ready[name]


def check_rows(target: Target, plan: ExecutionPlan) -> bool:
    """Refuse a plan under which a row's answer depends on its place in the batch or on its mates.

    Args:
        target: the classifier.
        plan: how forwards are run.

    Returns:
        Whether rows are answered the same to the bit wherever they stand; found once for each target and plan.

    Raises:
        TargetError: if answers differ by more than rounding.
    """
    import torch

    found = _checked.setdefault(target, {})
    if plan.key() not in found:
        with torch.inference_mode():
            x = _batch(target, plan.batch_size, channels_last=plan.channels_last)
            found[plan.key()] = require_own_answers(target, prepare_forward(target, plan), x)
    return found[plan.key()]


def _prepare_module(target: Target, plan: ExecutionPlan) -> Callable[[Tensor], Tensor]:
    import copy

    import torch

    module: Any = copy.deepcopy(target.module)
    if plan.channels_last and len(target.input_shape) == 3:
        module = module.to(memory_format=torch.channels_last)
    if plan.compiled:
        from torch import _dynamo

        # Beyond this many compiled variants of one module class torch would fall back to eager without a word.
        _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        module = torch.compile(module, dynamic=False)
    forward: Callable[[Tensor], Tensor] = module
    return forward


def _candidates(target: Target, batch_size: int | None, device: str) -> list[int]:
    if batch_size is not None:
        return [batch_size]
    if device == "cuda":
        room = 2**31 // max(target.dimension, 1)
        return [size for size in (1000, 2000, 4000, 8000) if size <= room] or [100]
    room = 2**26 // max(target.dimension, 1)
    return [size for size in (100, 200, 500, 1000) if size <= room] or [20]


def _seconds(forward: Callable[[Tensor], Tensor], x: Tensor, *, least: float) -> float:
    """Seconds of one forward: the best of a few, over at least ``least`` seconds."""
    import torch

    best, begun, rounds = float("inf"), time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - begun < least:
        start = time.perf_counter()
        forward(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        best = min(best, time.perf_counter() - start)
        rounds += 1
        if rounds >= 50:
            break
    return best


def _batch(target: Target, size: int, *, channels_last: bool) -> Tensor:
    import torch

    low, high = target.bounds
    generator = torch.Generator(target.device).manual_seed(0)
    shape = target.input_shape
    if channels_last and len(shape) == 3:
        flat = torch.rand((size, shape[1], shape[2], shape[0]), generator=generator, device=target.device)
        return (low + (high - low) * flat).permute(0, 3, 1, 2)
    return low + (high - low) * torch.rand((size, *shape), generator=generator, device=target.device)


def measure_plan(
    target: Target,
    *,
    samples: int,
    batch_size: int | None = None,
    compile_allowed: bool = True,
    threads: int | None = None,
    on_note: Callable[[str], None] | None = None,
) -> ExecutionPlan:
    """Choose batch size, layout and compilation by timing a few forwards of the target.

    Compilation is tried only where the work would take longer than a minute without it, since it costs that order of
    time itself.

    Args:
        target: the classifier.
        samples: an estimate of the forwards that the run will need.
        batch_size: the rows of a batch if the user fixed them.
        compile_allowed: whether compilation may be tried.
        threads: batches to run at the same time on the CPU; torch's own number of threads if None.
        on_note: told in words what was found.

    Returns:
        The plan, whose note says how fast each candidate was.
    """
    import torch

    from calipers.target import Access

    device = target.device.type
    count = threads or torch.get_num_threads()
    base = ExecutionPlan(
        batch_size or CHUNK,
        threads=count,
        device=device,
        precision=target.precision,
        tf32=device == "cuda" and target.precision == "fp32" and torch.backends.cudnn.allow_tf32,
        channels_last=False,
    )
    from calipers.target.allocator import keep_freed_memory

    said: list[str] = []
    if device == "cpu":
        keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best_plan, best = _best(target, base, samples, batch_size, compile_allowed, said)
    finally:
        torch.set_num_threads(before)
    lanes = count if device == "cpu" and target.access is Access.GRADIENTS and not target.stochastic else 1
    note = f"{best:,.0f} forwards a second" + (
        f" and lane, {lanes} lane{'' if lanes == 1 else 's'}; " if device == "cpu" else "; "
    )
    note += "; ".join(said)
    if on_note is not None:
        on_note(note)
    return replace(best_plan, note=note, speed=best * lanes)


def plan_for(target: Target, plan: ExecutionPlan | None, *, samples: int) -> ExecutionPlan:
    """Take the plan that was given if the classifier bears it, or measure one.

    Args:
        target: the classifier.
        plan: how forwards are run; measured if None.
        samples: an estimate of the forwards that the run will need.

    Returns:
        The plan.
    """
    chosen = plan or measure_plan(target, samples=samples)
    check_rows(target, chosen)
    return chosen


def _best(
    target: Target,
    base: ExecutionPlan,
    samples: int,
    batch_size: int | None,
    compile_allowed: bool,
    said: list[str],
) -> tuple[ExecutionPlan, float]:
    import torch

    from calipers.target import Access

    with torch.inference_mode():
        trials = _trials(target, base, batch_size, said)
        best_plan, best, exact = max(trials, key=lambda trial: (trial.exact, trial.speed))
        if not exact:
            said.append(
                "rows are answered to rounding only, so that a vote may depend on what shares its batch"
            )
        long = samples / best / (base.threads if base.device == "cpu" else 1) > _WORTH_COMPILING
        if compile_allowed and target.access is Access.GRADIENTS and long:
            if compiler_available(base.device):
                return _try_compiled(target, best_plan, best, said)
            said.append("no C++ compiler was found, so the network runs eagerly")
    return best_plan, best


class _Trial(NamedTuple):
    plan: ExecutionPlan
    speed: float
    exact: bool


def _trials(target: Target, base: ExecutionPlan, batch_size: int | None, said: list[str]) -> list[_Trial]:
    from calipers.target import Access

    layouts = (
        (True, False) if target.access is Access.GRADIENTS and len(target.input_shape) == 3 else (False,)
    )
    found: list[_Trial] = []
    for channels_last in layouts:
        for size in _candidates(target, batch_size, base.device):
            plan = replace(base, batch_size=size, channels_last=channels_last)
            x = _batch(target, size, channels_last=channels_last)
            forward = prepare_forward(target, plan)
            speed = size / _seconds(forward, x, least=0.25)
            found.append(_Trial(plan, speed, check_rows(target, plan)))
            if speed < 0.6 * max(trial.speed for trial in found):
                break
    for plan, speed, exact in found:
        layout = "channels-last" if plan.channels_last else "contiguous"
        rows = "" if exact else " (rows to rounding only)"
        said.append(f"{layout} batch {plan.batch_size}: {speed:,.0f}/s{rows}")
    return found


def _try_compiled(
    target: Target, plan: ExecutionPlan, speed: float, said: list[str]
) -> tuple[ExecutionPlan, float]:
    compiled = replace(plan, compiled=True)
    x = _batch(target, plan.batch_size, channels_last=plan.channels_last)
    start = time.perf_counter()
    try:
        forward = prepare_forward(target, compiled)
        forward(x)
    except TargetError:
        said.append("compiled, rows depend on their mates, so the network runs eagerly")
        return plan, speed
    except Exception as problem:
        said.append(f"compilation failed ({type(problem).__name__}), so the network runs eagerly")
        return plan, speed
    spent = time.perf_counter() - start
    fast = plan.batch_size / _seconds(forward, x, least=0.5)
    said.append(f"compiled: {fast:,.0f}/s after {spent:.0f} s")
    if fast <= speed or not check_rows(target, compiled):
        return plan, speed
    return compiled, fast
