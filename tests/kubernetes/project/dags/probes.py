"""One task each: the job `probe` with the run's steps, its application changed as the run says."""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param

from trilake.operators.spark import SparkApplicationOperator


class ChangedSparkApplicationOperator(SparkApplicationOperator):
    """The application as it would be submitted, with the run's `spec` laid over it."""

    def _manifest(self, context: Any, *arguments: Any) -> dict[str, Any]:
        manifest = super()._manifest(context, *arguments)
        _lay_over(manifest["spec"], context["params"]["spec"])
        return manifest


def _lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _lay_over(below[key], value)
        else:
            below[key] = value


OPTIONS: dict[str, dict[str, Any]] = {
    "probe": {},
    "probe_in_the_worker": {"deferrable": False},
    "probe_again": {"retries": 2, "retry_delay": timedelta(seconds=1)},
    "probe_in_the_worker_again": {"deferrable": False, "retries": 2, "retry_delay": timedelta(seconds=1)},
    "probe_impatient": {"startup_timeout_seconds": 20},
}

for name, options in OPTIONS.items():
    with DAG(
        name,
        schedule=None,
        params={
            "steps": Param([], type="array"),
            "spec": Param({}, type="object"),
        },
        is_paused_upon_creation=False,
    ) as dag:
        ChangedSparkApplicationOperator(
            task_id="probe", job="probe", arguments=["--steps", "{{ params.steps | tojson }}"], **options
        )
    globals()[name] = dag
