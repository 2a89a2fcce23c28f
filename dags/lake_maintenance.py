"""
# Lake maintenance

Keeps the lake's Iceberg tables fast and small. It runs once a night and uses Iceberg's own procedures:

- It rewrites small files into larger ones.
- It expires snapshots that were replaced more than `snapshot_days` ago and that no publication needs. Time travel to
  these snapshots is no longer possible.
- It removes files that belong to no snapshot and uploads that were never completed, such as those of a killed job, when
  they are three days old.

Jobs and publications may run at the same time.

**When it fails:** its log names the table; the other tables were done. Run it again: every step can be repeated.
`rewritten` is empty for a table that a job works on, or that was written to within the last hour: its files are left
for the next night, and `left` says why. A job that starts during the rewrite waits until it has finished.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param
from airflow.timetables.trigger import CronTriggerTimetable

from trilake.operators.spark import SparkApplicationOperator

with DAG(
    "lake_maintenance",
    # Without a start date and an immediate run, the first run is that of the next night.
    schedule=CronTriggerTimetable("30 3 * * *", timezone="UTC", run_immediately=timedelta()),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    # A job may take two days. The snapshot that it started from must still exist when it ends.
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
