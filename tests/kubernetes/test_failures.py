"""Jobs that fail, are refused or cannot start: one readable error, and nothing left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow_run import SMALL, Airflow, Run
from cluster import Cluster


def small(**changes: dict[str, Any] | str) -> dict[str, Any]:
    """`SMALL`, and what else is to be changed."""
    spec = json.loads(json.dumps(SMALL))
    for key, value in changes.items():
        spec[key] = {**spec.get(key, {}), **value} if isinstance(value, dict) else value
    return dict(spec)


def error_of(run: Run) -> str:
    """The one error of a failed run, as its log has it."""
    run.await_end("failed")
    log = "\n".join(run.log)
    found = list(re.finditer(r"(SparkApplication|Kubernetes)Error: ", log))
    assert len(found) == 1, log
    (begin,) = found
    assert "\tat " not in log[begin.start() :]
    # not a dump of a pod
    assert "'metadata'" not in log
    assert "api_version" not in log
    return log[begin.start() :]


@contextmanager
def quota(cluster: Cluster, overlay: Path, name: str, value: str) -> Iterator[None]:
    """The namespace may have less meanwhile."""
    change = json.dumps({"spec": {"hard": {name: value}}})
    cluster.kubectl("patch", "resourcequota", "spark", "--type", "merge", "--patch", change)
    try:
        yield
    finally:
        cluster.apply(overlay)


@pytest.mark.rotates(8)
def test_a_failing_job_says_the_drivers_last_words(airflow: Airflow) -> None:
    run = airflow.probe(["rows", 10, 1, 0], ["fail", "no such luck"])
    error = error_of(run)
    assert "(job probe, namespace spark) is FAILED after " in error
    last = error[error.index("The driver's last lines:") :]
    assert "RuntimeError: no such luck" in last
    assert "exit code 1" in error


@pytest.mark.rotates(8)
def test_an_executors_death_is_told(airflow: Airflow) -> None:
    run = airflow.probe(["kill_executor"], spec=small(sparkConf={"spark.task.maxFailures": "1"}))
    error = error_of(run)
    assert "is FAILED after " in error
    executor = next(line for line in error.splitlines() if "-exec-1: " in line)
    assert "exit code 137" in executor


@pytest.mark.rotates(8)
@pytest.mark.parametrize("account", ["nobody-of-this-name"])
def test_a_submission_with_a_wrong_account_is_refused_and_leaves_nothing(airflow: Airflow, account: str) -> None:
    error = error_of(airflow.probe(spec=small(driver={"serviceAccount": account})))
    assert re.search(r"is (SUBMISSION_)?FAILED", error)
    assert f'serviceaccount "{account}" not found' in error


@pytest.mark.full
def test_a_driver_over_the_quota_is_refused_and_leaves_nothing(
    airflow: Airflow, cluster: Cluster, overlay: Path
) -> None:
    with quota(cluster, overlay, "pods", "0"):
        error = error_of(airflow.probe())
    assert re.search(r"is (SUBMISSION_)?FAILED", error)
    assert "exceeded quota: spark" in error


@pytest.mark.rotates(8)
def test_an_application_over_the_quota_is_refused_in_kubernetes_words(
    airflow: Airflow, cluster: Cluster, overlay: Path
) -> None:
    with quota(cluster, overlay, "count/sparkapplications.sparkoperator.k8s.io", "0"):
        error = error_of(airflow.probe())
    assert "exceeded quota: spark" in error
    assert "HTTP response headers" not in error


@pytest.mark.rotates(8)
def test_an_application_that_the_operators_webhook_refuses_is_refused_in_its_words(airflow: Airflow) -> None:
    both = {"disk": "ssd"}
    error = error_of(airflow.probe(spec=small(nodeSelector=both, driver={"nodeSelector": both})))
    assert "Kubernetes refuses SparkApplication probe-probe-" in error
    assert "node selector cannot be defined at both" in error
    assert "HTTP response headers" not in error


@pytest.mark.rotates(8)
def test_an_image_that_cannot_be_pulled_is_named(airflow: Airflow) -> None:
    run = airflow.probe(dag_id="probe_impatient", spec=small(image="docker.io/trilake/none:1"))
    error = error_of(run)
    assert "did not start within 20 s: it is SUBMITTED" in error
    assert "docker.io/trilake/none:1" in error
    assert "ErrImagePull" in error or "ImagePullBackOff" in error


@pytest.mark.rotates(8)
def test_a_driver_that_no_node_has_room_for_says_so(airflow: Airflow) -> None:
    error = error_of(airflow.probe(dag_id="probe_impatient", spec=small(driver={"coreRequest": "15"})))
    assert "did not start within 20 s: it is SUBMITTED" in error
    assert "FailedScheduling" in error
    assert "Insufficient cpu" in error


@pytest.mark.full
def test_an_executor_that_no_node_has_room_for_is_told_in_the_log(airflow: Airflow) -> None:
    run = airflow.probe(["rows", 1, 1, 0], spec=small(executor={"coreRequest": "15"}))
    run.await_running(executors=0)
    run.await_log_of_task("Insufficient cpu")
    run.set_state("failed")
    run.await_end("failed")
