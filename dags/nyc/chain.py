"""The tasks that process raw flights. The DAGs flights and flights_arrivals share them."""

from airflow.providers.common.sql.operators.sql import SQLTableCheckOperator

from nyc.data_sets import FLIGHTS
from trilake.operators.spark import SparkApplicationOperator
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator
from trilake.transfers.iceberg_to_clickhouse import IcebergToClickHouseOperator


def curate_and_publish(**window: str) -> SparkApplicationOperator:
    """Adds the tasks from `curate` on, and returns `curate`.

    :param window: `start` and `end`, the first and last month. Without them the run decides.
    """
    curate = SparkApplicationOperator(task_id="curate", job="flights_curate", data_set=FLIGHTS, **window)
    publish = IcebergToClickHouseOperator(
        task_id="publish", data_set=FLIGHTS, snapshot_id=curate.output["snapshot_id"], **window
    )
    mart = ClickHouseToPostgresOperator(
        task_id="mart",
        data_set=FLIGHTS,
        sql="postgres/carrier_month/query.sql",
        table="marts.carrier_month",
        date="month",
        **window,
    )
    check = SQLTableCheckOperator(
        task_id="check",
        conn_id="clickhouse_cluster_default",
        table="flights",
        checks={
            "carriers_are_known": {
                "check_statement": "countIf(carrier NOT IN (SELECT carrier FROM airlines)) = 0",
            },
            "cancelled_is_plausible": {"check_statement": "avg(cancelled) < 0.2"},
        },
    )
    curate >> publish >> mart >> check
    return curate
