"""The tags that DAGs are found by. A new one is added here, so that nobody finds half under another spelling."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """A DAG's tags: what it is about, and what it does."""

    FLIGHTS = "flights"
    REFERENCE = "reference"
    REPORT = "report"
    WEATHER = "weather"
    DATA_SET = "data set"  # what `trilake new dataset` writes, until it says what it is about
    MAINTENANCE = "maintenance"
