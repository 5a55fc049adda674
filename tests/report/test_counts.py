"""Counts: one of a thing is written in the singular."""

import pytest

from calipers.report.counts import counted


@pytest.mark.parametrize(
    ("count", "written"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1001, "1001 images")]
)
def test_one_is_singular_and_all_else_plural(count: int, written: str) -> None:
    assert counted(count, "image") == written


def test_a_plural_of_its_own_is_taken() -> None:
    assert [counted(count, "class", "classes") for count in (1, 3)] == ["1 class", "3 classes"]
