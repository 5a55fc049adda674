"""Pieces of work that other processes find by name."""

from __future__ import annotations

import os

import torch

from calipers.errors import UsageError


def square(number: int) -> tuple[int, int, int]:
    return number * number, os.getpid(), torch.get_num_threads()


def die(number: int) -> int:
    if number == 1:
        os._exit(3)
    return number


def refuse(number: int) -> int:
    raise UsageError(f"number is {number}: give another")
