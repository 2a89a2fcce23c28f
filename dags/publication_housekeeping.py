"""
# Publication housekeeping

Brings to its end what a publisher left that died: a partition that was decided and is not on every shard of ClickHouse
yet, and staging tables of attempts that nobody is behind any more. Publishers at work are left alone, and what the next
publication of the same partition finishes by itself is not waited for.

Task `clear` removes what killed jobs and tasks left elsewhere and no next one comes for: staging tables of
`write_postgres` in PostgreSQL, exports of `read_table` below `s3://exports/spark/`, and uploads to the buckets raw,
artifacts, logs and exports that nobody has completed for three days, which is longer than any job may run. A driver at
work holds a lock, and is left alone.

**When it fails:** the log of `finish` names the partition. If a shard did not answer, the next run goes on. If a
staging table is gone, publish that partition again with `force`. `trilake publications` shows what every partition
stands at.
The log of `clear` names the service that did not answer; what lies in the others was removed, and the next run goes on.
"""

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from trilake.operators.abandoned import RemoveAbandonedOperator
from trilake.operators.publications import FinishPublicationsOperator

with DAG(
    "publication_housekeeping",
    # With no start date and nothing to run at once, the first run is the next tenth minute's: a platform that starts
    # for the first time has other things to do.
    schedule=CronTriggerTimetable("*/10 * * * *", timezone="UTC", run_immediately=timedelta()),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,  # a safety net that somebody has to put up is none
    dagrun_timeout=timedelta(minutes=30),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["maintenance"],
    doc_md=__doc__,
):
    FinishPublicationsOperator(task_id="finish", execution_timeout=timedelta(minutes=20))
    RemoveAbandonedOperator(task_id="clear", execution_timeout=timedelta(minutes=20))
