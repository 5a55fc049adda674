"""Randomness: one seed gives a stream of draws for each (role, input index, chunk), and nothing else decides it.

The number of samples, the batch size, the order of the inputs and the number of workers are not part of a key, so none
of them changes or reuses a draw. Streams of CPU and CUDA differ, since their generators do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, final

from calipers.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["Draws", "Role", "Stream", "check_seed"]

_STATE_WORDS = 624
_STATE_BYTES = 5056
_HEADER = 24


class Role(StrEnum):
    """What draws are for; streams of two roles never share a draw. MODEL is a classifier's own randomness."""

    SELECT = "select"
    ESTIMATE = "estimate"
    SEARCH = "search"
    JUDGE = "judge"
    MODEL = "model"
    TRAIN = "train"


def check_seed(seed: int) -> int:
    """Check a seed.

    Args:
        seed: the seed that the user gave.

    Returns:
        The seed.

    Raises:
        UsageError: if it is negative or does not fit 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed is {seed}: give a whole number from 0 to 2^64 - 1")
    return seed


@final
@dataclass(frozen=True)
class Stream:
    """The draws of one input in one role.

    Args:
        seed: the seed of the run.
        role: what the draws are for.
        index: the index of the input in its data set.
    """

    seed: int
    role: Role
    index: int

    def key(self, chunk: int) -> bytes:
        """Name one chunk of this stream.

        Args:
            chunk: the number of the chunk, from 0.

        Returns:
            The text that is hashed into a generator's state.
        """
        return f"calipers/1 {self.seed} {self.role.value} {self.index} {chunk}".encode()

    def generator(self, chunk: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Make the generator of one chunk.

        On the CPU all 19 968 bits of the Mersenne twister are set from SHAKE-128 of the key: ``manual_seed`` keeps
        only 32 bits of its argument there, and among the ten million chunks of a run of 10 000 images some
        thousands of pairs would then be the same draws. On CUDA the 64-bit key of Philox is set.

        Args:
            chunk: the number of the chunk, from 0.
            device: where the draws are made.

        Returns:
            A generator that depends on the key and the kind of device alone.
        """
        import torch

        place = torch.device(device)
        if place.type == "cpu":
            return _twister(self.key(chunk))
        generator = torch.Generator(place)
        digest = hashlib.shake_128(self.key(chunk)).digest(8)
        generator.manual_seed(int.from_bytes(digest, "little", signed=False) >> 1)
        return generator


@final
@dataclass(frozen=True)
class Draws:
    """The draws of a batch of inputs in one role.

    Args:
        seed: the seed of the run.
        role: what the draws are for.
        indices: the index of each input in its data set.
    """

    seed: int
    role: Role
    indices: tuple[int, ...]

    def of(self, rows: Sequence[int]) -> Draws:
        """Take some rows of the batch.

        Args:
            rows: their numbers.

        Returns:
            Their draws, in that order.
        """
        return replace(self, indices=tuple(self.indices[row] for row in rows))

    def __getitem__(self, row: int) -> Stream:
        return Stream(self.seed, self.role, self.indices[row])

    def __len__(self) -> int:
        return len(self.indices)

    def fold(self, number: int) -> Draws:
        """Give draws that share nothing with these, such as those of one step of a search.

        Args:
            number: which; the same number gives the same draws again.

        Returns:
            Draws of the same inputs in the same role, from a seed made of this one and the number.
        """
        digest = hashlib.blake2b(f"calipers/1 fold {self.seed} {number}".encode(), digest_size=8).digest()
        return Draws(int.from_bytes(digest, "little"), self.role, self.indices)


def _twister(key: bytes) -> torch.Generator:
    """Set the whole state of a CPU generator from a key.

    The layout is that of torch's CPU generator: the seed (8 bytes), values left (4), seeded (4), next (8), then
    624 words of 32 bits, each in 8 bytes, then the cached normals, which start empty.

    Returns:
        The generator.
    """
    import numpy as np
    import torch

    words = np.frombuffer(hashlib.shake_128(key).digest(4 * _STATE_WORDS), dtype="<u4")
    state = np.zeros(_STATE_BYTES, dtype=np.uint8)
    state[8:12].view("<i4")[0] = 1
    state[12:16].view("<i4")[0] = 1
    state[_HEADER : _HEADER + 8 * _STATE_WORDS].view("<u8")[:] = words
    generator = torch.Generator()
    generator.set_state(torch.from_numpy(state))
    return generator
