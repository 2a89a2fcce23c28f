"""
# Publication housekeeping

Brings to its end what a publisher left that died: a partition that was decided and is not on every shard of ClickHouse
yet, and staging tables of attempts that nobody is behind any more. Publishers at work are left alone, and what the next
publication of the same partition finishes by itself is not waited for.

**When it fails:** its log names the partition. If a shard did not answer, the next run goes on. If a staging table is
gone, publish that partition again with `force`. `trilake publications` shows what every partition stands at.
"""

from datetime import timedelta

from airflow.sdk import DAG
from airflow.timetables.trigger import CronTriggerTimetable

from trilake.operators.publications import FinishPublicationsOperator
from trilake.tags import Tag

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
    tags=[Tag.MAINTENANCE],
    doc_md=__doc__,
):
    FinishPublicationsOperator(task_id="finish", execution_timeout=timedelta(minutes=20))
