"""
# Flights report

Renders the queries of `sql/clickhouse/flights/report/` as one HTML page: `s3://artifacts/reports/flights/<year>.html`.
Runs when months of flights have been published, once for each of their years.

To add a chart, add a query to that folder. The query's comments say how the chart is drawn.

**When it fails:** clear the task. It only reads, and it replaces the page.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, Param, PartitionedAssetTimetable, StartOfYearMapper
from nyc.access import READ_BY_AGENTS
from nyc.data_sets import FLIGHTS
from nyc.tags import Tag

from trilake.assets import published
from trilake.operators.report import ClickHouseReportOperator

with DAG(
    "flights_report",
    schedule=PartitionedAssetTimetable(
        assets=published(FLIGHTS), default_partition_mapper=StartOfYearMapper(input_format="%Y-%m")
    ),
    start_date=datetime(2013, 1, 1),
    catchup=False,
    max_active_runs=1,
    params={"year": Param(2013, type="integer", description="only used when triggered by hand")},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.FLIGHTS, Tag.REPORT],
    access_control=READ_BY_AGENTS,
    doc_md=__doc__,
):
    YEAR = "{{ (partition_key | string)[:4] if partition_key else params.year }}"
    ClickHouseReportOperator(
        task_id="report",
        title="Flights from New York",
        folder="clickhouse/flights/report",
        data_set=FLIGHTS,
        start=f"{YEAR}-01",
        end=f"{YEAR}-12",
        key=f"flights/{YEAR}.html",
    )
