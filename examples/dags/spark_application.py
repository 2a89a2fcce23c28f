"""
# SparkApplicationOperator, SparkApplicationSensor

`curate` runs one Spark job for two months. The job commits them to Iceberg, lets ClickHouse pull the commit, reads back
what readers see, and replaces the two months of a mart in PostgreSQL. `curated` waits for the application by its
labels, as the DAG of another team would. `report` returns the counts.

**When it fails:** clear `curate`: every step of the job replaces what it wrote before. `curated` fails as soon as the
application fails; clear it when `curate` runs again.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from airflow.sdk import DAG, task

from trilake.assets import published
from trilake.lake import DataSet, Window
from trilake.operators.spark import SparkApplicationOperator
from trilake.sensors.spark import SparkApplicationSensor
from trilake.transfers.source_to_s3 import SourceToS3Operator

PURCHASES = DataSet("purchases", grain="month", date="day", shard_by="id")
MONTHS = {"start": "2013-01", "end": "2013-02"}


def tills(window: Window) -> Iterator[tuple[str, bytes]]:
    """A hundred purchases for each month; one has no amount."""
    for number, month in enumerate(window):
        rows = [f"{100 * number + n},{'north' if n % 2 else 'south'},{month}-{n % 28 + 1:02},{n}.50" for n in range(99)]
        yield month, "\n".join(["id,shop,day,amount", *rows, f"{100 * number + 99},north,{month}-01,", ""]).encode()


with DAG(
    "spark_application",
    schedule=None,
    start_date=datetime(2013, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=20)},
    doc_md=__doc__,
):
    ingest = SourceToS3Operator(task_id="ingest", data_set=PURCHASES, source=tills, file_name="tills.csv", **MONTHS)
    curate = SparkApplicationOperator(
        task_id="curate",
        job="purchases_curate",
        data_set=PURCHASES,
        outlets=[published(PURCHASES)],
        delete_on_termination=False,
        **MONTHS,
    )
    curated = SparkApplicationSensor(
        task_id="curated",
        labels={"trilake/dag": "spark_application", "trilake/task": "curate", "trilake/run": "{{ run_id }}"},
        poke_interval=2,
        timeout=timedelta(minutes=20),
    )

    @task
    def report(reports: dict) -> list:
        """Rows of the mart, and from the job's reports: rows published, and the number of check warnings."""
        from airflow.providers.postgres.hooks.postgres import PostgresHook

        purchases, days = PostgresHook("postgres_oltp").get_first(
            "SELECT sum(purchases)::int, count(*)::int FROM marts.purchases_day"
        )
        return [purchases, days, reports["purchases"]["total_rows"], len(reports["purchases"]["warnings"])]

    ingest >> [curate, curated]
    curated >> report(curate.output["published"])
