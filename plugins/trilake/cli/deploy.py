"""``trilake deploy``: check the project, push the jobs' code, make the DAGs live with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from trilake.endpoints import Endpoints
from trilake.platform.hosts.airflow import REPOSITORY
from trilake.platform.hosts.deploy import DeployError, missing_jobs
from trilake.platform.hosts.deploy import deploy as put_live
from trilake.schema.steps import read_steps

_PARSE_TIMEOUT_S = 600
# Runs in a separate process with its own Airflow home, so that it reads and changes nothing of a running Airflow.
_PARSE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
dags = {
    dag.dag_id: {task.task_id: getattr(task, "job", None) for task in dag.tasks} for dag in bag.dags.values()
}
with open(sys.argv[2], "w") as file:
    json.dump({"errors": bag.import_errors, "dags": dags}, file)
"""


def check(project: Path) -> None:
    """Check whether the project can be deployed.

    :raises DeployError: it cannot. The message names every problem.
    """
    steps = read_steps(project / "sql")
    dags = _parse(project / "dags")
    jobs = {job: f"{dag}.{task}" for dag, tasks in dags.items() for task, job in tasks.items() if job}
    if problems := missing_jobs(project, jobs):
        raise DeployError(f"{'; '.join(problems)}.", hint="Nothing was deployed.")
    print(f"{len(dags)} DAGs, {len(jobs)} jobs and {len(steps)} steps of sql/ are in order.", file=sys.stderr)


def _parse(folder: Path) -> dict[str, dict[str, str | None]]:
    """DAG -> task -> the Spark job that it runs, if any."""
    with tempfile.TemporaryDirectory(prefix="trilake-check-") as scratch:
        result = Path(scratch) / "result.json"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        done = subprocess.run(
            [sys.executable, "-c", _PARSE, str(folder), str(result)],
            env={
                **kept,
                "AIRFLOW_HOME": scratch,
                "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
                "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
                # The limit applies to all files together: the first import of a provider may take a minute.
                "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": str(_PARSE_TIMEOUT_S),
                "AIRFLOW__CORE__PLUGINS_FOLDER": f"{scratch}/plugins",
                "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            },
            capture_output=True,
            text=True,
            timeout=_PARSE_TIMEOUT_S,
            check=False,
        )
        if done.returncode or not result.exists():
            told = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DeployError(f"The DAGs of {folder} cannot be parsed: {told}")
        document = json.loads(result.read_text())
    if errors := document["errors"]:
        told = "; ".join(f"{name}: {text.strip().splitlines()[-1]}" for name, text in sorted(errors.items()))
        raise DeployError(f"{len(errors)} files of {folder} cannot be imported: {told}.", hint="Nothing was deployed.")
    dags: dict[str, dict[str, str | None]] = document["dags"]
    if not dags:
        raise DeployError(f"There is no DAG in {folder}.", hint="Nothing was deployed.")
    return dags


def deploy(endpoints: Endpoints, project: Path) -> None:
    """Check the project, push the jobs' code, make the DAGs live.

    :raises DeployError: the project cannot be deployed. Nothing was deployed.
    """
    from trilake import s3

    check(project)
    version, commit, changed = put_live(s3.client(endpoints.s3), project, Path(REPOSITORY))
    print(f"{'Live' if changed else 'Live before'}: DAGs {commit[:12]}, jobs {version}.")
