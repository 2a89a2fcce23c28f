"""
# ClickHouseOperator, ClickHouseHook

`refresh` runs the statements of a file below `sql/`. It deletes before it inserts, so it may run again from the start.
`report` reads the result as a stream of rows; its memory does not grow with the result.

**When it fails:** clear the failed task.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from trilake.operators.clickhouse import ClickHouseOperator

with DAG(
    "clickhouse_operator",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    params={"table": "readings", "rows": 1000},
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    refresh = ClickHouseOperator(
        task_id="refresh",
        sql="clickhouse/readings/refresh.sql",
        parameters={"day": "{{ dag_run.run_after | ds }}"},
        settings={"max_threads": 4},
        idempotent=True,
        execution_timeout=timedelta(minutes=10),
    )

    @task
    def report(params: dict) -> int:
        from trilake.hooks.clickhouse import ClickHouseHook

        return sum(1 for _ in ClickHouseHook().stream_rows(f"SELECT * FROM {params['table']}"))

    refresh >> report()
