"""Whole runs side by side: the same results as one after the other, and nothing left running."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
from toy_pieces import die, refuse, square

from calipers.errors import UsageError, WorkerDied
from calipers.runs.side_by_side import side_by_side


def test_processes_give_what_one_process_gives_with_one_thread_each() -> None:
    torch.set_num_threads(2)
    alone = list(side_by_side(square, range(5), jobs=1))
    assert torch.get_num_threads() == 2
    assert {one[2] for one in alone} == {1}
    assert [one[2] for one in side_by_side(square, [3], jobs=2)] == [1]
    together = list(side_by_side(square, range(5), jobs=2))
    assert [one[0] for one in alone] == [0, 1, 4, 9, 16]
    assert sorted(one[0] for one in together) == [0, 1, 4, 9, 16]
    assert {one[1] for one in alone} == {os.getpid()}
    assert os.getpid() not in {one[1] for one in together}
    assert {one[2] for one in together} == {1}
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told_and_none_is_left() -> None:
    with pytest.raises(WorkerDied, match="ended in the middle of its work"):
        list(side_by_side(die, range(3), jobs=2))
    assert not multiprocessing.active_children()


def test_what_a_process_refuses_is_refused_here_and_bad_counts_are_too() -> None:
    with pytest.raises(UsageError, match="give another"):
        list(side_by_side(refuse, range(3), jobs=2))
    with pytest.raises(UsageError, match="jobs is 0"):
        list(side_by_side(square, range(3), jobs=0))


def test_a_caller_that_stops_early_leaves_nothing_running() -> None:
    stream = side_by_side(square, range(40), jobs=2)
    next(stream)
    stream.close()
    assert not multiprocessing.active_children()
