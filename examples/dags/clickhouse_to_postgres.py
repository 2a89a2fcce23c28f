"""
# ClickHouseToPostgresOperator

`replace` replaces a month of the mart with the result of the query. `merge` updates rows by their key and inserts new
ones. It does not change other rows, nor columns that its query does not name.

**When it fails:** clear the failed task. Each task is one transaction, and its result is the same when it runs again.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG

from trilake.lake import DataSet
from trilake.transfers.clickhouse_to_postgres import ClickHouseToPostgresOperator

VISITS = DataSet("visits", grain="month", date="day", shard_by="visitor")

with DAG(
    "clickhouse_to_postgres",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    replace = ClickHouseToPostgresOperator(
        task_id="replace",
        data_set=VISITS,
        start="2013-02",
        sql="postgres/visits_day/query.sql",
        table="marts.visits_day",
        date="day",
    )
    merge = ClickHouseToPostgresOperator(
        task_id="merge",
        sql="SELECT toDate('2013-02-28') AS day, '/page/' || toString(number) AS page, 1 AS visits FROM numbers(7)",
        table="marts.visits_day",
        key=("day", "page"),
    )
    replace >> merge
