"""Numbers in few characters: short, right, and never of a unit that does not exist."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wscluster.amounts import show_amount, show_duration, show_lag


@given(st.integers(0, 10**20))
def test_an_amount_has_five_characters_at_most_and_is_right(value: int) -> None:
    text = show_amount(value)
    assert len(text) <= 5
    if value < 100_000:
        assert text == str(value)
    else:
        said = float(text[:-1]) * 1000 ** ("kMGTPE".index(text[-1]) + 1)
        assert abs(said - value) <= (0.055 if value < 10**18 else 0.5) * value


@given(st.floats(0, 10**8))
def test_a_duration_has_six_characters_at_most(seconds: float) -> None:
    assert len(show_duration(seconds)) <= 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (3599.6, "1h00m"),
        (86399.7, "1d0h"),
        (8640000, "100d"),
    ],
)
def test_durations_are_rounded_and_never_say_sixty(seconds: float | None, text: str) -> None:
    assert show_duration(seconds) == text


def test_a_rate_is_rounded_before_it_is_measured() -> None:
    assert (show_amount(0.4), show_amount(99999.4), show_amount(99999.6), show_amount(None)) == (
        "0", "99999", "100k", "-",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.0, "0.0ms"), (0.0003, "0.3ms"), (0.00994, "9.9ms"), (0.00996, "10ms"), (0.9994, "999ms"),
     (0.9996, "1.0s"), (9.94, "9.9s"), (61.0, "1m01s")],
)  # fmt: skip
def test_lags(seconds: float | None, text: str) -> None:
    assert show_lag(seconds) == text
