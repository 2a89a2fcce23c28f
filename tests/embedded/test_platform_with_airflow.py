"""The platform's life with Airflow on it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.platform_state import Kept, pids, states
from support.running_platform import Platform
from trilake.platform.embedded import processes
from trilake.platform.embedded.home import SERVICES

pytestmark = pytest.mark.slow
AIRFLOW = [service for service in SERVICES if service.startswith("airflow")]
RUNNING = dict.fromkeys(SERVICES, "running")


@pytest.fixture(scope="session")
def platform(whole_platform: Platform) -> Platform:
    return whole_platform


@pytest.fixture
def kept(platform: Platform) -> Iterator[Kept]:
    kept = Kept(platform)
    yield kept
    platform.up()
    kept.drop()


def test_every_service_runs_and_a_second_up_starts_nothing(platform: Platform) -> None:
    assert states(platform) == RUNNING
    before = pids(platform)
    platform.up()
    assert pids(platform) == before


def test_an_up_without_airflow_leaves_airflow_running(platform: Platform) -> None:
    before = pids(platform)
    done = platform.trilake("up", "--without-airflow")
    assert done.returncode == 0, done.stderr
    assert pids(platform) == before


def test_the_idle_platform_stays_below_2_5_gib(platform: Platform) -> None:
    document = json.loads(platform.trilake("status", "--json").stdout)
    assert all(service["pid"] and service["memory"] > 1 << 20 for service in document["services"])
    assert document["memory"] < 2.5 * (1 << 30)


@pytest.mark.nightly
def test_airflow_comes_back_with_a_killed_database(platform: Platform, kept: Kept) -> None:
    pid = pids(platform)["postgres"]
    assert pid
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
    platform.up()
    assert states(platform) == RUNNING
    kept.check()


@pytest.mark.nightly
def test_killed_airflow_processes_come_back_and_leave_no_orphan(platform: Platform, kept: Kept) -> None:
    before = pids(platform)
    for service in AIRFLOW:
        pid = before[service]
        assert pid
        os.kill(pid, signal.SIGKILL)
    old = {process.pid for process, service in processes.find(platform.home).items() if service in AIRFLOW}
    platform.up()
    assert states(platform) == dict.fromkeys(SERVICES, "running")
    assert not old & {process.pid for process in processes.find(platform.home)}
    assert {name: pid for name, pid in pids(platform).items() if name not in AIRFLOW} == {
        name: pid for name, pid in before.items() if name not in AIRFLOW
    }


def test_the_services_environment_is_not_the_callers(platform: Platform) -> None:
    """A variable that happens to be set in the shell does not reach the services; the secrets reach those meant."""
    platform.up()
    password = platform.home.secrets()["postgres_airflow"]
    checked = set()
    for process, service in processes.find(platform.home).items():
        try:
            if process.name() == "postgres":
                continue
            environment = Path(f"/proc/{process.pid}/environ").read_text(errors="replace")
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue  # a short-lived child has ended meanwhile
        assert "PYTEST_CURRENT_TEST" not in environment
        assert (password in environment) == (service in AIRFLOW), service
        checked.add(service)
    assert checked >= set(AIRFLOW)
