"""Windows: what people type, and which partitions it names."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilake.errors import ConfigurationError
from trilake.lake import Window
from trilake.lake.window import Grain, parse_partition

DAYS = st.dates(date(1990, 1, 1), date(1999, 12, 31))


@pytest.mark.parametrize(
    ("grain", "start", "end", "partitions"),
    [
        ("month", "2013-02", None, ["2013-02"]),
        ("month", "2013-02-28", "2013-03-01", ["2013-02", "2013-03"]),
        ("month", "2013-11", "2014-02", ["2013-11", "2013-12", "2014-01", "2014-02"]),
        ("day", "2012-02-28", "2012-03-01", ["2012-02-28", "2012-02-29", "2012-03-01"]),
    ],
)
def test_a_window_names_its_partitions(grain: Grain, start: str, end: str | None, partitions: list[str]) -> None:
    window = Window.parse(grain, start, end)
    assert window.partitions == partitions
    assert len(window) == len(partitions)


@given(grain=st.sampled_from(["day", "month"]), first=DAYS, second=DAYS)
def test_a_window_has_every_partition_of_its_days_once(grain: Grain, first: date, second: date) -> None:
    start, end = min(first, second), max(first, second)
    window = Window.parse(grain, start.isoformat(), end.isoformat())
    assert window.partitions == sorted(set(window.partitions))
    assert len(window.partitions) == len(window)
    assert window.start <= start <= end < window.stop
    assert [parse_partition(grain, name) for name in window][-1] == window.end


@pytest.mark.parametrize(("grain", "last"), [("month", "9999-11"), ("day", "9999-12-30")])
def test_the_last_partition_that_there_can_be_is_one(grain: Grain, last: str) -> None:
    window = Window.parse(grain, last)
    assert (window.partitions, window.stop > window.end) == ([last], True)


@pytest.mark.parametrize(
    ("grain", "start", "end", "says"),
    [
        ("month", "2013-13", None, "is not a month"),
        ("month", "13-01", None, "Write it like 2013-02"),
        ("month", "", None, "is not a month"),
        ("day", "2013-02", None, "Write it like 2013-02-28"),
        ("day", "2013-02-30", None, "is not a day"),
        ("month", "9999-12", None, "'9999-12' cannot be a partition"),
        ("month", "9999-12-01", None, "no later partition is possible"),
        ("month", "9999-11", "9999-12", "'9999-12' cannot be a partition"),
        ("day", "9999-12-31", None, "'9999-12-31' cannot be a partition"),
        ("month", "2013-02", "2013-01", "ends before it starts"),
        ("day", "1913-01-01", "2013-01-01", "more than 3660"),
    ],
)
def test_a_wrong_window_is_one_line_that_says_what_is_wrong(
    grain: Grain, start: str, end: str | None, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says) as error:
        Window.parse(grain, start, end)
    assert "\n" not in str(error.value)
