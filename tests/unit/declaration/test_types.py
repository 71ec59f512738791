"""Durations and periods obey their laws."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evergreen.declaration import Period, format_duration, parse_duration

moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(st.integers(1, 10**7))
def test_a_duration_survives_being_written(seconds: int) -> None:
    span = timedelta(seconds=seconds)
    assert parse_duration(format_duration(span)) == span


@pytest.mark.parametrize("text", ["", "7", "d7", "-1d", "1.5h", "7 years", "7d1h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="like 7d"):
        parse_duration(text)


@given(st.sampled_from(Period), moments)
def test_a_moment_lies_in_its_partition(period: Period, moment: datetime) -> None:
    key = period.key(moment)
    assert period.start(key) <= moment < period.end(key)
    assert period.key(period.start(key)) == key


@given(st.sampled_from(Period), moments, moments)
def test_keys_sort_as_time_does(period: Period, one: datetime, other: datetime) -> None:
    first, second = sorted((one, other))
    assert period.key(first) <= period.key(second)
    assert period.key(period.end(period.key(first))) > period.key(first)


@pytest.mark.parametrize(
    ("period", "text"),
    [("month", "2013-1"), ("month", "2013-13"), ("day", "2013-02-30"), ("hour", "2013-01-01 05")],
)
def test_what_is_no_key_is_refused(period: str, text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Period(period).start(text)
