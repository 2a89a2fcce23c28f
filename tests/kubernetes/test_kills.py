"""Tasks, Airflow, pods and spark-operator that are ended in mid-run: a job is finished once, or is gone."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from airflow_run import Airflow, Run
from cluster import Cluster, await_true

from support.running_platform import Platform
from trilake.platform.embedded.status import status


def service_pid(platform: Platform, service: str) -> int:
    pid = next(s.pid for s in status(platform.home, memory=False) if s.service == service)
    assert pid
    return pid


def kill(platform: Platform, service: str) -> None:
    """kill -9 its process, and nothing that belongs to it."""
    os.kill(service_pid(platform, service), signal.SIGKILL)


def uid(run: Run) -> str:
    application = run.cluster.application(run.run_id)
    assert application
    return str(application["metadata"]["uid"])


def await_gone(run: Run) -> None:
    await_true(lambda: run.cluster.application(run.run_id) is None, 300, "the application to go")


@pytest.mark.parametrize(
    "dag_id",
    ["probe", pytest.param("probe_in_the_worker", marks=pytest.mark.rotates(8))],
    ids=["deferred", "in the worker"],
)
def test_a_task_that_a_person_ends_takes_its_pods_with_it(airflow: Airflow, cluster: Cluster, dag_id: str) -> None:
    with airflow.gate("ended") as gate:
        run = airflow.probe(["await", gate], dag_id=dag_id)
        run.await_running()
        assert run.task.state == ("deferred" if dag_id == "probe" else "running")
        run.set_state("failed")
        run.await_end("failed")
        await_gone(run)
        cluster.await_nothing_left()


@pytest.mark.full
def test_a_task_whose_worker_is_asked_to_end_with_its_scheduler_is_right_at_its_next_try(
    airflow: Airflow, platform: Platform
) -> None:
    with airflow.gate("scheduler") as gate:
        run = airflow.probe(["rows", 50, 2, 0], ["await", gate], dag_id="probe_in_the_worker_again")
        run.await_log("awaiting")
        before = uid(run)
        kill(platform, "airflow-scheduler")
        platform.up()  # asks the workers that outlived their scheduler to end, as an orderly stop does
        run.await_task("running", "up_for_retry", seconds=900)
        airflow.open_gate(gate)
        run.await_end(seconds=1200)  # the lost try is missed first, by its heartbeats
    assert (run.result()["rows"], run.task.tries) == (50, 2)
    # Whether the worker's process still gets to delete its application is a race with its own end: what it left is
    # adopted, what it deleted is submitted again, and there was never a second one beside it (Run.application).
    if run.result()["application"].endswith("-1"):
        assert any("this try adopts it" in line for line in run.log), before
    else:
        assert run.result()["application"].endswith("-2"), before


@pytest.mark.full
def test_a_task_whose_scheduler_and_worker_were_killed_goes_on_with_its_application(
    airflow: Airflow, platform: Platform
) -> None:
    with airflow.gate("worker") as gate:
        run = airflow.probe(["rows", 50, 2, 0], ["await", gate], dag_id="probe_in_the_worker_again")
        run.await_log("awaiting")
        before = uid(run)
        scheduler = psutil.Process(service_pid(platform, "airflow-scheduler"))
        for process in [*scheduler.children(recursive=True), scheduler]:
            process.kill()
        platform.up()
        await_true(lambda: run.task.tries > 1 and run.task.state == "running", 900, "another try")
        run.await_log_of_task("this try adopts it")
        assert uid(run) == before
        airflow.open_gate(gate)
        run.await_end()
    assert run.result()["rows"] == 50


def test_a_deferred_task_outlives_all_of_airflow(airflow: Airflow, platform: Platform) -> None:
    with airflow.gate("airflow") as gate:
        run = airflow.probe(["rows", 50, 2, 0], ["say", "said before"], ["await", gate], ["say", "said after"])
        run.await_log("awaiting")
        run.await_task("deferred")
        before = uid(run)
        for service in ("airflow-triggerer", "airflow-scheduler", "airflow-api-server"):
            kill(platform, service)
        platform.up()
        assert uid(run) == before
        airflow.open_gate(gate)
        run.await_end()
    assert run.result()["rows"] == 50
    assert run.task.tries == 1
    assert [line for line in run.log if line.startswith("said")][-1] == "said after"


@pytest.mark.rotates(8)
def test_a_job_that_loses_an_executor_ends_right(airflow: Airflow, cluster: Cluster) -> None:
    spec = {
        "driver": {"coreRequest": "100m", "memory": "512m"},
        "executor": {"coreRequest": "100m", "memory": "512m", "instances": 2},
    }
    run = airflow.probe(["say", "begun"], ["rows", 800, 16, 4], spec=spec)
    run.await_log("begun")
    run.await_running(executors=2)
    lost = cluster.pods(run.run_id, "executor")[0]
    cluster.kubectl("delete", "pod", lost, "--grace-period=0", "--force")
    run.await_end()
    result = run.result()
    assert result["rows"] == 800
    assert result["spark"]["failed_tasks"] >= 1


@pytest.mark.full
def test_a_task_whose_driver_is_deleted_fails_and_its_retry_is_right(airflow: Airflow, cluster: Cluster) -> None:
    with airflow.gate("driver") as gate:
        run = airflow.probe(["rows", 60, 2, 0], ["await", gate], dag_id="probe_again")
        run.await_log("awaiting")
        first = uid(run)
        cluster.kubectl("delete", "pod", *cluster.pods(run.run_id, "driver"), "--grace-period=0", "--force")
        airflow.open_gate(gate)
        run.await_end()
    assert run.task.tries == 2
    assert run.result()["rows"] == 60
    assert run.result()["application"].endswith("-2"), first


@pytest.mark.rotates(8)
def test_a_job_outlives_a_restart_of_spark_operator(airflow: Airflow, cluster: Cluster) -> None:
    where = ("--namespace", "spark-operator")
    with airflow.gate("operator") as gate:
        run = airflow.probe(["rows", 70, 2, 0], ["await", gate])
        run.await_log("awaiting")
        before = uid(run)
        cluster.kubectl("delete", "pods", "--all", *where, "--grace-period=0", "--force")
        cluster.kubectl(
            "wait", "deployments", "--all", "--for=condition=Available", "--timeout=600s", *where, seconds=660
        )
        assert uid(run) == before
        airflow.open_gate(gate)
        run.await_end()
    assert run.result()["rows"] == 70
    assert run.task.tries == 1


@pytest.mark.full
def test_a_job_that_ends_while_spark_operator_is_away_is_taken_for_what_it_is(
    airflow: Airflow, cluster: Cluster
) -> None:
    where = ("--namespace", "spark-operator")
    controller = "deployment/spark-operator-controller"
    with airflow.gate("away") as gate:
        run = airflow.probe(["rows", 80, 2, 0], ["await", gate])
        run.await_log("awaiting")
        (driver,) = cluster.pods(run.run_id, "driver")
        cluster.kubectl("scale", controller, "--replicas=0", *where)
        try:
            airflow.open_gate(gate)
            await_true(lambda: cluster.pods(run.run_id, "driver", "Succeeded"), 600, f"{driver} to end")
        finally:
            cluster.kubectl("scale", controller, "--replicas=1", *where)
        run.await_end()
    assert run.result()["rows"] == 80
