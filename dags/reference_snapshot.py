"""
# Reference tables

Copies airlines, airports and planes from PostgreSQL (OLTP) to the lake, and from there to ClickHouse. Every shard of
ClickHouse has the complete tables.

**When it fails:** no table was published in part: each is replaced as a whole, or unchanged. Clear the task, or trigger
the DAG again; both are safe at any time.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG
from nyc.access import READ_BY_AGENTS
from nyc.data_sets import AIRLINES, AIRPORTS, PLANES
from nyc.tags import Tag

from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator

with DAG(
    "reference_snapshot",
    schedule="@daily",
    start_date=datetime(2013, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    tags=[Tag.REFERENCE, Tag.FLIGHTS],
    access_control=READ_BY_AGENTS,
    doc_md=__doc__,
):
    for data_set in (AIRLINES, AIRPORTS, PLANES):
        snapshot = PostgresToIcebergOperator(task_id=f"snapshot_{data_set.name}", data_set=data_set)
        publish = IcebergToClickHouseOperator(
            task_id=f"publish_{data_set.name}", data_set=data_set, snapshot_id=snapshot.output["snapshot_id"]
        )
        snapshot >> publish
