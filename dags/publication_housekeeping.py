"""
# Publication housekeeping

Task `finish` completes the publications of publishers that died: partitions that were decided but are not on every
shard of ClickHouse yet. It drops the staging tables of dead attempts. It does not touch running publishers. The next
publication of a partition also completes the one before; it does not wait for this DAG.

Task `check` counts the rows of every published partition on every shard. If a shard does not hold the rows that the
ledger says, it fails and names the table, the partition, the shard and both numbers: a disk, a server or a table was
lost, or somebody changed rows by hand. A publication in progress is not counted as a loss.

Task `clear` removes what killed jobs and tasks left elsewhere and no later run removes: staging tables of
`write_postgres` in PostgreSQL, exports of `read_table` below `s3://exports/spark/`, and uploads to the buckets raw,
artifacts, logs and exports that were not completed for three days. No job may run that long. A running driver holds a
lock, so its data is not touched.

**When it fails:** the log of `finish` names the partition. If a shard did not answer, the next run continues. If a
staging table is missing, or if `check` failed, `trilake rebuild` publishes the lost rows again, without Spark.
`trilake publications` shows the state of every partition. The log of `clear` names the service that did not answer. The
other services were cleaned, and the next run continues.
"""

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from trilake.operators.abandoned import RemoveAbandonedOperator
from trilake.operators.publications import CheckPublicationsOperator, FinishPublicationsOperator

with DAG(
    "publication_housekeeping",
    # Without a start date and an immediate run, the first run comes at the next tenth minute, so that this DAG does not
    # slow down the first start of a platform.
    schedule=CronTriggerTimetable("*/10 * * * *", timezone="UTC", run_immediately=timedelta()),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,  # a safety net must not depend on a person who switches it on
    dagrun_timeout=timedelta(minutes=30),
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    tags=["maintenance"],
    doc_md=__doc__,
):
    finish = FinishPublicationsOperator(task_id="finish", execution_timeout=timedelta(minutes=20))
    check = CheckPublicationsOperator(
        task_id="check",
        execution_timeout=timedelta(minutes=20),
        trigger_rule="all_done",  # also if a publication cannot be finished
    )
    finish >> check
    RemoveAbandonedOperator(task_id="clear", execution_timeout=timedelta(minutes=20))
