"""What a job writes is what the table in ClickHouse takes, name by name and type by type, without a server."""

from __future__ import annotations

from pathlib import Path

from flights_curate import FLIGHTS_CSV, WEATHER_CSV, curate
from pyspark.sql import SparkSession

from trilake.platform.embedded.local_table import misfits

SQL = Path(__file__).resolve().parents[2] / "sql"
PLANES = "tailnum string, year int, manufacturer string, model string, seats int"


def test_flights_fit_their_table(spark: SparkSession) -> None:
    made = curate(*(spark.createDataFrame([], schema) for schema in (FLIGHTS_CSV, WEATHER_CSV, PLANES)))
    assert misfits(made.schema, "flights", SQL) == []
