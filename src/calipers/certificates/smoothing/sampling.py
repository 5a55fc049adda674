"""The hot loop: noisy forward passes of many inputs, packed into shared batches, counted on the device.

Noise comes in chunks of CHUNK draws, each with its own generator, so that it does not depend on the batch size.
Forwards run in one fixed, padded batch shape, so that a vote does not depend on what shares its batch. An input asks
for draws up to its next checkpoint and waits there for a decision while others fill the batch; what it is told are the
counts at exactly that checkpoint, so that neither packing nor order can change where it stops.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from calipers.certificates.base import Progress
from calipers.certificates.smoothing.lanes import Chunk, Lanes, Tally, open_lanes
from calipers.certificates.smoothing.noise import Noise
from calipers.certificates.smoothing.plan import ExecutionPlan
from calipers.certificates.smoothing.stopping import CHUNK
from calipers.randomness import Role, Stream
from calipers.target import Target
from calipers.target.target import outcomes

__all__ = ["Clock", "Item", "Sampler", "tally_scores", "tally_votes"]


@dataclass(eq=False)
class Item:
    """One input on its way through the loop.

    Args:
        index: its index in the data set.
        x: the input, as the lanes prepared it.
        selection: what the selection draws gave so far (votes, or sums of scores).
        estimate: what the estimation draws gave so far.
        drawn: estimation draws asked for so far.
        waiting: chunks on their way.
        selected: the class chosen by the selection sample, once it is complete.
    """

    index: int
    x: Tensor
    selection: np.ndarray
    estimate: np.ndarray
    drawn: int = 0
    waiting: int = 0
    selected: int = -1


class _Asked(NamedTuple):
    item: Item
    chunk: Chunk


def tally_votes(scores: Tensor, counted: Tensor, num_classes: int) -> Tensor:
    """Count votes by chunk.

    Args:
        scores: scores (chunks * CHUNK, columns), or outcomes (chunks * CHUNK,).
        counted: 1 where a row counts and 0 where it pads, (chunks, CHUNK).
        num_classes: the number of classes K.

    Returns:
        Votes (chunks, K + 1), int64, the failed draws last.
    """
    found = scores if scores.ndim == 1 else outcomes(scores, num_classes=num_classes)
    votes = torch.zeros((len(counted), num_classes + 1), dtype=torch.int64, device=scores.device)
    return votes.scatter_add_(1, found.view(len(counted), CHUNK), counted)


def tally_scores(scores: Tensor, counted: Tensor, num_classes: int) -> Tensor:
    """Sum softmax scores and their squares by chunk; a draw with a NaN or infinite score is a failed one.

    Args:
        scores: scores (chunks * CHUNK, columns).
        counted: 1 where a row counts and 0 where it pads, (chunks, CHUNK).
        num_classes: the number of classes K.

    Returns:
        Sums (chunks, 2 K + 1), float64: of the scores, of their squares, and the number of failed draws.
    """
    raw = scores.double()
    failed = ~torch.isfinite(raw).all(1)
    shares = torch.where(failed[:, None], 0.0, raw.softmax(1))[:, :num_classes]
    row = torch.cat([shares, shares.square(), failed[:, None].double()], 1)
    return (row.view(len(counted), CHUNK, -1) * counted[:, :, None]).sum(1)


class Sampler:
    """Draws noise, runs forwards and hands back tallies, for many inputs at once.

    Args:
        target: the base classifier.
        noise: the noise.
        plan: how forwards are run.
        seed: the seed of the run.
        tally: what is kept of a batch's scores: :func:`tally_votes` or :func:`tally_scores`.
        width: the number of columns that the tally gives.
        role: what the draws are for, beside the selection of the class.
    """

    def __init__(
        self,
        target: Target,
        noise: Noise,
        plan: ExecutionPlan,
        *,
        seed: int,
        tally: Tally,
        width: int,
        role: Role = Role.ESTIMATE,
    ) -> None:
        self._target = target
        self._noise = noise
        self._plan = plan
        self._seed = seed
        self._tally = tally
        self._role = role
        self.width = width
        self.forwards = 0
        self._block = max(plan.batch_size, CHUNK)
        self._queue: deque[_Asked] = deque()

    def run(
        self,
        inputs: Iterable[tuple[int, Tensor]],
        *,
        n0: int,
        checkpoints: Callable[[int], int],
        settle: Callable[[list[Item]], list[bool]],
        landed: Callable[[], None] | None = None,
    ) -> Iterator[Item]:
        """Take inputs one after the other, and give each back when it is settled.

        Args:
            inputs: pairs of an index and an input (*input_shape); pulled only when there is room for one more.
            n0: selection draws an input; 0 for none.
            checkpoints: from the estimation draws so far to those at which the input is next judged.
            settle: judges the inputs that stand at a checkpoint; True ends an input.
            landed: called after every batch.

        Yields:
            Inputs with complete tallies, in the order in which they end.
        """
        self._queue.clear()
        source = iter(inputs)
        fits = self._block // CHUNK
        lanes = open_lanes(self._target, self._noise, self._plan, self._tally)
        flying: deque[tuple[list[_Asked], Callable[[], np.ndarray]]] = deque()
        try:
            while True:
                while len(self._queue) < fits:
                    following = next(source, None)
                    if following is None:
                        break
                    self._admit(following, lanes, n0, checkpoints)
                if self._queue:
                    packed = self._pack(fits)
                    flying.append((packed, lanes.submit([asked.chunk for asked in packed])))
                    self.forwards += self._block
                elif not flying:
                    return
                if len(flying) >= lanes.depth or not self._queue:
                    landing, wait = flying.popleft()
                    rows = wait()
                    if landed is not None:
                        landed()
                    yield from self._land(landing, rows, checkpoints, settle)
        finally:
            lanes.close()

    def _pack(self, fits: int) -> list[_Asked]:
        """Take what comes next; a classifier with randomness of its own gets a batch for each input and role.

        Its randomness is drawn for a whole batch, so that only then do its votes depend on nothing but the input.

        Returns:
            What shares the next batch.
        """
        packed = [self._queue.popleft()]
        first = packed[0].chunk.stream
        while self._queue and len(packed) < fits:
            if self._target.stochastic and self._queue[0].chunk.stream != first:
                break
            packed.append(self._queue.popleft())
        return packed

    def _admit(
        self, following: tuple[int, Tensor], lanes: Lanes, n0: int, checkpoints: Callable[[int], int]
    ) -> None:
        index, x = following
        item = Item(index, lanes.prepare(x), np.zeros(self.width), np.zeros(self.width))
        self._ask(item, Role.SELECT, 0, n0)
        self._advance(item, checkpoints)

    def _ask(self, item: Item, role: Role, start: int, stop: int) -> None:
        stream = Stream(self._seed, role, item.index)
        for first in range(start, stop, CHUNK):
            chunk = Chunk(item.x, stream, first // CHUNK, min(CHUNK, stop - first))
            self._queue.append(_Asked(item, chunk))
            item.waiting += 1

    def _advance(self, item: Item, checkpoints: Callable[[int], int]) -> None:
        stop = checkpoints(item.drawn)
        assert item.drawn < stop, f"checkpoint {stop} does not lie beyond the {item.drawn} draws made"
        assert item.drawn % CHUNK == 0, f"going on from {item.drawn} draws would make some of them again"
        self._ask(item, self._role, item.drawn, stop)
        item.drawn = stop

    def _land(
        self,
        packed: list[_Asked],
        rows: np.ndarray,
        checkpoints: Callable[[int], int],
        settle: Callable[[list[Item]], list[bool]],
    ) -> Iterator[Item]:
        ready = []
        for (item, chunk), row in zip(packed, rows, strict=True):
            sums = item.selection if chunk.stream.role is Role.SELECT else item.estimate
            sums += row
            item.waiting -= 1
            if item.waiting == 0:
                ready.append(item)
        if not ready:
            return
        for item, ended in zip(ready, settle(ready), strict=True):
            if ended:
                yield item
            else:
                self._advance(item, checkpoints)


class Clock:
    """Shares the wall time of a run among its inputs by the forwards that they took.

    Args:
        sampler: what runs the forwards; the time begins now.
        progress: told how many were run.
    """

    def __init__(self, sampler: Sampler, progress: Progress | None) -> None:
        self._sampler = sampler
        self._progress = progress
        self._start = time.perf_counter()
        self._told = 0

    def told(self) -> None:
        """Pass on the forwards run since the last call."""
        if self._progress is not None:
            self._progress(self._sampler.forwards - self._told)
        self._told = self._sampler.forwards

    def seconds(self, draws: int) -> float:
        """Share out the time so far.

        Args:
            draws: the forwards that an input took.

        Returns:
            Its share, in seconds.
        """
        return (time.perf_counter() - self._start) * draws / max(self._sampler.forwards, 1)
