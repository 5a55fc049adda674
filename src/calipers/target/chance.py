"""Chance: a classifier's own randomness, drawn from a named stream and from nothing else."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from calipers.randomness import Draws

__all__ = ["drawn_from"]


@contextmanager
def drawn_from(draws: Draws, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python from a batch's draws, and put them back afterwards.

    A stochastic classifier is opaque: where its randomness comes from is its own affair, as long as it comes from
    these generators. Its draws then depend on the seed, the role and the inputs of the batch, and repeat with them.

    Args:
        draws: the draws of the batch.
        device: where the classifier runs.

    Yields:
        Nothing; the draws of the block are those of the stream.
    """
    named = b" ".join(draws[row].key(0) for row in range(len(draws)))
    digest = hashlib.shake_128(named).digest(16)
    seed = int.from_bytes(digest[:8], "little") >> 1
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # the legacy generator is what user code draws from
    with _seeded(seed, device):
        random.seed(seed)
        np.random.seed(int.from_bytes(digest[8:12], "little"))  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        # torch.manual_seed would queue itself for every other device, with its call stack, at each call
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state)
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # noqa: TID251  # a classifier's own draws come from the global generator
        yield
