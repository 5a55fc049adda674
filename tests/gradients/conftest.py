"""Weights of the small networks of these tests are drawn from one seed, and no other test's draws are touched."""

from collections.abc import Iterator

import pytest
import torch

from calipers.randomness import Role, Stream


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(Stream(0, Role.TRAIN, 0).generator(0).get_state())
        yield
