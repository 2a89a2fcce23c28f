"""
# Lake maintenance

Keeps the lake's Iceberg tables quick and small, once a night, by Iceberg's own procedures: small files are rewritten
into larger ones, snapshots that were replaced more than `snapshot_days` ago and that no publication needs expire (and
with them time travel to them), and files that no snapshot knows and uploads that nobody completed, such as those of a
job that was killed, are removed when they are three days old. Jobs and publications may run beside it.

**When it fails:** its log names the table; all others were done. Run it again: every step can be repeated. `rewritten`
is empty for a table that a job is at work on, or that was written to within the hour: its files are left for the next
night, and `left` says why. A job that begins while they are rewritten waits for that.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.trigger import CronTriggerTimetable

from trilake.operators.spark import SparkApplicationOperator

with DAG(
    "lake_maintenance",
    # no start date and nothing to run at once: the first run is the next night's
    schedule=CronTriggerTimetable("30 3 * * *", timezone="UTC", run_immediately=timedelta()),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    # what a job began from was current when it began: two days ago at most, as long as a job may take
    params={"snapshot_days": Param(7, type="number", minimum=2, description="how long replaced snapshots stay")},
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    tags=["maintenance"],
    doc_md=__doc__,
):
    SparkApplicationOperator(
        task_id="keep_up",
        job="lake_maintenance",
        arguments=["--snapshot-days", "{{ params.snapshot_days }}"],
        run_timeout_seconds=6 * 3600,
    )
