"""Services killed and hosts cut off while flights are on their way: the run ends right, and nothing is left over."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hosts_network import await_true, docker
from whole_replica import FLIGHTS, HEALTHY_S, Replica

pytestmark = pytest.mark.timeout(5400)
MONTH = {"start": "2013-03", "end": "2013-03"}
CUT_S = 30

# Who dies, and while which task is at work: the one that would notice.
KILLED = [
    ("airflow-scheduler", "curate"),
    ("airflow-triggerer", "curate"),
    ("airflow-api-server", "curate"),
    ("airflow-dag-processor", "curate"),
    ("metadata", "curate"),
    ("postgres", "curate"),
    ("s3", "curate"),
    ("k3s", "curate"),
    ("clickhouse-1", "publish"),
    ("clickhouse-2", "publish"),
    ("openvpn", "publish"),
]
IN_CI = {"airflow-scheduler", "clickhouse-2"}


def begin(replica: Replica, task: str) -> str:
    """A run of a month, in the middle of a task: gives its id."""
    # two drivers on a small node can keep each other's executors out
    await_true(lambda: not replica.left_in_kubernetes(), HEALTHY_S, "an earlier run to leave Kubernetes")
    run = replica.start(FLIGHTS, MONTH)
    job_lock = ("running", "deferred")
    await_true(lambda: replica.task(FLIGHTS, run, task) in job_lock, 1200, f"{task} of {run} to be at work")
    if task == "curate":
        await_true(lambda: any("pod" in name for name in replica.left_in_kubernetes()), 600, "its driver")
    return run


def check(replica: Replica, run: str, before: dict[str, Any]) -> None:
    """The run ends right, all is well again, and everything is as it was."""
    replica.await_end(FLIGHTS, run)
    replica.await_healthy()
    await_true(lambda: not replica.left_in_kubernetes(), HEALTHY_S, "nothing of it to be left in Kubernetes")
    after = replica.held()
    assert {k: v for k, v in after.items() if k != "reports"} == {k: v for k, v in before.items() if k != "reports"}


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("service", "task"),
    [pytest.param(*killed, marks=[] if killed[0] in IN_CI else pytest.mark.full) for killed in KILLED],
    ids=[service for service, _ in KILLED],
)
def test_a_run_outlives_the_death_of_a_service(
    replica: Replica, published: dict[str, Any], service: str, task: str
) -> None:
    before, run = replica.held(), begin(replica, task)
    died = replica.state(service)["StartedAt"]
    replica.kill(service)
    await_true(lambda: replica.state(service)["StartedAt"] != died, 300, f"Docker to start {service} again")
    check(replica, run, before)


@pytest.mark.rotates(6)
@pytest.mark.parametrize(
    ("host", "task"),
    [
        pytest.param("vps_1", "curate", marks=pytest.mark.full),
        pytest.param("vps_2", "curate", marks=pytest.mark.full),
        ("vps_3", "publish"),
    ],
)
def test_a_run_outlives_half_a_minute_without_a_hosts_network(
    replica: Replica, published: dict[str, Any], host: str, task: str
) -> None:
    before, run = replica.held(), begin(replica, task)
    with replica.cut(host):
        time.sleep(CUT_S)
    check(replica, run, before)


@pytest.mark.full
def test_a_holder_that_dies_comes_back_with_its_services(replica: Replica, published: dict[str, Any]) -> None:
    """Its namespace goes with it: the services that had joined it are made again by `up`."""
    before = replica.held()
    replica.kill("vps_3")
    replica.compose("up", "--detach", "--no-build", seconds=900)
    replica.compose("up", "--detach", "--no-build", "--force-recreate", "--no-deps", "clickhouse-1", "clickhouse-2")
    replica.await_healthy()
    assert replica.held() == before


@pytest.mark.full
def test_everything_is_there_after_the_docker_daemon_was_restarted(replica: Replica, published: dict[str, Any]) -> None:
    """Needs a daemon that the tests may restart: TRILAKE_RESTART_DOCKER is the command for it."""
    import os
    import subprocess

    command = os.environ.get("TRILAKE_RESTART_DOCKER")
    if not command:
        pytest.skip("TRILAKE_RESTART_DOCKER names no command that restarts the daemon: others may use it")
    before = replica.held()
    subprocess.run(command, shell=True, check=True, timeout=300)
    await_true(lambda: bool(docker("info", "--format", "{{.ServerVersion}}")), 120, "the daemon")
    replica.compose("up", "--detach", "--no-build", seconds=900)
    replica.await_healthy()
    assert replica.held() == before
