"""Lanes: how packed batches are run on a device, several at a time.

On the CPU every lane is a thread with its own buffer and its own copy of the network, and every forward runs on one
thread: float32 sums may depend on how many threads share one, and a vote must not. On CUDA noise is drawn on a second
stream beside the forward of an earlier batch, and counts come back without waiting for the batch that is under way.
"""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from calipers.certificates.smoothing.noise import Noise
from calipers.certificates.smoothing.plan import ExecutionPlan, prepare_forward
from calipers.certificates.smoothing.stopping import CHUNK
from calipers.randomness import Role, Stream
from calipers.target import Access, Target
from calipers.target.allocator import keep_freed_memory

__all__ = ["Chunk", "Lanes", "Tally", "open_lanes"]

Tally = Callable[[Tensor, Tensor, int], Tensor]
"""From scores, the rows that count and the number of classes to one row of sums for each chunk."""


class Chunk(NamedTuple):
    """At most CHUNK draws for one input.

    Args:
        x: the input, as the lanes prepared it.
        stream: the stream of its noise.
        number: the number of the chunk in the stream.
        rows: the draws that count; the rest of the chunk pads.
    """

    x: Tensor
    stream: Stream
    number: int
    rows: int


class _Lane:
    """One buffer of noisy inputs and one copy of the network."""

    def __init__(self, target: Target, noise: Noise, plan: ExecutionPlan, tally: Tally, copy: int) -> None:
        self._target = target
        self._noise = noise
        self._plan = plan
        self._tally = tally
        self._device = target.device
        self._forward = prepare_forward(target, plan, copy=copy)
        self._image = len(target.input_shape) == 3
        self._block = max(plan.batch_size, CHUNK)
        channels, *sides = target.input_shape
        stored = (*sides, channels) if self._image else target.input_shape
        with torch.inference_mode():
            self._buffer = torch.zeros((self._block, *stored), device=self._device)
            self._all_counted = torch.ones(
                (self._block // CHUNK, CHUNK), dtype=torch.int64, device=self._device
            )
        self.free: torch.cuda.Event | None = None

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Draw the noise of each chunk and add it to its input."""
        slots = self._buffer.view(self._block // CHUNK, CHUNK, *self._buffer.shape[1:])
        for slot, chunk in zip(slots, chunks, strict=False):
            self._noise.fill(slot.view(-1), chunk.stream.generator(chunk.number, self._device))
        noisy = slots[: len(chunks)]
        self._noise.add(torch.stack([chunk.x for chunk in chunks])[:, None], noisy, noisy)

    def tally(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run the forward on the whole buffer and sum up each chunk; rows of absent chunks are never read."""
        x = self._buffer.permute(0, 3, 1, 2) if self._image else self._buffer
        if self._image and not self._plan.channels_last:
            x = x.contiguous()
        if self._target.stochastic:
            scores = self._with_own_randomness(x, chunks[0])
        else:
            scores = self._scores(x)
        return self._tally(scores, self._counted(chunks), self._target.num_classes)

    def _scores(self, x: Tensor) -> Tensor:
        size = self._plan.batch_size
        parts = [self._forward(x[start : start + size]) for start in range(0, self._block, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _with_own_randomness(self, x: Tensor, first: Chunk) -> Tensor:
        own = Stream(first.stream.seed, Role.MODEL, first.stream.index)
        number = len(Role) * first.number + list(Role).index(first.stream.role)
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.set_rng_state(own.generator(number).get_state())
            for device in cuda:
                torch.cuda.set_rng_state(own.generator(number, device).get_state(), device)
            return self._scores(x)

    def _counted(self, chunks: Sequence[Chunk]) -> Tensor:
        if all(chunk.rows == CHUNK for chunk in chunks):
            return self._all_counted
        counted = torch.ones(self._all_counted.shape, dtype=torch.int64)
        for row, chunk in zip(counted, chunks, strict=False):
            row[chunk.rows :] = 0
        return counted.to(self._device)


class Lanes(ABC):
    """Runs packed batches; at most ``depth`` of them are under way at a time."""

    depth: int

    def __init__(self, target: Target, noise: Noise) -> None:
        self._target = target
        self._noise = noise

    def prepare(self, x: Tensor) -> Tensor:
        """Bring an input (*input_shape) to the device, in the form and layout to which noise is added."""
        prepared = self._noise.prepare(x.to(self._target.device, torch.float32))
        return prepared.permute(1, 2, 0).contiguous() if prepared.ndim == 3 else prepared

    @abstractmethod
    def submit(self, chunks: Sequence[Chunk]) -> Callable[[], np.ndarray]:
        """Start a batch.

        Args:
            chunks: what it holds; no more than fit the plan's batch.

        Returns:
            A function that waits for the batch and gives one row of sums for each chunk.
        """

    @abstractmethod
    def close(self) -> None:
        """Wait for what is under way, drop what is not begun, and leave torch as it was."""


@final
class _CpuLanes(Lanes):
    def __init__(self, target: Target, noise: Noise, plan: ExecutionPlan, tally: Tally) -> None:
        super().__init__(target, noise)
        keep_freed_memory()
        alone = target.stochastic or target.access is not Access.GRADIENTS
        count = 1 if alone else plan.threads
        self.depth = count + 1
        self._threads_before = torch.get_num_threads()
        self._lanes: queue.SimpleQueue[_Lane] = queue.SimpleQueue()
        for copy in range(count):
            self._lanes.put(_Lane(target, noise, plan, tally, copy))
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def submit(self, chunks: Sequence[Chunk]) -> Callable[[], np.ndarray]:
        return self._pool.submit(self._run, chunks).result

    def _run(self, chunks: Sequence[Chunk]) -> np.ndarray:
        lane = self._lanes.get()
        try:
            with torch.inference_mode():
                lane.fill(chunks)
                return lane.tally(chunks).numpy()[: len(chunks)]
        finally:
            self._lanes.put(lane)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)


@final
class _CudaLanes(Lanes):
    depth = 2

    def __init__(self, target: Target, noise: Noise, plan: ExecutionPlan, tally: Tally) -> None:
        super().__init__(target, noise)
        self._tf32_before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = plan.tf32, False
        self._ring = [_Lane(target, noise, plan, tally, 0) for _ in range(self.depth + 1)]
        self._turn = 0
        self._main = torch.cuda.current_stream(target.device)
        self._side = torch.cuda.Stream(target.device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(self._main)

    def prepare(self, x: Tensor) -> Tensor:
        with torch.cuda.stream(self._side):
            return super().prepare(x)

    @torch.inference_mode()
    def submit(self, chunks: Sequence[Chunk]) -> Callable[[], np.ndarray]:
        lane = self._ring[self._turn]
        self._turn = (self._turn + 1) % len(self._ring)
        if lane.free is not None:
            self._side.wait_event(lane.free)
        with torch.cuda.stream(self._side):
            lane.fill(chunks)
        self._main.wait_stream(self._side)
        with torch.cuda.stream(self._main):
            tally = lane.tally(chunks)
            landed = torch.empty(tally.shape, dtype=tally.dtype, pin_memory=True)
            landed.copy_(tally, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        lane.free = done

        def wait() -> np.ndarray:
            done.synchronize()
            return landed.numpy()[: len(chunks)]

        return wait

    def close(self) -> None:
        self._main.synchronize()
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = self._tf32_before


def open_lanes(target: Target, noise: Noise, plan: ExecutionPlan, tally: Tally) -> Lanes:
    """Open the lanes of a target's device.

    A function of the user's, and a classifier with randomness of its own, get a single lane, since neither is known to
    bear two callers at a time.

    Args:
        target: the base classifier.
        noise: the noise.
        plan: how forwards are run; its number of threads is the number of lanes on the CPU.
        tally: what is kept of a batch's scores.

    Returns:
        The lanes, to be closed after use.
    """
    kind = _CudaLanes if target.device.type == "cuda" else _CpuLanes
    return kind(target, noise, plan, tally)
