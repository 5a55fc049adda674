"""Sizes are read exactly and printed back as they were written."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipers.errors import UsageError
from calipers.threat.threat_model import Norm
from calipers.threat.units import parse_size, parse_sized_norm


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("8/255", Fraction(8, 255)),
        ("0.1", Fraction(1, 10)),
        ("1e-3", Fraction(1, 1000)),
        ("0.5/255", Fraction(1, 510)),
        ("0", Fraction(0)),
        (".25", Fraction(1, 4)),
    ],
)
def test_a_size_is_exact_and_prints_as_it_was_written(text: str, exact: Fraction) -> None:
    size = parse_size(text)
    assert size.exact == exact
    assert str(size) == text
    assert float(size) == exact.numerator / exact.denominator


def test_spaces_around_a_size_do_not_matter() -> None:
    assert parse_size(" 8 / 255 ").exact == Fraction(8, 255)


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_every_quotient_is_read_exactly(top: int, bottom: int) -> None:
    assert parse_size(f"{top}/{bottom}").exact == Fraction(top, bottom)


@pytest.mark.parametrize(
    "text", ["", "abc", "nan", "inf", "1/0", "/255", "8/", "1/2/3", "8//255", "1 2", "-1/-2", "0x10", "1_0"]
)
def test_what_is_no_number_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(UsageError, match="is not a number: write 0.5, 8/255 or 1e-3") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["-0.5", "-8/255"])
def test_a_negative_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"{text!r} is negative"):
        parse_size(text)


def test_a_size_with_its_norm() -> None:
    norm, size = parse_sized_norm("linf:8/255")
    assert (norm, size.exact, str(size)) == (Norm.LINF, Fraction(8, 255), "8/255")


@pytest.mark.parametrize("text", ["8/255", "l2", "l7:1", "l2:", ":1"])
def test_a_sized_norm_that_lacks_a_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sized_norm(text)
