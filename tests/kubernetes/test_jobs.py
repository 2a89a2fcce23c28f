"""A job's way through Airflow's scheduler, spark-operator and pods, undisturbed."""

from __future__ import annotations

import pytest
from airflow_run import Airflow
from cluster import Cluster


def test_a_job_runs_on_executors_and_its_result_and_log_come_back(airflow: Airflow, cluster: Cluster) -> None:
    with airflow.gate("jobs") as gate:
        run = airflow.probe(["say", "once upon a time"], ["rows", 1000, 4, 0], ["await", gate])
        run.await_running()
        application = cluster.application(run.run_id)
        assert application
        run.await_log("awaiting")
        for pod in cluster.get("pods"):
            labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
            assert labels["trilake/dag"] == "probe"
            assert labels["trilake/instance"] == application["metadata"]["labels"]["trilake/instance"]
            # what Spark makes of 512 MiB, its least overhead with it: nobody takes a part of it away
            assert container["resources"]["requests"]["memory"] == "896Mi"
            # by reference alone: nobody who may read pods reads a password
            assert container["envFrom"] == [{"secretRef": {"name": "trilake-jobs"}}]
            assert not [e for e in container["env"] if "AIRFLOW_CONN" in e["name"]]
        airflow.open_gate(gate)
    run.await_end()
    result = run.result()
    assert result["rows"] == 1000
    assert result["executors"]
    assert result["host"] not in result["executors"]
    assert (result["application"], result["state"]) == (application["metadata"]["name"], "COMPLETED")
    assert result["seconds"] > 0
    assert result["spark"]["tasks"] == 4
    assert sum("once upon a time" in line for line in run.log) == 1


@pytest.mark.full
def test_without_a_trigger_the_worker_waits_itself(airflow: Airflow) -> None:
    run = airflow.probe(["rows", 10, 1, 0], dag_id="probe_in_the_worker")
    run.await_end()
    assert run.result()["rows"] == 10


@pytest.mark.full
def test_a_long_log_comes_whole_in_order_and_each_line_once(airflow: Airflow) -> None:
    lines = 3000
    run = airflow.probe(["flood", lines], ["rows", 1, 1, 8], ["flood", lines])
    run.await_end()
    numbers = [int(line.split()[1]) for line in run.read_log(10_000) if line.startswith("line ")]
    assert numbers == [*range(lines)] * 2
