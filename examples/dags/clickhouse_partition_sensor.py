"""
# ClickHousePartitionSensor

`published` waits in the triggerer until readers of ClickHouse see the snapshot of task `snapshot` or a later one,
published within a day. Usually the sensor is in the DAG of another team than `publish`, and waits for the partitions of
its run.

**When it fails:** its error names the missing partitions and the reason. Run the DAG that publishes them, then clear
the task.
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
