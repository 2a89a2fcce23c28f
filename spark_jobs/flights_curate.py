"""Flights from New York, one row for each, with the weather of the hour and the plane."""

from collections.abc import Sequence

from nyc.data_sets import PLANES, WEATHER
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType, TimestampType

from trilake.spark.job import Job


def _field(name: str, kind: type, *, required: bool = False) -> StructField:
    return StructField(name, kind(), nullable=not required)


FLIGHTS_CSV = StructType(
    [
        _field("year", IntegerType, required=True),
        _field("month", IntegerType, required=True),
        _field("day", IntegerType, required=True),
        _field("dep_time", IntegerType),
        _field("sched_dep_time", IntegerType, required=True),
        _field("dep_delay", IntegerType),
        _field("arr_time", IntegerType),
        _field("sched_arr_time", IntegerType, required=True),
        _field("arr_delay", IntegerType),
        _field("carrier", StringType, required=True),
        _field("flight", IntegerType, required=True),
        _field("tailnum", StringType),
        _field("origin", StringType, required=True),
        _field("dest", StringType, required=True),
        _field("air_time", IntegerType),
        _field("distance", IntegerType, required=True),
        _field("hour", IntegerType, required=True),
        _field("minute", IntegerType, required=True),
        _field("time_hour", TimestampType, required=True),
    ]
)

WEATHER_CSV = StructType(
    [
        _field("origin", StringType, required=True),
        _field("year", IntegerType, required=True),
        _field("month", IntegerType, required=True),
        _field("day", IntegerType, required=True),
        _field("hour", IntegerType, required=True),
        *(_field(name, DoubleType) for name in ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust")),
        *(_field(name, DoubleType) for name in ("precip", "pressure", "visib")),
        _field("time_hour", TimestampType, required=True),
    ]
)


def curate(flights: DataFrame, weather: DataFrame, planes: DataFrame) -> DataFrame:
    """Adds weather and plane to the flights. It keeps a flight whose weather or plane is missing."""
    hourly = weather.dropDuplicates(["origin", "time_hour"])
    by_tailnum = planes.dropDuplicates(["tailnum"]).withColumnRenamed("year", "plane_year")
    return (
        flights.withColumn("flight_date", F.make_date("year", "month", "day"))
        .withColumn("cancelled", F.col("dep_time").isNull())
        .join(
            F.broadcast(hourly.select("origin", "time_hour", "temp", "wind_speed", "precip", "visib")),
            on=["origin", "time_hour"],
            how="left",
        )
        .join(
            F.broadcast(by_tailnum.select("tailnum", "plane_year", "manufacturer", "model", "seats")),
            on="tailnum",
            how="left",
        )
        .select(
            *FLIGHTS_CSV.fieldNames(),
            *("flight_date", "cancelled", "temp", "wind_speed", "precip", "visib"),
            *("plane_year", "manufacturer", "model", "seats"),
        )
    )


def main(arguments: Sequence[str]) -> None:
    with Job(arguments) as job:
        # year, month and day are in New York's time, time_hour is in UTC. year and month give the partition.
        day = F.make_date("row.year", "row.month", "row.day")
        flights = job.read(FLIGHTS_CSV, date=day, missing="NA")
        weather = job.read(WEATHER_CSV, WEATHER, date=day, missing="NA")
        job.commit(curate(flights.rows, weather.rows, job.table(PLANES)), flights)
