"""
# PostgresToIcebergOperator, IcebergToClickHouseOperator

`snapshot` copies a table of PostgreSQL to a snapshot of an Iceberg table. `publish` shows that snapshot to the readers
of ClickHouse. A data set with a grain is published in the same way for the window of the run: see `dags/flights.py`.

**When it fails:** clear the failed task. Each task replaces the table as a whole, or leaves it unchanged.
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
