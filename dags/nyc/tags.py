"""The tags that this project's DAGs are found by. A new one is added here, so that each has one spelling."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """A DAG's tags: what it is about, and what it does."""

    FLIGHTS = "flights"
    REFERENCE = "reference"
    REPORT = "report"
    WEATHER = "weather"
    DATA_SET = "data set"  # what `trilake new dataset` writes, until the DAG says what it is about
    MAINTENANCE = "maintenance"  # of the DAGs that `trilake init` writes
