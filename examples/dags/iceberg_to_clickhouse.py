"""
# PostgresToIcebergOperator, IcebergToClickHouseOperator

A table of PostgreSQL becomes a snapshot of an Iceberg table, and that snapshot what readers of ClickHouse see. A data
set with a grain is published by the run's window in the same way: see `dags/flights.py`.

**When it fails:** clear the failed task; each replaces the table as a whole, or leaves it.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from trilake.lake import DataSet
from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator

CARRIERS = DataSet("carriers")

with DAG(
    "iceberg_to_clickhouse",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    snapshot = PostgresToIcebergOperator(task_id="snapshot", data_set=CARRIERS, table="airlines")
    publish = IcebergToClickHouseOperator(
        task_id="publish", data_set=CARRIERS, snapshot_id=snapshot.output["snapshot_id"]
    )

    @task
    def report() -> int:
        from trilake.hooks.clickhouse import ClickHouseHook

        return ClickHouseHook().get_first("SELECT count() FROM carriers WHERE name != ''")[0]

    snapshot >> publish >> report()
