"""The tags of this project's DAGs. Add a new tag here, so that it has one spelling."""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """A tag says what a DAG is about, or what it does."""

    FLIGHTS = "flights"
    REFERENCE = "reference"
    REPORT = "report"
    WEATHER = "weather"
    DATA_SET = "data set"  # `trilake new dataset` writes this one; replace it with the DAG's subject
    AGENTS = "agents"  # agents may start the DAG
    MAINTENANCE = "maintenance"  # for the DAGs that `trilake init` writes
