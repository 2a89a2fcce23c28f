"""The flights job's transformation, on a handful of rows."""

from __future__ import annotations

import datetime as dt

from flights_curate import FLIGHTS_CSV, WEATHER_CSV, curate
from pyspark.sql import Row, SparkSession
from pyspark.sql.types import IntegerType, StringType, StructType

HOUR = dt.datetime(2013, 1, 1, 10)
PLANES = (
    StructType()
    .add("tailnum", StringType())
    .add("year", IntegerType())
    .add("manufacturer", StringType())
    .add("model", StringType())
    .add("seats", IntegerType())
)


def flight(**changes: object) -> tuple[object, ...]:
    values = {
        "year": 2013, "month": 1, "day": 1, "dep_time": 517, "sched_dep_time": 515, "dep_delay": 2, "arr_time": 830,
        "sched_arr_time": 819, "arr_delay": 11, "carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR",
        "dest": "IAH", "air_time": 227, "distance": 1400, "hour": 5, "minute": 15, "time_hour": HOUR,
    }  # fmt: skip
    return tuple({**values, **changes}.values())


def curated(spark: SparkSession, *flights: tuple[object, ...]) -> list[Row]:
    weather = (
        "EWR", 2013, 1, 1, 5, 39.0, 26.0, 59.4, 270.0, 10.4, None, 0.0, 1012.0, 10.0, HOUR,
    )  # fmt: skip
    return curate(
        spark.createDataFrame(flights, FLIGHTS_CSV),
        spark.createDataFrame([weather, weather], WEATHER_CSV),
        spark.createDataFrame([("N14228", 1999, "BOEING", "737-824", 149)], PLANES),
    ).collect()


def test_a_flight_gets_its_day_its_weather_and_its_plane(spark: SparkSession) -> None:
    (row,) = curated(spark, flight())
    assert row["flight_date"] == dt.date(2013, 1, 1)
    assert not row["cancelled"]
    assert (row["temp"], row["wind_speed"], row["precip"], row["visib"]) == (39.0, 10.4, 0.0, 10.0)
    assert (row["plane_year"], row["manufacturer"], row["model"], row["seats"]) == (1999, "BOEING", "737-824", 149)


def test_a_flight_without_departure_is_cancelled(spark: SparkSession) -> None:
    (row,) = curated(spark, flight(dep_time=None, dep_delay=None))
    assert row["cancelled"]


def test_a_flight_is_kept_when_its_plane_and_its_weather_are_unknown(spark: SparkSession) -> None:
    rows = curated(spark, flight(tailnum=None), flight(origin="JFK"))
    assert sorted((row["tailnum"], row["seats"], row["temp"]) for row in rows if row["tailnum"]) == [
        ("N14228", 149, None)
    ]
    assert len(rows) == 2
