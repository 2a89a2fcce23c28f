"""docs/operations/scaling.md: a number changes, and more executors run."""

from __future__ import annotations

from pathlib import Path

import pytest
from airflow_run import Airflow
from cluster import Cluster, await_true
from test_failures import quota, small


@pytest.mark.full
def test_a_raised_quota_lets_a_waiting_job_have_more_executors(
    airflow: Airflow, cluster: Cluster, overlay: Path
) -> None:
    allocation = {"enabled": True, "initialExecutors": 1, "minExecutors": 1, "maxExecutors": 3}
    with airflow.gate("scaling") as gate:
        with quota(cluster, overlay, "pods", "2"):
            run = airflow.probe(["rows", 30, 30, 4], ["await", gate], spec=small(dynamicAllocation=allocation))
            run.await_running()
            run.await_log("exceeded quota")
            assert len(cluster.pods(run.run_id, "executor")) == 1
        await_true(lambda: len(cluster.pods(run.run_id, "executor")) >= 2, 600, "a second executor")
        airflow.open_gate(gate)
        run.await_end()
    assert run.result()["rows"] == 30
    assert len(run.result()["executors"]) >= 2
