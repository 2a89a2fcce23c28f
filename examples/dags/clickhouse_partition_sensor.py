"""
# ClickHousePartitionSensor

`published` waits, outside the worker, until readers of ClickHouse see the snapshot that `snapshot` made or a later one,
published within a day. Mostly it stands in another team's DAG than `publish`, and waits for the run's partitions.

**When it fails:** its error names the partitions that are missing, and why; run what publishes them and clear it.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG

from trilake.lake import DataSet
from trilake.sensors.clickhouse import ClickHousePartitionSensor
from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator
from trilake.transfers.postgres_to_iceberg import PostgresToIcebergOperator

REGIONS = DataSet("regions")

with DAG(
    "clickhouse_partition_sensor",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    snapshot = PostgresToIcebergOperator(task_id="snapshot", data_set=REGIONS)
    publish = IcebergToClickHouseOperator(
        task_id="publish", data_set=REGIONS, snapshot_id=snapshot.output["snapshot_id"]
    )
    published = ClickHousePartitionSensor(
        task_id="published",
        data_set=REGIONS,
        snapshot_id=snapshot.output["snapshot_id"],
        not_before=timedelta(days=1),
        poke_interval=2,
        timeout=timedelta(minutes=5),
    )
    snapshot >> publish >> published
